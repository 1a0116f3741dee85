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
    for (const listener of [...this.#listeners]) guarded(() => listener(event, data), this.#report);
  }

  removeAll(): void {
    this.#listeners.clear();
  }
}

/** Runs code of the program. What it throws, or rejects with, goes to `report`. */
export function guarded(code: () => unknown, report: (error: unknown) => void): void {
  try {
    const outcome = code();
    if (outcome instanceof Promise) outcome.catch(report);
  } catch (error) {
    report(error);
  }
}
