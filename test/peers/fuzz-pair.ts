import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { Daemon, PROGRAM } from './daemon.js';

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

/** A throttled job copies so little at once that it stays where it is. */
export const THROTTLED = 1;
const SETTLE_MS = 15_000;

/** The same QMP commands for a real qemu-storage-daemon and for ours, in folders with the same files. */
export class Pair {
  readonly folders: { theirs: string; ours: string };
  readonly #theirs: Daemon;
  readonly #ours: Daemon;
  readonly #events: { theirs: EventLog; ours: EventLog };

  private constructor(folders: Pair['folders'], theirs: Daemon, ours: Daemon) {
    this.folders = folders;
    this.#theirs = theirs;
    this.#ours = ours;
    this.#events = { theirs: new EventLog(theirs), ours: new EventLog(ours) };
  }

  static async start(context: TestContext, folder: string, prepare: (cwd: string) => void): Promise<Pair> {
    const folders = { theirs: join(folder, 'qemu'), ours: join(folder, 'livedisk') };
    const monitor = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
    const start = (cwd: string, ...argv: string[]): Promise<Daemon> => {
      mkdirSync(cwd, { recursive: true });
      prepare(cwd);
      return Daemon.start(context, cwd, [...argv, ...monitor]);
    };
    const theirs = await start(folders.theirs, 'qemu-storage-daemon');
    const ours = await start(folders.ours, process.execPath, PROGRAM, 'storage-daemon');
    return new Pair(folders, theirs, ours);
  }

  get output(): string {
    return `${this.#theirs.output}\n${this.#ours.output}`;
  }

  /** Whether the reference has crashed, as it does now and then. */
  isReferenceGone = false;
  /** A throttled job has ended on one side: QEMU's copies a piece more whenever the graph changes, ours zeroes for nothing. */
  hasParted = false;

  async execute(command: string, args: Json = {}): Promise<Answers> {
    if (this.isReferenceGone) return { theirs: {}, ours: {} };
    const [theirs, ours] = await Promise.all([
      this.#theirs.raw(command, args),
      this.#ours.raw(command, args),
    ]);
    if (theirs.error?.class === 'Closed') this.isReferenceGone = true;
    if (ours.error?.class === 'Closed') throw new Error('livedisk has gone');
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
   * Waits until all jobs are where they stay: not at work unless throttled or endless. Answers both sides' jobs when
   * they differ even after a long time.
   */
  async settle(endless: ReadonlySet<string>): Promise<Answers> {
    const end = Date.now() + SETTLE_MS;
    for (;;) {
      const jobs = await this.execute('query-jobs');
      const blockJobs = await this.execute('query-block-jobs');
      const [theirs, ours] = [
        new JobStates(jobs.theirs, blockJobs.theirs, endless),
        new JobStates(jobs.ours, blockJobs.ours, endless),
      ];
      const differing = ours.differing(theirs);
      if (!theirs.isMoving && !ours.isMoving) {
        this.hasParted =
          differing.length > 0 && differing.every((id) => ours.isThrottled(id) || theirs.isThrottled(id));
        if (differing.length === 0 || this.hasParted) return { theirs: {}, ours: {} };
      }
      if (this.isReferenceGone) return { theirs: {}, ours: {} };
      if (Date.now() > end) return { theirs: { return: theirs.status }, ours: { return: ours.status } };
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

  constructor(jobs: Answer, blockJobs: Answer, endless: ReadonlySet<string>) {
    this.status = Object.fromEntries(listOf(jobs).map(({ id, status }) => [id as string, status as string]));
    const throttled = listOf(blockJobs).filter(({ speed }) => speed === THROTTLED);
    this.#still = new Set([...endless, ...throttled.map(({ device }) => device as string)]);
  }

  isThrottled(id: string): boolean {
    return this.status[id] === 'running' && this.#still.has(id);
  }

  get isMoving(): boolean {
    return Object.entries(this.status).some(([id, status]) =>
      status === 'running' ? !this.#still.has(id) : ['created', 'waiting', 'aborting'].includes(status),
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
  readonly #status = new Map<string, unknown>();

  constructor(daemon: Daemon) {
    this.#daemon = daemon;
  }

  take(): Json {
    const byId = new Map<string, string[]>();
    for (const { event, data = {} } of this.#daemon.events.splice(0)) {
      const id = String(data['id'] ?? data['device']);
      const told = event === 'JOB_STATUS_CHANGE' ? this.#statusOf(id, data['status']) : describe(event, data);
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
