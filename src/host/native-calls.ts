import { errnoName } from './call-error.js';
import { type Library, loadLibrary, type NativeFunction } from './libc.js';

/** koffi copies its arguments per call and refuses too many at once; more than the pool has threads gain nothing. */
const MAX_ASYNC_CALLS = 32;

/** Outcome of a call that may fail: the result, or -1 with the errno's name. */
export interface CallResult {
  value: number;
  errno: string;
}

/** How C functions are called: at once or in libuv's pool. Nothing is loaded before the first call. EINTR is retried. */
export class NativeCalls {
  #library: Library | undefined;
  #running = 0;
  readonly #queue: Array<() => void> = [];

  get library(): Library {
    return (this.#library ??= loadLibrary());
  }

  /** Errno name of the call that just failed. */
  lastErrno(): string {
    return errnoName(this.library.koffi.errno());
  }

  now(call: NativeFunction, ...args: unknown[]): CallResult {
    for (;;) {
      const value = call(...args);
      if (value >= 0) return { value, errno: '' };
      const errno = this.lastErrno();
      if (errno !== 'EINTR') return { value, errno };
    }
  }

  /** `memory`: what the arguments have the addresses of. */
  async inPool(call: NativeFunction, args: unknown[], memory?: unknown): Promise<CallResult> {
    if (this.#running >= MAX_ASYNC_CALLS) await new Promise<void>((resolve) => this.#queue.push(resolve));
    else this.#running++;
    try {
      for (;;) {
        const result = await this.#start(call, args, memory);
        if (result.errno !== 'EINTR') return result;
      }
    } finally {
      const next = this.#queue.shift();
      if (next) next();
      else this.#running--;
    }
  }

  #start(call: NativeFunction, args: unknown[], memory: unknown): Promise<CallResult> {
    return new Promise((resolve, reject) => {
      call.async(...args, (error: unknown, value: number) => {
        // They are held here so that buffers outlive the call.
        const cause = [args, memory];
        if (error) reject(error instanceof Error ? error : new Error('native call failed', { cause }));
        else resolve({ value, errno: value < 0 ? this.lastErrno() : '' });
      });
    });
  }
}
