import { assert } from './assert.js';

/** A promise with its handles. */
export interface Deferred<T> {
  readonly promise: Promise<T>;
  resolve(value: T): void;
  reject(error: unknown): void;
}

export function deferred<T = void>(): Deferred<T> {
  let resolve!: (value: T) => void;
  let reject!: (error: unknown) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** Wakes everyone who waits; used for "something changed, look again". */
export class Notifier {
  #waiting: Deferred<void> | undefined;

  wait(): Promise<void> {
    this.#waiting ??= deferred();
    return this.#waiting.promise;
  }

  notify(): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.resolve();
  }

  /** Waits until `condition` holds, looked at again after each notify(). */
  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await this.wait();
  }
}

/** First come, first served. Not reentrant. */
export class AsyncMutex {
  #held = false;
  #queue: Array<() => void> = [];

  get isHeld(): boolean {
    return this.#held;
  }

  async lock(): Promise<void> {
    if (!this.#held) {
      this.#held = true;
      return;
    }
    await new Promise<void>((resolve) => this.#queue.push(resolve));
  }

  unlock(): void {
    assert(this.#held, 'unlock of a free mutex');
    const next = this.#queue.shift();
    if (next) next();
    else this.#held = false;
  }

  async run<T>(body: () => Promise<T>): Promise<T> {
    await this.lock();
    try {
      return await body();
    } finally {
      this.unlock();
    }
  }
}
