import fs from 'node:fs';
import type { BlockError } from '../base/error.js';
import { nodeError } from './call-error.js';
import type { OpenDescriptor } from './open-descriptor.js';

export interface FlushOptions {
  /** Its pages are the storage: there is nothing to flush. */
  inMemory: boolean;
  /** Past the page cache. */
  direct: boolean;
  /** Called after each one that succeeds. */
  flushed?: () => Promise<void>;
}

/** The flushes of one file: at most one runs, and one that is asked for meanwhile serves all who ask. */
export class FileFlushes {
  readonly #descriptor: OpenDescriptor;
  readonly #options: FlushOptions;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  /** Once one has failed, every later one does. */
  failure: BlockError | undefined;
  lastMs = 0;

  constructor(descriptor: OpenDescriptor, options: FlushOptions) {
    this.#descriptor = descriptor;
    this.#options = options;
  }

  get isRunning(): boolean {
    return this.#running !== undefined;
  }

  flush(): Promise<void> {
    // A flush that has not begun covers everyone who asks before it does; one under way does not.
    if (!this.#running) return this.#start();
    this.#next ??= this.#running
      .catch(() => undefined)
      .then(() => {
        this.#next = undefined;
        return this.#start();
      });
    return this.#next;
  }

  #start(): Promise<void> {
    const descriptor = this.#descriptor;
    const { inMemory, direct, flushed } = this.#options;
    if (this.failure) return Promise.reject(this.failure);
    if (inMemory && !descriptor.isClosed) return Promise.resolve();
    const startMs = performance.now();
    const running = descriptor.use(
      () =>
        new Promise<void>((resolve, reject) => {
          fs.fdatasync(descriptor.fd, (error) => {
            this.#running = undefined;
            this.lastMs = performance.now() - startMs;
            if (!error) return resolve();
            const failure = nodeError(error, undefined, { path: descriptor.path });
            // What the page cache could not write it may drop; past it nothing is kept that could be dropped.
            if (!direct) this.failure = failure;
            reject(failure);
          });
        }),
    );
    if (!descriptor.isClosed) this.#running = running;
    return flushed ? running.then(flushed) : running;
  }
}
