import type { Json } from '../block/driver.js';

export type EventListener = (event: string, data: { [key: string]: Json }) => unknown;

/** Who hears an engine's events. What a listener throws, or rejects with, is reported: the engine goes on as it was. */
export class Listeners {
  readonly #listeners = new Set<EventListener>();
  readonly #report: (error: unknown) => void;

  constructor(report: (error: unknown) => void) {
    this.#report = report;
  }

  /** The answer ends it. */
  add(listener: EventListener): () => void {
    // One that is added twice hears twice.
    const own: EventListener = (event, data) => listener(event, data);
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  }

  emit(event: string, data: { [key: string]: Json }): void {
    for (const listener of [...this.#listeners]) {
      try {
        const outcome = listener(event, data);
        if (outcome instanceof Promise) outcome.catch(this.#report);
      } catch (error) {
        this.#report(error);
      }
    }
  }

  removeAll(): void {
    this.#listeners.clear();
  }
}
