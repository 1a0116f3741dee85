import { deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import type { HostClock } from '../../host/host.js';
import { objectsOf } from '../../view/answers.js';
import type { QmpClient, QmpEvent } from '../../wire/qmp/client.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';

const POLL_MS = 500;

export interface JobState {
  type: string;
  status: string;
  done: number;
  total: number;
}

export interface JobEnd {
  isGood: boolean;
  text: string;
}

/**
 * Follows one job from before it is started until it has ended, or waits for a command to end it. Events tell how a job
 * went that dismisses itself.
 */
export class JobWatch {
  readonly #client: QmpClient;
  readonly #clock: HostClock;
  readonly #id: string;
  readonly #unlisten: () => void;
  readonly #isEnding: () => boolean;
  /** How the job went, by the events of its end. */
  #end: JobEnd | undefined;
  /** There it was, or events spoke of it. */
  #wasSeen = false;
  #isAborting = false;
  #isStopped = false;
  #wake = deferred();

  /** `isEnding`: whether it has been told to end: that it could be is no news then. */
  constructor(
    client: QmpClient,
    clock: HostClock,
    { id, isEnding }: { id: string; isEnding: () => boolean },
  ) {
    this.#isEnding = isEnding;
    this.#client = client;
    this.#clock = clock;
    this.#id = id;
    this.#unlisten = client.onEvent((event) => this.#hear(event));
  }

  /** Tells `show` of the job now and then. Errors: not-found; those of the connection. */
  async wait(show: (state: JobState) => void): Promise<JobEnd> {
    try {
      for (;;) {
        this.#wake = deferred();
        const jobs = objectsOf(await this.#client.execute('query-jobs'));
        if (this.#isStopped) return { isGood: true, text: 'goes on' };
        const job = jobs.find(({ id }) => id === this.#id);
        const end = this.#look(job, show) ?? (await this.#stopsAt(job?.['status']));
        if (end) return end;
        const timer = this.#clock.setTimer(POLL_MS, () => this.#wake.resolve());
        await Promise.race([this.#wake.promise, this.#client.closed]);
        timer.cancel();
      }
    } finally {
      this.#unlisten();
    }
  }

  /** wait() ends soon; the job does not. */
  stop(): void {
    this.#isStopped = true;
    this.#wake.resolve();
  }

  #hear({ event, data }: QmpEvent): void {
    const { id, device, status, error } = data;
    if (id !== this.#id && device !== this.#id) return;
    this.#wasSeen = true;
    if (event === 'BLOCK_JOB_COMPLETED') this.#end = endOf(error);
    else if (event === 'BLOCK_JOB_CANCELLED') this.#end = CANCELLED;
    else if (status === 'aborting') this.#isAborting = true;
    this.#wake.resolve();
  }

  #look(job: JsonObject | undefined, show: (state: JobState) => void): JobEnd | undefined {
    if (!job) {
      if (!this.#wasSeen) throw new BlockError('not-found', `Job '${this.#id}' not found`);
      return this.#verdict(undefined);
    }
    this.#wasSeen = true;
    const { status, error, type, 'current-progress': done, 'total-progress': total } = job;
    const state = {
      type: type as string,
      status: status as string,
      done: Number(done),
      total: Number(total),
    };
    show(state);
    return status === 'concluded' ? this.#verdict(error) : undefined;
  }

  /** Where the job waits for a command. Most are pending for a moment only. */
  async #stopsAt(status: JsonValue | undefined): Promise<JobEnd | undefined> {
    if (this.#isEnding()) return undefined;
    if (status === 'ready') return { isGood: true, text: 'ready: job-complete or block-job-cancel ends it' };
    if (status !== 'pending') return undefined;
    const jobs = objectsOf(await this.#client.execute('query-block-jobs'));
    const job = jobs.find(({ device }) => device === this.#id);
    if (job?.['auto-finalize'] !== false) return undefined;
    return { isGood: true, text: 'pending: job-finalize or job-cancel ends it' };
  }

  #verdict(error: JsonValue | undefined): JobEnd {
    if (this.#end) return this.#end;
    if (typeof error === 'string') return endOf(error);
    return this.#isAborting ? { isGood: false, text: 'failed' } : endOf(undefined);
  }
}

const CANCELLED: JobEnd = { isGood: false, text: 'cancelled' };

function endOf(error: unknown): JobEnd {
  return typeof error === 'string'
    ? { isGood: false, text: `failed: ${error}` }
    : { isGood: true, text: 'completed' };
}
