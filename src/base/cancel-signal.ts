import { errnoError } from './error.js';

/** Whoever made requests wants those that have not begun no more: it is told once, for good. */
export class CancelSignal {
  #isCancelled = false;
  readonly #listeners = new Set<() => void>();

  get isCancelled(): boolean {
    return this.#isCancelled;
  }

  cancel(): void {
    if (this.#isCancelled) return;
    this.#isCancelled = true;
    // One that ends may let the next go on, who then no longer listens.
    for (const listener of this.#listeners) listener();
    this.#listeners.clear();
  }

  /** Throws ECANCELED once it is cancelled. */
  check(): void {
    if (this.#isCancelled) throw errnoError('ECANCELED');
  }

  /** What a wait answers, or ECANCELED, whichever comes first. */
  during<T>(wait: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const forget = this.onCancel(() => reject(errnoError('ECANCELED')));
      void wait.then(resolve, reject).then(forget);
      if (this.#isCancelled) reject(errnoError('ECANCELED'));
    });
  }

  /** `listener` is called at cancel(); the answer takes that back. Called by those who wait only. */
  onCancel(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }
}
