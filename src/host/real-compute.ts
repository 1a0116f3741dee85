import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { Notifier } from '../base/async.js';
import { BlockError, errnoError, toBlockError } from '../base/error.js';
import { given } from '../base/given.js';
import { MAX_WAITING_COMPUTE_TASKS } from '../base/limits.js';
import type { ComputeOptions, ComputeProgram, ComputeTask, HostCompute } from './compute.js';
import { FairQueue } from './compute-queue.js';
import { type Assignment, ComputeThread, type LoadedProgram } from './compute-thread.js';
import { loadedKoffiFile } from './koffi.js';
import { TurnBudget } from './sync-writes.js';

/** More would take the processors from the event loops that feed them. */
const MOST_THREADS = 4;
/** An idle thread costs some 10 MB. */
const IDLE_MS = 10_000;
/** How long small tasks, one after the other, may keep the event loop in one turn. */
const SYNC_MS_PER_TURN = 4;

/** Whose tasks those are that name no user. */
const NOBODY = {};

/** Compute threads, started when they are first needed. */
export class RealCompute implements HostCompute {
  readonly #pools = new Map<string, ThreadPool>();
  readonly #budget = new TurnBudget(SYNC_MS_PER_TURN);
  readonly #mostThreads: number;
  #isClosed = false;

  constructor(mostThreads = Math.min(MOST_THREADS, availableParallelism())) {
    this.#mostThreads = mostThreads;
  }

  tryRun<P>({ function: wanted, input, output, parameters }: ComputeTask<P>): number {
    if (input.byteLength + output.byteLength > wanted.maxSyncBytes) return -1;
    if (wanted.prepare || this.#isClosed || this.#budget.isSpent) return -1;
    const startMs = performance.now();
    try {
      return wanted.run(input, output, parameters);
    } finally {
      this.#budget.spend(performance.now() - startMs);
    }
  }

  async run<P>(task: ComputeTask<P>, { signal, user = NOBODY }: ComputeOptions = {}): Promise<number> {
    if (this.#isClosed) throw closedError();
    if (signal?.aborted) throw errnoError('ECANCELED');
    return this.#poolOf(task.function.program.path).run(task as ComputeTask<never>, user, signal);
  }

  /** Its threads run what its file says now, with what this process has loaded. Errors: those of reading it. */
  load({ path }: ComputeProgram): void {
    this.#poolOf(path).loaded = {
      text: readFileSync(path, 'utf8'),
      ...given({ koffiFile: loadedKoffiFile() }),
    };
  }

  async room(user: object = NOBODY): Promise<void> {
    await Promise.all([...this.#pools.values()].map((pool) => pool.room(user)));
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    await Promise.all([...this.#pools.values()].map((pool) => pool.close()));
  }

  #poolOf(path: string): ThreadPool {
    let pool = this.#pools.get(path);
    if (!pool) this.#pools.set(path, (pool = new ThreadPool(path, this.#mostThreads)));
    return pool;
  }
}

function closedError(): BlockError {
  return new BlockError('closed', 'The compute threads have been ended');
}

/** The threads of one program, and the tasks that wait for them. */
class ThreadPool {
  readonly #path: string;
  /** See ThreadProgram. */
  loaded: LoadedProgram | undefined;
  readonly #mostThreads: number;
  #threads: ComputeThread[] = [];
  readonly #waiting = new FairQueue<Assignment>();
  readonly #taken = new Notifier();
  #idleTimer: NodeJS.Timeout | undefined;

  constructor(path: string, mostThreads: number) {
    this.#path = path;
    this.#mostThreads = mostThreads;
  }

  run(task: ComputeTask<never>, user: object, signal: AbortSignal | undefined): Promise<number> {
    if (this.#waiting.countOf(user) >= MAX_WAITING_COMPUTE_TASKS)
      throw new BlockError('limit', 'Too many tasks wait for compute threads', { errno: 'EAGAIN' });
    return new Promise((resolve, reject) => {
      const settle = (action: () => void): void => {
        signal?.removeEventListener('abort', onAbort);
        if (signal?.aborted) reject(errnoError('ECANCELED'));
        else action();
      };
      const assignment: Assignment = {
        task,
        done: (value) => settle(() => resolve(value)),
        failed: (error) => settle(() => reject(error)),
      };
      const onAbort = (): void => {
        if (this.#waiting.remove(user, assignment)) assignment.failed(errnoError('ECANCELED'));
      };
      signal?.addEventListener('abort', onAbort);
      this.#waiting.add(user, assignment);
      this.#dispatch();
    });
  }

  async room(user: object): Promise<void> {
    await this.#taken.until(() => this.#waiting.countOf(user) < MAX_WAITING_COMPUTE_TASKS);
  }

  async close(): Promise<void> {
    clearTimeout(this.#idleTimer);
    for (let next = this.#waiting.take(); next; next = this.#waiting.take()) next.failed(closedError());
    this.#taken.notify();
    await Promise.all(this.#threads.map((thread) => thread.terminate(closedError())));
  }

  /** Gives waiting tasks to threads, the idlest first; a new thread rather than a second task for one. */
  #dispatch(): void {
    this.#threads = this.#threads.filter((thread) => !thread.hasEnded);
    while (this.#hasRoom()) {
      const next = this.#waiting.take();
      if (!next) break;
      try {
        this.#idlestThread().assign(next);
      } catch (error) {
        next.failed(toBlockError(error, 'Could not give a task to a compute thread'));
      }
    }
    this.#taken.notify();
    this.#idleTimer ??= setTimeout(() => this.#endIdleThreads(), IDLE_MS).unref();
  }

  #hasRoom(): boolean {
    return this.#threads.length < this.#mostThreads || this.#threads.some((thread) => !thread.isFull);
  }

  #idlestThread(): ComputeThread {
    const [idlest] = [...this.#threads].sort((a, b) => a.taskCount - b.taskCount);
    if (idlest && (idlest.taskCount === 0 || this.#threads.length === this.#mostThreads)) return idlest;
    const started = new ComputeThread({ path: this.#path, loaded: this.loaded }, () => this.#dispatch());
    this.#threads.push(started);
    return started;
  }

  #endIdleThreads(): void {
    this.#idleTimer = undefined;
    const nowMs = performance.now();
    for (const thread of this.#threads)
      if (thread.idleMs(nowMs) >= IDLE_MS) void thread.terminate(closedError());
    const isAnyLeft = this.#threads.some((thread) => !thread.hasEnded);
    if (isAnyLeft) this.#idleTimer = setTimeout(() => this.#endIdleThreads(), IDLE_MS).unref();
  }
}
