import { assert } from '../../base/assert.js';
import { deferred } from '../../base/async.js';
import type { HostClock, HostTimer } from '../../host/host.js';
import { LeakyBucket } from './leaky-bucket.js';
import { type AllLimits, areLimited, type Direction, NO_LIMITS, type Rate } from './throttle-limits.js';

export type ThrottledDirection = Exclude<Direction, 'total'>;

interface Waiting {
  readonly lengthBytes: number;
  readonly go: () => void;
}

/** Of all buckets of a group, in an order of their own. */
export type ThrottleLevels = ReadonlyArray<readonly [level: number, burstLevel: number]>;

/** One user of a group's limits: a throttle filter, a guest's disk. */
export interface ThrottleMember {
  /** undefined: it may begin now; it is counted. Otherwise it is to wait for the promise, and is counted then. */
  enter(direction: ThrottledDirection, lengthBytes: number): Promise<void> | undefined;
  /** Nothing is limited: requests need not be asked for, nor counted. */
  readonly isFree: boolean;
  /** What waits begins now, and what comes does not wait, until resume(). Sections may overlap. */
  release(): void;
  resume(): void;
  /** What waits begins now. */
  leave(): void;
}

/**
 * Limits that several members share. Those with requests take turns, so none gets more of it by asking more. Reads and
 * writes wait in lines of their own.
 */
export class Throttling {
  readonly #clock: HostClock;
  #limits: AllLimits = NO_LIMITS;
  #isFree = true;
  #buckets: Record<Rate, Record<Direction, LeakyBucket>> = bucketsOf(NO_LIMITS);
  #leakedAtMs: number;
  readonly #lines: Record<ThrottledDirection, Line>;

  constructor(clock: HostClock) {
    this.#clock = clock;
    this.#leakedAtMs = clock.nowMs();
    this.#lines = { read: new Line(this, 'read', clock), write: new Line(this, 'write', clock) };
  }

  get limits(): AllLimits {
    return this.#limits;
  }

  /** Buckets begin empty. */
  set limits(limits: AllLimits) {
    this.#limits = limits;
    this.#isFree = !areLimited(limits);
    this.#buckets = bucketsOf(limits);
    this.#leakedAtMs = this.#clock.nowMs();
    for (const line of Object.values(this.#lines)) line.serve();
  }

  get isFree(): boolean {
    return this.#isFree;
  }

  /** How full the buckets are now. */
  get levels(): ThrottleLevels {
    this.#leak();
    return this.#all().map((bucket) => bucket.levels);
  }

  set levels(levels: ThrottleLevels) {
    this.#leakedAtMs = this.#clock.nowMs();
    this.#all().forEach((bucket, i) => void (bucket.levels = levels[i] ?? [0, 0]));
  }

  #all(): LeakyBucket[] {
    return Object.values(this.#buckets).flatMap((rate) => Object.values(rate));
  }

  join(): ThrottleMember {
    return new Member(this, this.#lines);
  }

  /** Until a request in that direction may begin. */
  waitSeconds(direction: ThrottledDirection): number {
    this.#leak();
    const { bps, iops } = this.#buckets;
    return Math.max(
      bps.total.waitSeconds(),
      bps[direction].waitSeconds(),
      iops.total.waitSeconds(),
      iops[direction].waitSeconds(),
    );
  }

  count(direction: ThrottledDirection, lengthBytes: number): void {
    const { bps, iops } = this.#buckets;
    const unit = this.#limits['iops-size'];
    const operations = unit > 0 && lengthBytes > unit ? lengthBytes / unit : 1;
    for (const which of ['total', direction] as const) {
      bps[which].fill(lengthBytes);
      iops[which].fill(operations);
    }
  }

  #leak(): void {
    const now = this.#clock.nowMs();
    const seconds = (now - this.#leakedAtMs) / 1000;
    this.#leakedAtMs = now;
    for (const rate of Object.values(this.#buckets))
      for (const bucket of Object.values(rate)) bucket.leak(seconds);
  }
}

function bucketsOf(limits: AllLimits): Record<Rate, Record<Direction, LeakyBucket>> {
  const bucket = (rate: Rate, direction: Direction): LeakyBucket =>
    new LeakyBucket(
      limits[`${rate}-${direction}`],
      limits[`${rate}-${direction}-max`],
      limits[`${rate}-${direction}-max-length`],
    );
  const all = (rate: Rate): Record<Direction, LeakyBucket> => ({
    total: bucket(rate, 'total'),
    read: bucket(rate, 'read'),
    write: bucket(rate, 'write'),
  });
  return { bps: all('bps'), iops: all('iops') };
}

/** Requests of one direction that wait, of all members; a timer tells when the next one may begin. */
class Line {
  readonly #throttling: Throttling;
  readonly #direction: ThrottledDirection;
  readonly #clock: HostClock;
  /** In the order of their turns. */
  readonly #queues = new Map<Member, Waiting[]>();
  #timer: HostTimer | undefined;

  constructor(throttling: Throttling, direction: ThrottledDirection, clock: HostClock) {
    this.#throttling = throttling;
    this.#direction = direction;
    this.#clock = clock;
  }

  enter(member: Member, lengthBytes: number): Promise<void> | undefined {
    if (this.#queues.size === 0 && this.#throttling.waitSeconds(this.#direction) === 0) {
      this.#throttling.count(this.#direction, lengthBytes);
      return undefined;
    }
    const begun = deferred();
    const queue = this.#queues.get(member) ?? [];
    queue.push({ lengthBytes, go: () => begun.resolve() });
    this.#queues.set(member, queue);
    this.serve();
    return begun.promise;
  }

  /** Lets begin what may, one of each member in turn. */
  serve(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    for (;;) {
      const [next] = this.#queues;
      if (!next) return;
      const seconds = this.#throttling.waitSeconds(this.#direction);
      if (seconds > 0) {
        this.#timer = this.#clock.setTimer(Math.ceil(seconds * 1000), () => this.serve());
        return;
      }
      const [member, queue] = next;
      // Its next turn comes after the others'.
      this.#queues.delete(member);
      this.#begin(queue.shift());
      if (queue.length > 0) this.#queues.set(member, queue);
    }
  }

  /** All of a member's requests begin now. */
  release(member: Member): void {
    const queue = this.#queues.get(member) ?? [];
    this.#queues.delete(member);
    for (const waiting of queue) this.#begin(waiting);
    this.serve();
  }

  #begin(waiting: Waiting | undefined): void {
    assert(waiting !== undefined, 'a member without requests has a turn');
    this.#throttling.count(this.#direction, waiting.lengthBytes);
    waiting.go();
  }
}

class Member implements ThrottleMember {
  readonly #throttling: Throttling;
  readonly #lines: Record<ThrottledDirection, Line>;
  #released = 0;

  constructor(throttling: Throttling, lines: Record<ThrottledDirection, Line>) {
    this.#throttling = throttling;
    this.#lines = lines;
  }

  get isFree(): boolean {
    return this.#throttling.isFree;
  }

  enter(direction: ThrottledDirection, lengthBytes: number): Promise<void> | undefined {
    if (this.#throttling.isFree) return undefined;
    if (this.#released === 0) return this.#lines[direction].enter(this, lengthBytes);
    this.#throttling.count(direction, lengthBytes);
    return undefined;
  }

  release(): void {
    this.#released++;
    this.leave();
  }

  resume(): void {
    assert(this.#released > 0, 'a member of a throttle group is resumed that was not released');
    this.#released--;
  }

  leave(): void {
    for (const line of Object.values(this.#lines)) line.release(this);
  }
}
