import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { BARE_MACHINE, Daemon, PROGRAM } from './daemon.js';

export type Json = { [key: string]: unknown };

export interface Answer {
  return?: unknown;
  error?: { class: string; desc: string };
}

/** What both sides answered, as far as it must be the same. */
export interface Answers {
  theirs: Answer;
  ours: Answer;
}

/** What of an event must be the same, or undefined. */
export type Describe = (event: string | undefined, data: Json) => string | undefined;

/** A throttled job copies so little at once that it stays where it is. */
export const THROTTLED = 1;
const SETTLE_MS = 15_000;
/** The reference may wait for ever, as for a job that rests where a graph is to be drained. */
const ANSWER_MS = 60_000;

/** The same QMP commands for a real qemu-storage-daemon and for ours, in folders with the same files. */
export class Pair {
  readonly folders: { theirs: string; ours: string };
  readonly #theirs: Daemon;
  readonly #ours: Daemon;
  readonly #events: { theirs: EventLog; ours: EventLog };

  private constructor(folders: Pair['folders'], theirs: Daemon, ours: Daemon, describe: Describe) {
    this.folders = folders;
    this.#theirs = theirs;
    this.#ours = ours;
    this.#events = { theirs: new EventLog(theirs, describe), ours: new EventLog(ours, describe) };
  }

