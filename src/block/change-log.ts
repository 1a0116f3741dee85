import { assert } from '../base/assert.js';
import { alignDown, alignUp, divideRoundUp } from '../base/align.js';
import { AsyncMutex } from '../base/async.js';
import { addBits, hasOtherBits, setBits } from '../base/bit-bytes.js';
import { KiB, MiB } from '../base/limits.js';
import type { HostClock, HostTimer } from '../host/host.js';
import type { DirtyBitmap } from './dirty-bitmap.js';

/** What of a disk is said to have changed together: a thousandth of it, in these bounds; larger where there would be too many. */
const MIN_REGION_BYTES = 64 * KiB;
const USUAL_REGION_BYTES = 4 * MiB;
const USUAL_REGIONS = 1024;
const MAX_REGIONS = 2 ** 20;
/** A region that nothing has touched for so long, or up to twice as long, is said to have changed no longer. */
const RETIRE_MS = 10_000;
/** After so many waits in a while, twice as much is opened at once. */
const MISSES_PER_DOUBLING = 32;
/** Of a bitmap, what is written as one: a sector. */
const UNIT_BYTES = 512;
const UNIT_GRANULES = 8 * UNIT_BYTES;
const MAX_WRITE_BYTES = 64 * 1024;

const Region = { closed: 0, opening: 1, open: 2, touched: 3 } as const;

/** Where the bits of one bitmap are kept, one a granule from the first byte on. */
export interface BitsPlace {
  /** A multiple of UNIT_BYTES. */
  readonly lengthBytes: number;
  /** Rewrites units where they are; `isDurable`: durable on return. */
  write(byteOffset: number, bytes: Uint8Array, isDurable: boolean): Promise<void>;
}

interface Copy {
  readonly bitmap: DirtyBitmap;
  readonly place: BitsPlace;
  /** What is there; each bit of it durably. */
  readonly bytes: Buffer;
  /** Units of which it is not known what is there: a write of them failed. */
  readonly uncertain: Set<number>;
}

/** Leave to make changes, which has to be renewed. */
export interface Lease {
  isValid(): boolean;
  /** Durable on return. */
  renew(): Promise<void>;
}

/** A change that is on its way: first and last region. */
interface Flight {
  readonly first: number;
  readonly last: number;
}

/**
 * Keeps, where a power loss leaves it, of each of its bitmaps at least the bits that it has: before a first change of a
 * region may reach the disk, all bits of the region are durable there (it is open). The ones that did not have to be are
 * taken back when nothing has touched the region for a while. So changes of an open region cost nothing, and a crash
 * leaves bits too many for open regions only. Who misses often opens larger and larger stretches, so a writer who is
 * everywhere waits a bounded number of times.
 */
export class ChangeLog {
  readonly #clock: HostClock;
  /** Makes the bitmaps' places ready and durable, and calls activate(); done before a first region is opened. */
  readonly #begin: () => Promise<void>;
  readonly #lease: Lease | undefined;
  readonly #regionBytes: number;
  #states = new Uint8Array(0);
  #copies: readonly Copy[] = [];
  readonly #flights = new Set<Flight>();
  readonly #mutex = new AsyncMutex();
  #isActive = false;
  #isResting = false;
  #misses = 0;
  /** Not only closed regions may say less now. */
  #isStale = false;
  #timer: HostTimer | undefined;

  constructor(clock: HostClock, sizeBytes: number, begin: () => Promise<void>, lease?: Lease) {
    this.#lease = lease;
    this.#clock = clock;
    this.#begin = begin;
    this.#regionBytes = regionBytesFor(sizeBytes);
  }

  /** Bytes of the disk that are said to have changed, or to be about to. */
  get openBytes(): number {
    return this.#states.reduce((sum, state) => sum + (state === Region.closed ? 0 : this.#regionBytes), 0);
  }

  // ---- changes

