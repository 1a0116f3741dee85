/**
 * Work of the processor that is too long for the event loop: to compress, to hash, to encrypt. It is done in threads of
 * our own, since in Node's pool flushes and cold reads wait.
 */

/** The file that a thread runs, which knows some functions (`serveCompute`). */
export interface ComputeProgram {
  /** Absolute path. */
  readonly path: string;
}

/**
 * A pure function of bytes. It looks at nothing but its arguments and changes nothing but `output`, so it may be done
 * in any thread and done again.
 */
export interface ComputeFunction<Parameters> {
  /** Where a thread finds it. */
  readonly program: ComputeProgram;
  /** Its name there. */
  readonly name: string;
  /**
   * Bytes of input and output together up to which it is done at once: about what takes as long as to wake a thread
   * (50 us; `npm run bench -- compute` measures both). 0: never at once.
   */
  readonly maxSyncBytes: number;
  /** What has to be awaited before it can run. With it the function runs in threads only. */
  prepare?(): Promise<void>;
  /**
   * Answers how many bytes of `output` it has filled; the rest stays as it was. When it throws, `output` holds anything.
   * Parameters must be cloneable.
   */
  run(input: Uint8Array, output: Uint8Array, parameters: Parameters): number;
}

export interface ComputeTask<Parameters = unknown> {
  readonly function: ComputeFunction<Parameters>;
  /** Unchanged, and `output` not looked at, until the answer is there. On a SharedArrayBuffer they are not copied. */
  readonly input: Uint8Array;
  readonly output: Uint8Array;
  readonly parameters: Parameters;
}

export interface ComputeOptions {
  /** A task that waits for a thread fails at once, one that runs when it is done; both with ECANCELED. */
  signal?: AbortSignal;
  /** Those who wait for threads take turns, whoever has how many tasks. Tasks without a user are one user's. */
  user?: object;
}

export interface HostCompute {
  /** The function's answer if it is small enough to be done now; -1: nothing was done, use run(). */
  tryRun<P>(task: ComputeTask<P>): number;
  /**
   * Does it in a thread, and answers what the function answers. Errors: the function's own BlockErrors; 'io' when the
   * thread ended meanwhile or cannot start; 'limit' (EAGAIN) when MAX_WAITING_COMPUTE_TASKS of this user wait; 'closed'.
   */
  run<P>(task: ComputeTask<P>, options?: ComputeOptions): Promise<number>;
  /** Resolves when run() will take a task of this user: what a producer awaits that does not await each answer. */
  room(user?: object): Promise<void>;
  /** Ends the threads; tasks that are not done fail with 'closed', and later ones too. */
  close(): Promise<void>;
}