  /** Two storage daemons. */
  static start(context: TestContext, folder: string, prepare: (cwd: string) => void): Promise<Pair> {
    const monitor = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
    return Pair.#start(context, folder, prepare, describe, {
      theirs: ['qemu-storage-daemon', ...monitor],
      ours: [process.execPath, PROGRAM, 'storage-daemon', ...monitor],
    });
  }

  /** Two machines that do not run, with more of a command line; of events all is told that `described` tells. */
  static startMachines(
    context: TestContext,
    folder: string,
    prepare: (cwd: string) => void,
    described: Describe,
    more: readonly string[],
  ): Promise<Pair> {
    const line = [...BARE_MACHINE, '-S', '-qmp', 'unix:qmp.sock,server=on,wait=off', ...more];
    return Pair.#start(context, folder, prepare, described, {
      theirs: ['qemu-system-x86_64', '-accel', 'tcg', ...line],
      ours: [process.execPath, PROGRAM, 'run', ...line],
    });
  }

  static async #start(
    context: TestContext,
    folder: string,
    prepare: (cwd: string) => void,
    described: Describe,
    argv: { theirs: string[]; ours: string[] },
  ): Promise<Pair> {
    const folders = { theirs: join(folder, 'qemu'), ours: join(folder, 'livedisk') };
    const start = (cwd: string, words: string[]): Promise<Daemon> => {
      mkdirSync(cwd, { recursive: true });
      prepare(cwd);
      return Daemon.start(context, cwd, words);
    };
    const theirs = await start(folders.theirs, argv.theirs);
    const ours = await start(folders.ours, argv.ours);
    return new Pair(folders, theirs, ours, described);
  }

  get output(): string {
    return `${this.#theirs.output}\n${this.#ours.output}`;
  }

  /** Whether the reference has crashed or hangs, as it does now and then. */
  isReferenceGone = false;
  /** A throttled job has ended on one side: QEMU's copies a piece more whenever the graph changes, ours zeroes for nothing. */
  hasParted = false;

  async execute(command: string, args: Json = {}): Promise<Answers> {
    if (this.isReferenceGone) return { theirs: {}, ours: {} };
    const [theirs, ours] = await Promise.all([
      answerIn(ANSWER_MS, this.#theirs.raw(command, args)),
      answerIn(ANSWER_MS, this.#ours.raw(command, args)),
    ]);
    if (theirs === undefined || theirs.error?.class === 'Closed') this.isReferenceGone = true;
    if (ours === undefined) throw new Error(`livedisk does not answer ${command}`);
    if (ours.error?.class === 'Closed') throw new Error('livedisk has gone');
    if (theirs === undefined) return { theirs: {}, ours: {} };
    return { theirs: answerOf(theirs), ours: answerOf(ours) };
  }

  /** Runs a program in both folders, one after the other. */
  run(program: string, ...args: string[]): { theirs: string; ours: string } {
    const on = (cwd: string): string => {
      const { status, stdout, stderr } = spawnSync(program, args, { cwd, encoding: 'utf8' });
      return `${status}\n${stdout}${stderr}`;
    };
    return { theirs: on(this.folders.theirs), ours: on(this.folders.ours) };
  }

  /**
   * Waits until all jobs are where they stay: not at work unless throttled or endless, and not ready where they are to end. Answers both sides' jobs when
   * they differ even after a long time.
   */
  async settle(endless: ReadonlySet<string>, ending: ReadonlySet<string> = new Set()): Promise<Answers> {
    const end = Date.now() + SETTLE_MS;
    for (;;) {
      const jobs = await this.execute('query-jobs');
      const blockJobs = await this.execute('query-block-jobs');
      const [theirs, ours] = [
        new JobStates(jobs.theirs, blockJobs.theirs, endless, ending),
        new JobStates(jobs.ours, blockJobs.ours, endless, ending),
      ];
      const differing = ours.differing(theirs);
      if (!theirs.isMoving && !ours.isMoving) {
        this.hasParted =
          differing.length > 0 && differing.every((id) => ours.isThrottled(id) || theirs.isThrottled(id));
        if (differing.length === 0 || this.hasParted) return { theirs: {}, ours: {} };
      }
      if (this.isReferenceGone) return { theirs: {}, ours: {} };
      if (Date.now() > end) {
        this.hasParted = differing.every((id) => ours.isSlow(id) || theirs.isSlow(id));
        return { theirs: { return: theirs.status }, ours: { return: ours.status } };
      }
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  /** The events since the last call, by what they are about. */
  takeEvents(): { theirs: Json; ours: Json } {
    return { theirs: this.#events.theirs.take(), ours: this.#events.ours.take() };
  }

  async end(): Promise<void> {
    await Promise.all([this.#theirs.quit(), this.#ours.quit()]);
  }

  async kill(): Promise<void> {
    await Promise.all([this.#theirs.kill(), this.#ours.kill()]);
  }
}

/** Undefined when it does not come in time. */
async function answerIn<T>(timeMs: number, answer: Promise<T>): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => (timer = setTimeout(resolve, timeMs, undefined)));
  return Promise.race([answer, late]).finally(() => clearTimeout(timer));
}

function answerOf({ return: value, error }: Answer): Answer {
  return error ? { error } : { return: value };
}

export function listOf(answer: Answer): Json[] {
  return Array.isArray(answer.return) ? (answer.return as Json[]) : [];
}

/** One side's jobs and how far they are. */
class JobStates {
  readonly status: Readonly<Record<string, string>>;
  readonly #still: ReadonlySet<string>;
  readonly #ending: ReadonlySet<string>;

  constructor(jobs: Answer, blockJobs: Answer, endless: ReadonlySet<string>, ending: ReadonlySet<string>) {
    this.#ending = ending;
    this.status = Object.fromEntries(listOf(jobs).map(({ id, status }) => [id as string, status as string]));
    const throttled = listOf(blockJobs).filter(({ speed }) => speed === THROTTLED);
    this.#still = new Set([...endless, ...throttled.map(({ device }) => device as string)]);
  }

  isThrottled(id: string): boolean {
    return this.status[id] === 'running' && this.#still.has(id);
  }

  /** What a guest wrote since it was ready may be one piece to QEMU, and several to us. */
  isSlow(id: string): boolean {
    return ['running', 'ready'].includes(this.status[id] ?? '') && this.#still.has(id);
  }

  get isMoving(): boolean {
    return Object.entries(this.status).some(([id, status]) =>
      status === 'running'
        ? !this.#still.has(id)
        : ['created', 'waiting', 'aborting'].includes(status) || (status === 'ready' && this.#ending.has(id)),
    );
  }

  differing(other: JobStates): string[] {
    const ids = new Set([...Object.keys(this.status), ...Object.keys(other.status)]);
    return [...ids].filter((id) => this.status[id] !== other.status[id]);
  }
}

/** How often a job rests for others' changes of the graph is its own affair, and so is its return from there. */
const RESTS = ['paused', 'standby'];

/** One side's events: by what they are about, in order. */
class EventLog {
  readonly #daemon: Daemon;
  readonly #describe: Describe;
  readonly #status = new Map<string, unknown>();

  constructor(daemon: Daemon, describe: Describe) {
    this.#daemon = daemon;
    this.#describe = describe;
  }

  take(): Json {
    const byId = new Map<string, string[]>();
    for (const { event, data = {} } of this.#daemon.events.splice(0)) {
      const id = String(data['id'] ?? data['device']);
      const told =
        event === 'JOB_STATUS_CHANGE' ? this.#statusOf(id, data['status']) : this.#describe(event, data);
      if (told !== undefined) byId.set(id, [...(byId.get(id) ?? []), told]);
    }
    return Object.fromEntries([...byId].sort());
  }

  #statusOf(id: string, status: unknown): string | undefined {
    if (RESTS.includes(status as string) || this.#status.get(id) === status) return undefined;
    this.#status.set(id, status);
    return String(status);
  }
}

function describe(event: string | undefined, { type, error, action, operation }: Json): string {
  return JSON.stringify({ event, type, error, action, operation });
}