  /** A change of the range may be made now, without a wait in between; it counts as made. */
  isOpen(offset: number, lengthBytes: number): boolean {
    if (!this.#isActive || this.#lease?.isValid() === false) return false;
    const states = this.#states;
    const last = Math.floor((offset + lengthBytes - 1) / this.#regionBytes);
    for (let region = Math.floor(offset / this.#regionBytes); region <= last; region++) {
      if (states[region] === Region.touched) continue;
      if (states[region] !== Region.open) return false;
      states[region] = Region.touched;
    }
    return true;
  }

  /** Makes a change when its regions are open, and keeps them so meanwhile. Errors: also those of writing the bits. */
  async run<T>(offset: number, lengthBytes: number, change: () => Promise<T>): Promise<T> {
    const first = Math.floor(offset / this.#regionBytes);
    const last = Math.floor((offset + lengthBytes - 1) / this.#regionBytes);
    const flight = { first, last };
    this.#flights.add(flight);
    try {
      while (!this.isOpen(offset, lengthBytes)) await this.#open(first, last);
      return await change();
    } finally {
      this.#flights.delete(flight);
    }
  }

  #open(first: number, last: number): Promise<void> {
    return this.#mutex.run(async () => {
      if (!this.#isActive) await this.#begin();
      assert(this.#isActive, 'a change log is made ready before changes');
      if (this.#lease?.isValid() === false) await this.#lease.renew();
      if (this.#areOpen(first, last)) return;
      const stretch = 2 ** Math.min(20, Math.floor(this.#misses / MISSES_PER_DOUBLING));
      this.#misses++;
      const from = alignDown(first, stretch);
      const end = Math.max(last + 1, Math.min(alignUp(last + 1, stretch), this.#regions()));
      this.#reach(end);
      const opening: number[] = [];
      for (let region = from; region < end; region++)
        if (this.#states[region] === Region.closed) opening.push(region);
      this.#setStates(opening, Region.opening);
      try {
        await this.#store(from, end);
      } catch (error) {
        this.#setStates(opening, Region.closed);
        this.#isStale = true;
        throw error;
      }
      this.#setStates(opening, Region.open);
      this.#arm();
    });
  }

  #areOpen(first: number, last: number): boolean {
    for (let region = first; region <= last; region++)
      if ((this.#states[region] ?? Region.closed) < Region.open) return false;
    return true;
  }

  #setStates(regions: readonly number[], state: number): void {
    for (const region of regions) this.#states[region] = state;
  }

  /** Regions of the longest bitmap. */
  #regions(): number {
    const sizeBytes = Math.max(0, ...this.#copies.map(({ bitmap }) => bitmap.sizeBytes));
    return divideRoundUp(sizeBytes, this.#regionBytes);
  }

  #reach(regions: number): void {
    if (regions <= this.#states.length) return;
    const states = new Uint8Array(Math.max(regions, this.#regions()));
    states.set(this.#states);
    this.#states = states;
  }

  // ---- its bitmaps

  /** Nothing of it is written meanwhile but what `body` writes. */
  exclusive<T>(body: () => Promise<T>): Promise<T> {
    return this.#mutex.run(body);
  }

  /**
   * From now on it keeps these, of which `bytes` are there, durably, and no fewer than image() says; of places that it has
   * already it knows better. For the body of exclusive(), and `begin`.
   */
  activate(copies: ReadonlyArray<{ bitmap: DirtyBitmap; place: BitsPlace; bytes: Buffer }>): void {
    for (const { place, bytes } of copies) assert(bytes.length === place.lengthBytes, 'all bytes are known');
    this.#copies = copies.map(
      (copy) =>
        this.#copies.find(({ place }) => place === copy.place) ?? { ...copy, uncertain: new Set<number>() },
    );
    this.#isActive = true;
  }

  /** What the place of a bitmap is to hold, were it there from now on. */
  image(bitmap: DirtyBitmap, lengthBytes: number): Buffer {
    const bytes = Buffer.alloc(lengthBytes);
    for (let at = 0; at < lengthBytes; at += UNIT_BYTES)
      this.#compute(bitmap, at / UNIT_BYTES, bytes.subarray(at, at + UNIT_BYTES));
    return bytes;
  }

  /** All that the bitmaps hold is durable: after something else than changes of the disk has added to them. */
  async settle(): Promise<void> {
    await this.#mutex.run(async () => {
      if (!this.#isActive) await this.#begin();
      await this.#storeAll();
    });
  }

  /** They may have lost bits: what is stored too many goes by and by. */
  shrunk(): void {
    this.#isStale = true;
    if (this.#isActive) this.#arm();
  }

  /** Nothing is written of a bitmap any more. For the body of exclusive(). */
  forget(bitmap: DirtyBitmap): void {
    this.#copies = this.#copies.filter((copy) => copy.bitmap !== bitmap);
    if (this.#copies.length > 0) return;
    this.#isActive = false;
    this.#states.fill(Region.closed);
  }

  /** No change is in flight, and the bits are there exactly, though maybe not durably. It is made ready anew by the next. */
  async end(): Promise<void> {
    await this.#mutex.run(async () => {
      this.#timer?.cancel();
      this.#timer = undefined;
      if (!this.#isActive) return;
      assert(this.#flights.size === 0, 'nothing changes while a change log ends');
      this.#states.fill(Region.closed);
      await this.#storeAll();
      this.#isActive = false;
      this.#copies = [];
    });
  }

  /** The image is somebody else's. */
  abandon(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#isActive = false;
    this.#copies = [];
  }

  // ---- retiring

  #arm(): void {
    if (this.#isResting) return;
    this.#timer ??= this.#clock.setTimer(RETIRE_MS, () => {
      this.#timer = undefined;
      // It is tried again; until then what is stored is too much.
      void this.retire().catch(() => undefined);
    });
  }

  /** For a drained section: what it does by itself ends. */
  async rest(): Promise<void> {
    this.#isResting = true;
    this.#timer?.cancel();
    this.#timer = undefined;
    await this.#mutex.run(async () => undefined);
  }

  goOn(): void {
    this.#isResting = false;
    if (this.#isActive) this.#arm();
  }

  /** Closes the regions that nothing has touched since it was called last. Errors: those of writing. */
  async retire(): Promise<void> {
    await this.#mutex.run(async () => {
      if (!this.#isActive || this.#isResting) return;
      this.#misses = Math.floor(this.#misses / 2);
      const inUse = new Set<number>();
      for (const { first, last } of this.#flights)
        for (let region = first; region <= last; region++) inUse.add(region);
      let [from, end, isOpen] = [Infinity, 0, false];
      for (const [region, state] of this.#states.entries()) {
        if (state === Region.closed) continue;
        if (state === Region.open && !inUse.has(region)) {
          this.#states[region] = Region.closed;
          from = Math.min(from, region);
          end = region + 1;
        } else {
          this.#states[region] = Region.open;
          isOpen = true;
        }
      }
      try {
        if (this.#isStale) await this.#storeAll();
        else if (end > from) await this.#store(from, end);
      } catch (error) {
        this.#isStale = true;
        isOpen = true;
        throw error;
      } finally {
        if (isOpen) this.#arm();
      }
    });
  }

  // ---- storing

  async #storeAll(): Promise<void> {
    this.#isStale = true;
    for (const copy of this.#copies) await this.#storeUnits(copy, 0, copy.bytes.length / UNIT_BYTES);
    this.#isStale = false;
  }

  /** Of all bitmaps, what concerns regions [from, end). */
  async #store(from: number, end: number): Promise<void> {
    for (const copy of this.#copies) {
      const unitBytes = UNIT_GRANULES * copy.bitmap.granularityBytes;
      const first = Math.floor((from * this.#regionBytes) / unitBytes);
      const last = divideRoundUp(end * this.#regionBytes, unitBytes);
      await this.#storeUnits(copy, first, Math.min(last, copy.bytes.length / UNIT_BYTES));
    }
  }

  /** Writes what differs from what is there, adjacent units as one; bits that come are durable, those that go need not be. */
  async #storeUnits(copy: Copy, first: number, end: number): Promise<void> {
    const now = Buffer.alloc(UNIT_BYTES);
    let pending: Buffer[] = [];
    let isMore = false;
    const write = async (behind: number): Promise<void> => {
      const bytes = Buffer.concat(pending);
      const isDurable = isMore;
      pending = [];
      isMore = false;
      if (bytes.length > 0) await writeUnits(copy, behind * UNIT_BYTES - bytes.length, bytes, isDurable);
    };
    for (let unit = first; unit < end; unit++) {
      this.#compute(copy.bitmap, unit, now);
      const before = copy.bytes.subarray(unit * UNIT_BYTES, (unit + 1) * UNIT_BYTES);
      const isUncertain = copy.uncertain.has(unit);
      if (!isUncertain && before.equals(now)) {
        await write(unit);
        continue;
      }
      pending.push(Buffer.from(now));
      isMore ||= isUncertain || hasOtherBits(now, before);
      if (pending.length * UNIT_BYTES >= MAX_WRITE_BYTES) await write(unit + 1);
    }
    await write(end);
  }

  /** What a unit is to hold: the bits that there are, and all of open regions. */
  #compute(bitmap: DirtyBitmap, unit: number, out: Buffer): void {
    const { granularityBytes, sizeBytes, successor } = bitmap;
    bitmap.serialise(unit * UNIT_BYTES, out);
    if (successor) {
      const more = Buffer.alloc(UNIT_BYTES);
      successor.serialise(unit * UNIT_BYTES, more);
      addBits(out, more);
    }
    if (!bitmap.isRecording) return;
    const firstGranule = unit * UNIT_GRANULES;
    const granules = Math.min(firstGranule + UNIT_GRANULES, divideRoundUp(sizeBytes, granularityBytes));
    const firstRegion = Math.floor((firstGranule * granularityBytes) / this.#regionBytes);
    const lastRegion = divideRoundUp(granules * granularityBytes, this.#regionBytes);
    const regions = Math.min(lastRegion, this.#states.length);
    for (let region = firstRegion; region < regions; region++) {
      if (this.#states[region] === Region.closed) continue;
      const from = Math.floor((region * this.#regionBytes) / granularityBytes);
      const end = divideRoundUp((region + 1) * this.#regionBytes, granularityBytes);
      setBits(out, Math.max(from, firstGranule) - firstGranule, Math.min(end, granules) - firstGranule);
    }
  }
}

function regionBytesFor(sizeBytes: number): number {
  let bytes = MIN_REGION_BYTES;
  while (bytes < USUAL_REGION_BYTES && sizeBytes / bytes > USUAL_REGIONS) bytes *= 2;
  while (sizeBytes / bytes > MAX_REGIONS) bytes *= 2;
  return bytes;
}

async function writeUnits(copy: Copy, byteOffset: number, bytes: Buffer, isDurable: boolean): Promise<void> {
  const first = byteOffset / UNIT_BYTES;
  const count = bytes.length / UNIT_BYTES;
  for (let unit = first; unit < first + count; unit++) copy.uncertain.add(unit);
  await copy.place.write(byteOffset, bytes, isDurable);
  bytes.copy(copy.bytes, byteOffset);
  for (let unit = first; unit < first + count; unit++) copy.uncertain.delete(unit);
}
