import type { Json } from '../../block/driver.js';
import type { Change, ChangeGate } from '../../block/change-gate.js';
import type { DirtyBitmap, Stretch } from '../../block/dirty-bitmap.js';
import type { Node } from '../../block/node.js';
import type { PassedHeat } from '../../block/write-heat.js';
import type { HostClock } from '../../host/host.js';
import { Throughput } from '../throughput.js';
import {
  copyRateBeside,
  type Forecast,
  forecastBackground,
  forecastBoth,
  leastShare,
  shareFor,
  type Situation,
} from './forecast.js';
import { Pacer } from './pacer.js';
import { Regions } from './regions.js';

/** How often it is looked how things go. */
const LOOK_MS = 500;
/** A region that guests are likely to write so often before the end is hot. */
const HOT_REWRITES = 2;
/** Guests that write less than this part of what the link takes are caught up with. */
const SLOW_SHARE = 0.5;
/** Bytes of a job that may stand before a guest's on the link. */
export const PACED_PIECE_BYTES = 256 * 1024;

/** What another process is told, besides how far the copy is. A type alias: it is JSON. */
export type PassedFinishBy = {
  leftMs: number;
  linkRate: number;
  guestRate: number;
  writesToBoth: boolean;
  isMarked: boolean;
  isOver: boolean;
  heat: PassedHeat;
};

/** Brings a mirror to its end by a time: docs/FINISH-BY.md has the policy. */
export class FinishBy {
  /** From begin() on. */
  #regions: Regions | undefined;
  readonly #granularityBytes: number;
  readonly #clock: HostClock;
  #dueMs: number;
  readonly #progress: () => { readonly dirty: DirtyBitmap; readonly doneBytes: number };
  readonly #throughput: Throughput;
  readonly #guests: Pacer;
  readonly #copy: Pacer;
  /** The most that the target took, which is what it can take. */
  #linkRate = 0;
  /** What guests wrote before they were held back. */
  #guestRate = 0;
  #share = 1;
  #writesToBoth = false;
  #lookedMs: number;
  #lookedBytes = 0;
  /** The bitmap of what is to be copied has been made. */
  #isMarked = false;
  /** Nobody is held back any more. */
  #isOver = false;
  /** The job rests, and nobody is held back meanwhile. */
  #isToRest = false;
  #passed: PassedFinishBy | undefined;

  constructor(options: {
    clock: HostClock;
    seconds: number;
    granularityBytes: number;
    /** What the target lacks, and what it got. */
    progress: () => { readonly dirty: DirtyBitmap; readonly doneBytes: number };
  }) {
    const { clock, seconds, granularityBytes, progress } = options;
    const nowMs = clock.nowMs();
    this.#clock = clock;
    this.#dueMs = nowMs + seconds * 1000;
    this.#granularityBytes = granularityBytes;
    this.#progress = progress;
    this.#throughput = new Throughput(nowMs);
    this.#guests = new Pacer(clock);
    this.#copy = new Pacer(clock);
    this.#lookedMs = nowMs;
  }

  /** What guests write is counted, until end(). */
  begin(source: Node): void {
    this.#regions = new Regions(source, this.#clock, this.#granularityBytes, this.#passed?.heat);
  }

