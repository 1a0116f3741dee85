import { alignDown, alignUp } from '../base/align.js';
import type { SeededRandom } from './simulated-random.js';

const PAGE_BYTES = 4096;
/** What a disk writes atomically. */
export const SECTOR_BYTES = 512;

/** Sparse content: pages that are missing are holes and read as zeroes. */
class Pages {
  readonly #pages = new Map<number, Buffer>();

  get count(): number {
    return this.#pages.size;
  }

  has(index: number): boolean {
    return this.#pages.has(index);
  }

  read(position: number, buffer: Uint8Array): void {
    forEachPiece(position, buffer.length, PAGE_BYTES, (index, within, done, length) => {
      const page = this.#pages.get(index);
      if (page) page.copy(buffer, done, within, within + length);
      else buffer.fill(0, done, done + length);
    });
  }

  write(position: number, data: Uint8Array): void {
    forEachPiece(position, data.length, PAGE_BYTES, (index, within, done, length) => {
      this.#page(index).set(data.subarray(done, done + length), within);
    });
  }

  /** How many pages of the range are holes. */
  missing(position: number, lengthBytes: number): number {
    let missing = 0;
    forEachPiece(
      position,
      lengthBytes,
      PAGE_BYTES,
      (index) => void (missing += this.#pages.has(index) ? 0 : 1),
    );
    return missing;
  }

  allocate(position: number, lengthBytes: number): void {
    forEachPiece(position, lengthBytes, PAGE_BYTES, (index) => void this.#page(index));
  }

  /** Reads as zeroes afterwards; pages that are covered whole become holes. */
  clear(position: number, lengthBytes: number): void {
    if (lengthBytes / PAGE_BYTES > this.#pages.size) {
      for (const index of [...this.#pages.keys()]) this.#clearPage(index, position, lengthBytes);
      return;
    }
    forEachPiece(position, lengthBytes, PAGE_BYTES, (index) => this.#clearPage(index, position, lengthBytes));
  }

  clone(): Pages {
    const copy = new Pages();
    for (const [index, page] of this.#pages) copy.#pages.set(index, Buffer.from(page));
    return copy;
  }

  #clearPage(index: number, position: number, lengthBytes: number): void {
    const start = Math.max(position - index * PAGE_BYTES, 0);
    const end = Math.min(position + lengthBytes - index * PAGE_BYTES, PAGE_BYTES);
    if (start >= end) return;
    if (start === 0 && end === PAGE_BYTES) this.#pages.delete(index);
    else this.#pages.get(index)?.fill(0, start, end);
  }

  #page(index: number): Buffer {
    let page = this.#pages.get(index);
    if (!page) this.#pages.set(index, (page = Buffer.alloc(PAGE_BYTES)));
    return page;
  }
}

function forEachPiece(
  position: number,
  lengthBytes: number,
  unit: number,
  visit: (index: number, within: number, done: number, length: number) => void,
): void {
  for (let done = 0; done < lengthBytes;) {
    const at = position + done;
    const index = Math.floor(at / unit);
    const within = at - index * unit;
    const length = Math.min(unit - within, lengthBytes - done);
    visit(index, within, done, length);
    done += length;
  }
}

/** A change of a file's content, as the write cache holds it. */
export type Change =
  | { type: 'write'; position: number; data: Buffer }
  | { type: 'clear'; position: number; lengthBytes: number; keepSize: boolean }
  | { type: 'allocate'; position: number; lengthBytes: number }
  | { type: 'truncate'; sizeBytes: number };

/** How much of the write cache reaches the medium when the power goes. */
export type LossMode = 'nothing' | 'everything' | 'requests' | 'sectors';

class Content {
  pages = new Pages();
  sizeBytes = 0;

  apply(change: Change): void {
    switch (change.type) {
      case 'write':
        this.pages.write(change.position, change.data);
        break;
      case 'clear':
        this.pages.clear(change.position, change.lengthBytes);
        break;
      case 'allocate':
        this.pages.allocate(change.position, change.lengthBytes);
        break;
      case 'truncate':
        if (change.sizeBytes < this.sizeBytes)
          this.pages.clear(change.sizeBytes, this.sizeBytes - change.sizeBytes);
    }
    this.sizeBytes = sizeAfter(change, this.sizeBytes);
  }

  clone(): Content {
    const copy = new Content();
    copy.pages = this.pages.clone();
    copy.sizeBytes = this.sizeBytes;
    return copy;
  }
}

function sizeAfter(change: Change, sizeBytes: number): number {
  switch (change.type) {
    case 'write':
      return change.data.length === 0 ? sizeBytes : Math.max(sizeBytes, change.position + change.data.length);
    case 'clear':
      return change.keepSize ? sizeBytes : Math.max(sizeBytes, change.position + change.lengthBytes);
    case 'allocate':
      return Math.max(sizeBytes, change.position + change.lengthBytes);
    case 'truncate':
      return change.sizeBytes;
  }
}

/**
 * A file below a volatile write cache. Readers see the cache; the medium gets a change when a flush that started
 * after it completes. When the power goes, every 512-byte sector keeps either what the medium has or what any one
 * of the cached changes made of it, chosen for each sector by itself, so requests are lost, reordered and torn.
 * The size keeps to the order of its changes.
 */
export class SimulatedInode {
  readonly number: number;
  /** When it was made: no two files have that in common, whatever their numbers. */
  readonly born: number;
  /** Who has it open. */
  readonly handles = new Set<object>();
  #cached = new Content();
  #medium = new Content();
  #changes: Change[] = [];
  /** Changes that have left #changes for the medium: the number of the first one still there. */
  #firstChange = 0;
  /** When the content was changed last, power losses apart. */
  modifiedMs: number;
  /** Sectors that the medium has as they were at a mark, by writes that are durable by themselves. */
  #settled: Array<{ start: number; end: number; mark: number }> = [];
  /** Who holds a shared OFD lock on a byte. */
  readonly locks = new Map<number, Set<object>>();
  /** Bytes that another program holds exclusively. */
  readonly foreignLocks = new Set<number>();

  constructor(number = 1, born = 0, nowMs = 0) {
    this.number = number;
    this.born = born;
    this.modifiedMs = nowMs;
  }

  get sizeBytes(): number {
    return this.#cached.sizeBytes;
  }

  get allocatedBytes(): number {
    return this.#cached.pages.count * PAGE_BYTES;
  }

  /** Beyond the end: zeroes. */
  read(position: number, buffer: Uint8Array): void {
    this.#cached.pages.read(position, buffer);
  }

  /** Bytes of space that a change takes. */
  spaceFor(change: Change): number {
    const { pages } = this.#cached;
    if (change.type === 'write') return pages.missing(change.position, change.data.length) * PAGE_BYTES;
    if (change.type === 'allocate') return pages.missing(change.position, change.lengthBytes) * PAGE_BYTES;
    return 0;
  }

  change(change: Change, nowMs: number): void {
    this.#cached.apply(change);
    this.#changes.push(change);
    this.modifiedMs = nowMs;
  }

  /** A mark behind every change so far. */
  get mark(): number {
    return this.#firstChange + this.#changes.length;
  }

  /** Makes every change before the mark durable. */
  persist(mark: number): void {
    const count = mark - this.#firstChange;
    if (count <= 0) return;
    for (const [index, change] of this.#changes.splice(0, count).entries())
      this.#keepingSettled(this.#firstChange + index, () => this.#medium.apply(change));
    this.#firstChange = mark;
    this.#settled = this.#settled.filter((range) => range.mark > mark);
  }

  /** Makes what changes before the mark did to [position, end) durable, in whole sectors, and that the file is so long. */
  persistRange(position: number, end: number, mark: number): void {
    const changes = this.#changes.slice(0, Math.max(0, mark - this.#firstChange));
    // A file that became shorter meanwhile: the order of its sizes is kept.
    if (changes.some(({ type }) => type === 'truncate')) return this.persist(mark);
    const start = alignDown(position, SECTOR_BYTES);
    const stop = alignUp(end, SECTOR_BYTES);
    const sector = Buffer.alloc(SECTOR_BYTES);
    for (let at = start; at < stop; at += SECTOR_BYTES) {
      this.#medium.pages.read(at, sector);
      for (const [index, change] of changes.entries())
        if (!this.#isSettled(at, this.#firstChange + index)) replay(change, at, sector);
      this.#medium.pages.write(at, sector);
    }
    const sizeBytes = changes.reduce((size, change) => sizeAfter(change, size), this.#medium.sizeBytes);
    this.#medium.sizeBytes = Math.max(this.#medium.sizeBytes, Math.min(stop, sizeBytes));
    if (changes.length > 0) this.#settled.push({ start, end: stop, mark });
  }

  /** The medium has something newer of a sector than that change. */
  #isSettled(position: number, number: number): boolean {
    return this.#settled.some(({ start, end, mark }) => mark > number && start <= position && position < end);
  }

  /** A change reaches the medium, except where that has something newer. */
  #keepingSettled(number: number, apply: () => void): void {
    const { pages } = this.#medium;
    const kept = this.#settled
      .filter(({ mark }) => mark > number)
      .map(({ start, end }) => ({ start, bytes: Buffer.alloc(end - start) }));
    for (const { start, bytes } of kept) pages.read(start, bytes);
    apply();
    for (const { start, bytes } of kept) pages.write(start, bytes);
  }

  extentAt(position: number, lengthBytes: number): { isHole: boolean; lengthBytes: number } {
    if (position >= this.sizeBytes) return { isHole: true, lengthBytes };
    const pages = this.#cached.pages;
    const isHole = !pages.has(Math.floor(position / PAGE_BYTES));
    // A hole at the end of the file goes on for ever, data ends there.
    const limit = isHole ? position + lengthBytes : Math.min(position + lengthBytes, this.sizeBytes);
    let end = alignDown(position, PAGE_BYTES) + PAGE_BYTES;
    while (end < Math.min(limit, this.sizeBytes) && pages.has(end / PAGE_BYTES) !== isHole) end += PAGE_BYTES;
    if (end >= this.sizeBytes) end = limit;
    return { isHole, lengthBytes: Math.min(end, limit) - position };
  }

  /** The power goes; `inFlight` had not completed but may have reached the medium too. */
  losePower(random: SeededRandom, inFlight: readonly Change[]): void {
    const modes: LossMode[] = ['nothing', 'everything', 'requests', 'sectors', 'sectors'];
    const mode = modes[random.below(modes.length)] ?? 'sectors';
    this.#medium = this.#lost(random, mode, inFlight);
    this.#cached = this.#medium.clone();
    this.#changes = [];
    this.#settled = [];
    this.#firstChange = 0;
    this.locks.clear();
    this.handles.clear();
  }

  /** The file as it would be if the power went now. */
  ifPowerWent(random: SeededRandom, mode: LossMode, inFlight: readonly Change[]): SimulatedInode {
    const inode = new SimulatedInode(this.number, this.born, this.modifiedMs);
    inode.#medium = this.#lost(random, mode, inFlight);
    inode.#cached = inode.#medium.clone();
    return inode;
  }

  #lost(random: SeededRandom, mode: LossMode, inFlight: readonly Change[]): Content {
    const changes = [...this.#changes, ...inFlight];
    if (mode === 'requests') {
      const kept = changes.map(() => random.chance(0.5));
      return this.#loseSectors(
        random,
        changes,
        (numbers) => numbers.findLastIndex((number) => kept[number]) + 1,
      );
    }
    if (mode === 'sectors')
      return this.#loseSectors(random, changes, (numbers) => random.below(numbers.length + 1));
    const medium = this.#medium.clone();
    if (mode === 'everything') for (const change of changes) medium.apply(change);
    return medium;
  }

  /** `pick`: how many of the changes of a sector, by number and in order, its new content includes. */
  #loseSectors(
    random: SeededRandom,
    changes: readonly Change[],
    pick: (numbers: readonly number[]) => number,
  ): Content {
    const before = this.#medium.sizeBytes;
    const reach = changes.reduce((most, change) => Math.max(most, sizeAfter(change, before)), before);
    const sectors = new Map<number, number[]>();
    let sizeBytes = before;
    for (const [number, change] of changes.entries()) {
      const grows = change.type === 'truncate' && change.sizeBytes >= sizeBytes;
      sizeBytes = sizeAfter(change, sizeBytes);
      // There were zeroes already.
      if (grows) continue;
      const [position, end] = changedRange(change, reach);
      forEachPiece(position, end - position, SECTOR_BYTES, (sector) => {
        if (this.#isSettled(sector * SECTOR_BYTES, this.#firstChange + number)) return;
        const list = sectors.get(sector);
        if (list) list.push(number);
        else sectors.set(sector, [number]);
      });
    }
    const old = this.#medium;
    const next = old.clone();
    const bytes = Buffer.alloc(SECTOR_BYTES);
    for (const [sector, numbers] of sectors) {
      const kept = numbers.slice(0, pick(numbers));
      if (kept.length === 0) continue;
      old.pages.read(sector * SECTOR_BYTES, bytes);
      for (const number of kept) replay(changes[number]!, sector * SECTOR_BYTES, bytes);
      next.pages.write(sector * SECTOR_BYTES, bytes);
    }
    for (const change of changes.slice(0, random.below(changes.length + 1)))
      next.sizeBytes = sizeAfter(change, next.sizeBytes);
    next.pages.clear(next.sizeBytes, Math.max(alignDown(reach, PAGE_BYTES) + PAGE_BYTES - next.sizeBytes, 0));
    return next;
  }
}

/** The bytes [position, end) whose content a change touches; `reach` is as far as the file ever went. */
function changedRange(change: Change, reach: number): [number, number] {
  switch (change.type) {
    case 'write':
      return [change.position, change.position + change.data.length];
    case 'clear':
      return [
        change.position,
        Math.min(change.position + change.lengthBytes, Math.max(reach, change.position)),
      ];
    case 'allocate':
      return [0, 0];
    case 'truncate':
      return [change.sizeBytes, Math.max(reach, change.sizeBytes)];
  }
}

/** Does to the sector at `position`, held in `bytes`, what the change did to it. */
function replay(change: Change, position: number, bytes: Buffer): void {
  const [from, end] = changedRange(change, position + SECTOR_BYTES);
  const start = Math.max(from - position, 0);
  const stop = Math.min(end - position, SECTOR_BYTES);
  if (start >= stop) return;
  if (change.type === 'write')
    bytes.set(change.data.subarray(position + start - from, position + stop - from), start);
  else bytes.fill(0, start, stop);
}
