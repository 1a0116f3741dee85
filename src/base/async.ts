import { assert } from './assert.js';
import type { CancelSignal } from './cancel-signal.js';

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

  /** Errors: ECANCELED when `signal` is cancelled before notify(). */
  wait(signal?: CancelSignal): Promise<void> {
    this.#waiting ??= deferred();
    const { promise } = this.#waiting;
    return signal ? signal.during(promise) : promise;
  }

  notify(): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.resolve();
  }

  /** Waits until `condition` holds, looked at again after each notify(). */
  async until(condition: () => boolean, signal?: CancelSignal): Promise<void> {
    while (!condition()) await this.wait(signal);
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

/** So many at a time, first come, first served. */
export class Slots {
  #free: number;
  readonly #queue: Array<() => void> = [];

  constructor(count: number) {
    this.#free = count;
  }

  async take(): Promise<void> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#queue.push(resolve));
  }

  giveBack(): void {
    const next = this.#queue.shift();
    if (next) next();
    else this.#free++;
  }
}

/** Requests that can be left to themselves, all at once. */
export class Abandonable {
  readonly #failing = new Set<(error: Error) => void>();
  #error: Error | undefined;

  get isAbandoned(): boolean {
    return this.#error !== undefined;
  }

  /** Throws the error of abandon(), once that was called. */
  check(): void {
    if (this.#error) throw this.#error;
  }

  /** What a request answers, or the error of abandon(), whichever comes first. */
  during<T>(request: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const fail = (error: Error): void => reject(error);
      this.#failing.add(fail);
      void request.then(resolve, reject).then(() => this.#failing.delete(fail));
      if (this.#error) reject(this.#error);
    });
  }

  /** A wait that `start` begins; answers how to end it when nobody waits any more. */
  async sleep(start: (done: () => void) => { cancel(): void }): Promise<void> {
    const slept = deferred();
    const timer = start(() => slept.resolve());
    try {
      await this.during(slept.promise);
    } finally {
      timer.cancel();
    }
  }

  /** Requests in flight fail with `error`, and later ones do. */
  abandon(error: Error): void {
    this.#error ??= error;
    for (const fail of [...this.#failing]) fail(this.#error);
  }
}

/** Takes steps one after the other, each whatever became of those before it. Errors: the first that was met. */
export async function eachInTurn(steps: Iterable<() => Promise<void> | void>): Promise<void> {
  let failure: { error: unknown } | undefined;
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      failure ??= { error };
    }
  }
  if (failure) throw failure.error;
}

/** What an attempt failed with; undefined: nothing. */
export async function failureOf(attempt: () => Promise<void>): Promise<{ error: unknown } | undefined> {
  try {
    await attempt();
    return undefined;
  } catch (error) {
    return { error };
  }
}
