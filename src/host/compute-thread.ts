import { Worker } from 'node:worker_threads';
import { alignUp } from '../base/align.js';
import { assert, defined } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import type { ComputeTask } from './compute.js';
import { type ComputeReply, type ComputeRequest, unpackError } from './compute-messages.js';
import type { LoadedKoffi } from './koffi.js';

/**
 * A thread has the next task at hand when it is done with one: else it would be idle for as long as it takes to wake
 * two threads.
 */
const SLOTS = 2;
/** Memory for copies that a thread keeps for each slot; larger tasks bring their own. */
const KEPT_BYTES = 2 * 1024 * 1024;
/** Views of a cipher's words need no more. */
const ALIGNMENT_BYTES = 64;
/** JavaScript's own heap: functions work on memory outside it. */
const MAX_HEAP_MB = 64;

/** A task and who waits for it. */
export interface Assignment {
  readonly task: ComputeTask<never>;
  done(value: number): void;
  failed(error: BlockError): void;
}

interface Slot {
  /** For tasks whose memory is not shared. */
  memory: SharedArrayBuffer | undefined;
  running: { assignment: Assignment; output: Uint8Array } | undefined;
}

/** What a thread runs: a file, or what that, and what it needs, was when it was loaded. */
export interface ThreadProgram {
  readonly path: string;
  readonly loaded: LoadedProgram | undefined;
}

export interface LoadedProgram extends LoadedKoffi {
  readonly text: string;
}

/** One thread of the pool. While it has nothing to do it does not keep the process alive. */
export class ComputeThread {
  readonly #worker: Worker;
  readonly #slots: Slot[] = Array.from({ length: SLOTS }, () => ({ memory: undefined, running: undefined }));
  readonly #onFree: () => void;
  readonly #exited: Promise<void>;
  #idleSinceMs = performance.now();
  /** Why it takes no more tasks. */
  #ended: BlockError | undefined;

  /** `onFree` is called when it could take a task, and when it has ended. */
  constructor(program: ThreadProgram, onFree: () => void) {
    this.#onFree = onFree;
    this.#worker = startWorker(program);
    this.#worker.unref();
    this.#worker.on('message', (reply: ComputeReply) => this.#finish(reply));
    this.#worker.on('messageerror', (cause) => this.#end(threadEnded(cause)));
    this.#worker.on('error', (cause) => this.#end(threadEnded(cause)));
    this.#exited = new Promise((resolve) =>
      this.#worker.on('exit', () => {
        this.#end(threadEnded());
        resolve();
      }),
    );
  }

  get hasEnded(): boolean {
    return this.#ended !== undefined;
  }

  get taskCount(): number {
    return this.#slots.filter(({ running }) => running).length;
  }

  get isFull(): boolean {
    return this.taskCount === SLOTS;
  }

  /** For how long it has had nothing to do. */
  idleMs(nowMs: number): number {
    return this.taskCount > 0 ? 0 : nowMs - this.#idleSinceMs;
  }

  assign(assignment: Assignment): void {
    assert(!this.#ended, 'a thread that has ended takes no task');
    const slot = defined(
      this.#slots.find(({ running }) => !running),
      'a free slot',
    );
    const { task } = assignment;
    const { input, output } = placeIn(slot, task);
    const request: ComputeRequest = {
      slot: this.#slots.indexOf(slot),
      name: task.function.name,
      input,
      output,
      parameters: task.parameters,
    };
    this.#worker.postMessage(request);
    if (this.taskCount === 0) this.#worker.ref();
    slot.running = { assignment, output };
  }

  /** Ends it now; its tasks fail with `error`. */
  async terminate(error: BlockError): Promise<void> {
    this.#end(error);
    await this.#worker.terminate();
    await this.#exited;
  }

  #finish(reply: ComputeReply): void {
    if (this.#ended) return;
    const slot = defined(this.#slots[reply.slot], 'the slot of a reply');
    const { assignment, output } = defined(slot.running, 'the task of a reply');
    slot.running = undefined;
    const wanted = assignment.task.output;
    if (output.buffer !== wanted.buffer && !reply.error) wanted.set(output.subarray(0, reply.value));
    if ((slot.memory?.byteLength ?? 0) > KEPT_BYTES) slot.memory = undefined;
    if (this.taskCount === 0) {
      this.#idleSinceMs = performance.now();
      this.#worker.unref();
    }
    if (reply.error) assignment.failed(unpackError(reply.error));
    else assignment.done(reply.value);
    this.#onFree();
  }

  #end(error: BlockError): void {
    if (this.#ended) return;
    this.#ended = error;
    this.#worker.unref();
    const running = this.#slots.flatMap((slot) => slot.running ?? []);
    this.#slots.length = 0;
    for (const { assignment } of running) assignment.failed(error);
    this.#onFree();
  }
}

function threadEnded(cause?: unknown): BlockError {
  const text = cause instanceof Error ? `: ${cause.message}` : '';
  return new BlockError('io', `A compute thread ended unexpectedly${text}`, { errno: 'EIO', cause });
}

function isShared(bytes: Uint8Array): boolean {
  return bytes.buffer instanceof SharedArrayBuffer;
}

/** The task's bytes in memory that the thread sees too. */
function placeIn(
  slot: Slot,
  { input, output }: ComputeTask<never>,
): { input: Uint8Array; output: Uint8Array } {
  const inputBytes = isShared(input) ? 0 : alignUp(input.byteLength, ALIGNMENT_BYTES);
  const neededBytes = inputBytes + (isShared(output) ? 0 : output.byteLength);
  if (neededBytes > (slot.memory?.byteLength ?? 0)) slot.memory = new SharedArrayBuffer(neededBytes);
  const { memory } = slot;
  const view = (at: number, lengthBytes: number): Uint8Array =>
    lengthBytes === 0 ? new Uint8Array(0) : new Uint8Array(defined(memory, 'memory'), at, lengthBytes);
  const sharedInput = isShared(input) ? input : view(0, input.byteLength);
  if (sharedInput !== input) sharedInput.set(input);
  return { input: sharedInput, output: isShared(output) ? output : view(inputBytes, output.byteLength) };
}

/** Runs a CommonJS program as if it were read from its file. */
const RUN_TEXT = `
  const { workerData: { path, text } } = require('node:worker_threads');
  const { compileFunction, constants } = require('node:vm');
  compileFunction(text, ['require', '__filename'], {
    filename: path,
    importModuleDynamically: constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  })(require('node:module').createRequire(path), path);
`;

/** A program that is TypeScript still, as in our tests, needs tsx: Node 20 does not load that into threads by itself. */
function startWorker({ path, loaded }: ThreadProgram): Worker {
  const resourceLimits = { maxOldGenerationSizeMb: MAX_HEAP_MB };
  if (!path.endsWith('.ts')) {
    if (!loaded) return new Worker(path, { resourceLimits });
    return new Worker(RUN_TEXT, { eval: true, resourceLimits, workerData: { path, ...loaded } });
  }
  const from = JSON.stringify(path);
  const start = `import('node:module').then(({ createRequire }) => {
    const require = createRequire(${from});
    require('tsx/cjs/api').register();
    require(${from});
  })`;
  return new Worker(start, { eval: true, resourceLimits });
}