  /** Undefined: it has not begun. */
  passed(): PassedFinishBy | undefined {
    if (!this.#regions) return undefined;
    return {
      leftMs: this.#dueMs - this.#clock.nowMs(),
      linkRate: this.#linkRate,
      guestRate: this.#guestRate,
      writesToBoth: this.#writesToBoth,
      isMarked: this.#isMarked,
      isOver: this.#isOver,
      heat: this.#regions.passed(),
    };
  }

  /** Before begin(): it goes on from what was told in another process, and rests until restChanged(). */
  goOnFrom(passed: PassedFinishBy): void {
    this.#passed = passed;
    this.#dueMs = this.#clock.nowMs() + passed.leftMs;
    this.#linkRate = passed.linkRate;
    this.#guestRate = passed.guestRate;
    this.#writesToBoth = passed.writesToBoth;
    this.#isMarked = passed.isMarked;
    this.#isOver = passed.isOver;
    this.#isToRest = true;
    // What was copied there says nothing of how fast it goes here.
    this.#lookedBytes = this.#progress().doneBytes;
    if (this.#writesToBoth) this.#setRates();
  }

  /** Nothing is counted any more, and nobody held back, whatever becomes of the job. */
  end(): void {
    this.letGo();
    this.#regions?.stop();
  }

  /** Guests' changes pass it before they go to both sides. */
  gate(inner: ChangeGate): ChangeGate {
    return {
      isOpen: (offset, lengthBytes) => inner.isOpen(offset, lengthBytes),
      run: async (change: Change, forward) => {
        const lengthBytes = linkBytes(change);
        if (lengthBytes > 0 && this.#writesToBoth) await this.#guests.take(lengthBytes);
        return inner.run(change, forward);
      },
      ...(inner.flush && { flush: (forward) => inner.flush?.(forward) ?? forward() }),
    };
  }

  /** How long the job is to wait before it begins a piece of its own. */
  copyDelayMs(): number {
    this.look();
    return this.#copy.delayMs();
  }

  /** A piece of the job's own is begun, which puts so much on the link. */
  spend(lengthBytes: number): void {
    this.#copy.spend(lengthBytes);
  }

  /** What the job puts on the link is counted. */
  get pacesCopy(): boolean {
    return this.#copy.isPacing;
  }

  /** Longest piece of the job's own; where guests write to both sides, none of them is to stand behind a long one. */
  get longestPieceBytes(): number {
    return this.#writesToBoth ? PACED_PIECE_BYTES : Infinity;
  }

  marked(): void {
    this.#isMarked = true;
  }

  look(): void {
    const nowMs = this.#clock.nowMs();
    if (this.#isOver || nowMs - this.#lookedMs < LOOK_MS) return;
    const done = this.#progress().doneBytes;
    this.#throughput.add(done - this.#lookedBytes, this.#lookedMs);
    this.#lookedBytes = done;
    this.#lookedMs = nowMs;
    this.#regions?.look();
    if (this.#writesToBoth) return this.#setRates();
    this.#linkRate = Math.max(this.#linkRate, this.#throughput.bytesPerSecond(nowMs));
    this.#guestRate = this.#regions?.bytesPerSecond ?? 0;
  }

  #setRates(): void {
    if (this.#isOver) return;
    const situation = this.#situation();
    const left = Math.max(0, this.#dueMs - this.#clock.nowMs()) / 1000;
    this.#share = shareFor(situation, left);
    const copyRate = copyRateBeside(situation, this.#share);
    // A guess of the link that was too low must not be the end of it.
    this.#copy.bytesPerSecond = Math.max(copyRate, this.#linkRate / 20);
    const holdsBack = this.#share < 1 && !this.#isToRest;
    this.#guests.bytesPerSecond = holdsBack ? this.#share * this.#guestRate : 0;
  }

  /** The job rests from now on, or goes on. */
  restChanged(isToRest: boolean): void {
    this.#isToRest = isToRest;
    if (this.#writesToBoth) this.#setRates();
  }

  // ---- the policy

  /** Where the job copies, in that order: what is cold; once guests write to both sides, all. */
  *route(): Generator<Stretch> {
    const regions = this.#regions;
    if (this.#writesToBoth || !regions) {
      yield { offset: 0, lengthBytes: this.#progress().dirty.sizeBytes };
      return;
    }
    this.look();
    for (const region of regions.coldestFirst())
      if (!this.#isHot(regions, region)) yield regions.stretchOf(region);
  }

  #isHot(regions: Regions, region: number): boolean {
    const { lengthBytes } = regions.stretchOf(region);
    if (this.#linkRate <= 0) return false;
    const seconds = this.#progress().dirty.dirtyBytes / this.#linkRate;
    return (regions.rates[region] ?? 0) * seconds > HOT_REWRITES * lengthBytes;
  }

  /** After a round over what is cold: whether guests' changes are to go to both sides now. */
  isToSwitch(): boolean {
    this.look();
    if (this.#writesToBoth || this.#progress().dirty.isClean) return false;
    const { guestRate, linkRate } = this.#situation();
    return guestRate > SLOW_SHARE * linkRate || this.#clock.nowMs() >= this.#dueMs;
  }

  /** They do. */
  switched(): void {
    if (this.#writesToBoth) return;
    this.#writesToBoth = true;
    this.#setRates();
  }

  /** The target has all, or the job ends: nobody is held back any more, nor goes on waiting. */
  letGo(): void {
    this.#isOver = true;
    this.#guests.bytesPerSecond = 0;
    this.#copy.bytesPerSecond = 0;
    this.#share = 1;
  }

  // ---- what it costs

  #situation(): Situation {
    const dirty = this.#progress().dirty;
    const { dirtyBytes } = dirty;
    const rates = { linkRate: this.#linkRate, guestRate: this.#guestRate };
    const regions = this.#regions;
    if (this.#writesToBoth || !regions)
      return { dirtyBytes, hotBytes: dirtyBytes, coldGuestRate: 0, ...rates };
    let [hotBytes, coldGuestRate] = [0, 0];
    for (const [region, rate] of regions.rates.entries())
      if (this.#isHot(regions, region)) hotBytes += regions.stretchOf(region).lengthBytes;
      else coldGuestRate += rate;
    return { dirtyBytes, hotBytes: Math.min(hotBytes, dirtyBytes), coldGuestRate, ...rates };
  }

  /** `x-progress`: what each way from here would cost, by what was seen until now. */
  info(): { [key: string]: Json } {
    if (!this.#isMarked || this.#linkRate === 0) return {};
    const situation = this.#situation();
    const left = (this.#dueMs - this.#clock.nowMs()) / 1000;
    const share = this.#writesToBoth ? this.#share : shareFor(situation, left);
    const told = (name: string, forecast: Forecast | undefined): { [key: string]: Json } =>
      forecast
        ? { [name]: { seconds: Math.ceil(forecast.seconds), copied: Math.round(forecast.copiedBytes) } }
        : {};
    const both = forecastBoth(situation, share);
    return {
      way: this.#writesToBoth ? 'both-sides' : 'cold-first',
      'seconds-left': Math.round(left),
      'guest-percent': Math.round(share * 100),
      'in-time': (both?.seconds ?? Infinity) <= left,
      ...told('background', forecastBackground(situation)),
      ...told('both-sides', both),
      ...told('both-sides-paced', forecastBoth(situation, leastShare(situation))),
    };
  }
}

/** What a guest's change puts on the link: zeroes and discards, however long, next to nothing. */
function linkBytes({ kind, lengthBytes }: Change): number {
  return kind === 'write' ? lengthBytes : 0;
}
