import type { Opener } from '../../block/open.js';
import { Notifier } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import { type Answers, numberOf, objectsOf, readAnswers, textOf } from '../../view/answers.js';
import { buildView } from '../../view/build.js';
import type { View } from '../../view/model.js';

/**
 * Who has the disks open and does as plain QMP asks: this engine, a QEMU, a storage daemon. Its images' files are seen
 * from this machine by the same names.
 */
export interface PointServer {
  readonly host: Host;
  readonly opener: Opener;
  /** From where the server sees relative names; undefined: not known, and such names are refused. */
  readonly folder: string | undefined;
  execute(command: string, args?: JsonObject): Promise<JsonValue>;
  /** While no other command of points runs; `work` uses the server that it is given. */
  alone<T>(work: (server: PointServer) => Promise<T>): Promise<T>;
  /** Calls `listener` when a job's status changes; the answer ends that. */
  onJobChange(listener: () => void): () => void;
}

/** Tries to see all while no job comes, ends or takes its place in the graph. */
const LOOKS = 10;
const BETWEEN_LOOKS_MS = 10;

/** What a view is made of, of one moment where jobs let it be. Errors: those of readAnswers(). */
export async function lookAnswers(server: PointServer): Promise<Answers> {
  const { clock } = server.host;
  const pause = (): Promise<void> => clock.sleep(50);
  for (let looks = 1; ; looks++) {
    const answers = await readAnswers((command, args) => server.execute(command, args), { pause });
    const now = await server.execute('query-jobs');
    if (looks === LOOKS || isSteady(answers['query-jobs'], now)) return answers;
    await clock.sleep(BETWEEN_LOOKS_MS);
  }
}

/** Whether no job has changed the graph between two answers to query-jobs. */
function isSteady(before: JsonValue | undefined, after: JsonValue): boolean {
  const statusesOf = (answer: JsonValue | undefined): string[] =>
    objectsOf(answer).map(({ id, status }) => `${textOf(id)} ${textOf(status)}`);
  const [first, second] = [statusesOf(before), statusesOf(after)];
  const isEnding = (status: string): boolean => / (waiting|pending|aborting)$/.test(status);
  return !first.some(isEnding) && first.join() === second.join();
}

export async function look(server: PointServer): Promise<View> {
  return buildView(await lookAnswers(server));
}

/** How a job ended, or that it waits for its user. */
interface JobState {
  readonly status: string;
  /** What it has done, and has yet to do as far as it knows: of a copy, bytes. */
  readonly workBytes: number;
  readonly error?: string;
}

/** Looks at the server's jobs whenever one changes. */
export class JobWatch implements Disposable {
  readonly #server: PointServer;
  readonly #changed = new Notifier();
  readonly #stop: () => void;

  constructor(server: PointServer) {
    this.#server = server;
    this.#stop = server.onJobChange(() => this.#changed.notify());
  }

  /** Waits until a job has one of the statuses; undefined when there is none of that name. */
  async until(id: string, statuses: readonly string[]): Promise<JobState | undefined> {
    for (;;) {
      const changed = this.#changed.wait();
      const job = await this.find(id);
      if (!job || statuses.includes(job.status)) return job;
      await changed;
    }
  }

  /** Waits until `isDue` holds, asked after each change of a job. */
  async untilDue(isDue: () => Promise<boolean>): Promise<void> {
    for (;;) {
      const changed = this.#changed.wait();
      if (await isDue()) return;
      await changed;
    }
  }

  async find(id: string): Promise<JobState | undefined> {
    const jobs = objectsOf(await this.#server.execute('query-jobs'));
    const job = jobs.find((one) => one['id'] === id);
    if (!job) return undefined;
    const error = textOf(job['error']);
    const workBytes = Math.max(numberOf(job['current-progress']) ?? 0, numberOf(job['total-progress']) ?? 0);
    return { status: textOf(job['status']) ?? '', workBytes, ...(error !== undefined && { error }) };
  }

  /** Waits until a job has the status. Errors: io, with the job's words, when it ends before; it is dismissed. */
  async reach(id: string, status: string): Promise<JobState> {
    const state = await this.until(id, [status, 'concluded']);
    if (state?.status === status) return state;
    await this.finish(id);
    throw new BlockError('io', `job '${id}' ended before it was ${status}`);
  }

  /** Waits for the end of a job that was started not to dismiss itself. Errors: io, with the job's words. */
  async finish(id: string): Promise<void> {
    const ended = await this.until(id, ['concluded']);
    if (!ended) throw new BlockError('io', `job '${id}' is gone, and its end is not known`);
    await this.#server.execute('job-dismiss', { id });
    if (ended.error !== undefined) throw new BlockError('io', `job '${id}' failed: ${ended.error}`);
  }

  [Symbol.dispose](): void {
    this.#stop();
  }
}
