import { deferred } from '../../src/base/async.js';

/** Requests that wait where they are until they are let go. */
export class Held {
  readonly #begun = deferred();
  readonly #free = deferred();

  /** One of them waits. */
  get begun(): Promise<void> {
    return this.#begun.promise;
  }

  /** Those of a kind that come from now on, to a driver's instance or to its data path. */
  hold<K extends string>(on: { [key in K]?: unknown }, kind: K): void {
    const make = (on[kind] as (...args: unknown[]) => Promise<void>).bind(on);
    on[kind] = async (...args: unknown[]): Promise<void> => {
      this.#begun.resolve();
      await this.#free.promise;
      await make(...args);
    };
  }

  letGo(): void {
    this.#free.resolve();
  }
}
