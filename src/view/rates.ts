import { given } from '../base/given.js';
import { histogramSince, percentileMs } from './histogram.js';
import type { Job, Operations, User, View } from './model.js';

/** Per second, between two looks. */
export interface DiskRates {
  readonly readOperations: number;
  readonly readBytes: number;
  readonly writeOperations: number;
  readonly writeBytes: number;
  readonly flushes: number;
  /** Mean over what was answered meanwhile; missing when nothing was. */
  readonly readLatencyMs?: number;
  readonly writeLatencyMs?: number;
  /** Percentiles of buckets, where the server counts. */
  readonly readPercentiles?: Percentiles;
  readonly writePercentiles?: Percentiles;
}

export interface Percentiles {
  readonly halfMs: number;
  readonly most99Ms: number;
}

/** How much the newest measure counts. */
const WEIGHT = 0.3;

/** Rates from one look to the next. Each has its moment, in milliseconds of one clock. */
export class Rates {
  #last: { view: View; ms: number } | undefined;
  readonly #jobRates = new Map<string, number>();

  /** The view with its jobs' rates and time left, and the rates of its users by their id; none at the first look. */
  look(view: View, nowMs: number): { view: View; disks: ReadonlyMap<string, DiskRates> } {
    const last = this.#last;
    this.#last = { view, ms: nowMs };
    for (const id of [...this.#jobRates.keys()])
      if (!view.jobs.some((job) => job.id === id)) this.#jobRates.delete(id);
    const seconds = last ? (nowMs - last.ms) / 1000 : 0;
    if (!last || seconds <= 0) return { view, disks: new Map() };
    const jobs = view.jobs.map((job) => this.#jobAt(job, last.view, seconds));
    const disks = new Map<string, DiskRates>();
    for (const user of view.users) {
      const before = last.view.users.find(({ id }) => id === user.id);
      const rates = before && diskRates(before, user, seconds);
      if (rates) disks.set(user.id, rates);
    }
    return { view: { ...view, jobs }, disks };
  }

  #jobAt(job: Job, last: View, seconds: number): Job {
    if (job.rate !== undefined) return job;
    const before = last.jobs.find(({ id, type }) => id === job.id && type === job.type);
    if (!before) return job;
    const now = Math.max(0, job.done - before.done) / seconds;
    const known = this.#jobRates.get(job.id);
    const rate = known === undefined || known === 0 ? now : (1 - WEIGHT) * known + WEIGHT * now;
    this.#jobRates.set(job.id, rate);
    const isMoving = job.status === 'running' && rate > 0;
    return { ...job, rate, ...(isMoving && { secondsLeft: Math.max(0, job.total - job.done) / rate }) };
  }
}

function diskRates(before: User, now: User, seconds: number): DiskRates | undefined {
  const [old, fresh] = [before.statistics, now.statistics];
  if (!old || !fresh) return undefined;
  const per = (a: number, b: number): number => Math.max(0, b - a) / seconds;
  const [readLatencyMs, writeLatencyMs] = [meanMs(old.read, fresh.read), meanMs(old.write, fresh.write)];
  return {
    readOperations: per(old.read.count, fresh.read.count),
    readBytes: per(old.read.bytes, fresh.read.bytes),
    writeOperations: per(old.write.count, fresh.write.count),
    writeBytes: per(old.write.bytes, fresh.write.bytes),
    flushes: per(old.flush.count, fresh.flush.count),
    ...(readLatencyMs !== undefined && { readLatencyMs }),
    ...(writeLatencyMs !== undefined && { writeLatencyMs }),
    ...given({
      readPercentiles: percentiles(old.read, fresh.read),
      writePercentiles: percentiles(old.write, fresh.write),
    }),
  };
}

function percentiles({ latencies: before }: Operations, { latencies }: Operations): Percentiles | undefined {
  if (!latencies) return undefined;
  const since = histogramSince(before, latencies);
  const [halfMs, most99Ms] = [percentileMs(since, 0.5), percentileMs(since, 0.99)];
  return halfMs === undefined || most99Ms === undefined ? undefined : { halfMs, most99Ms };
}

function meanMs(before: Operations, now: Operations): number | undefined {
  const count = now.count - before.count;
  return count > 0 ? Math.max(0, now.totalMs - before.totalMs) / count : undefined;
}
