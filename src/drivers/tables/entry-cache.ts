import { assert } from '../../base/assert.js';
import { AsyncMutex } from '../../base/async.js';
import { alignDown } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { KiB } from '../../base/limits.js';
import type { ChildIo } from '../../block/driver.js';

const SECTOR_BYTES = 512;
const PAGE_BYTES = 16 * KiB;
/** Of an entry that begins at a page's end, which a format without aligned tables may have: it is only read. */
const REST_BYTES = 7;
/** 8 MiB of tables in memory. */
const MAX_PAGES = 512;

/** What has to be durable before what: an entry must not come before what it points at. */
export const Phase = { first: 0, last: 1 } as const;
type PhaseNumber = (typeof Phase)[keyof typeof Phase];

interface Page {
  readonly start: number;
  readonly view: DataView;
  readonly bytes: Buffer;
  /** Sectors that differ from the disk, by phase. */
  readonly dirty: [Set<number>, Set<number>];
  /** Write-backs under way. */
  writing: number;
  wasUsed: boolean;
}

/** A stretch of the file that is to be written. */
export interface Change {
  readonly offset: number;
  readonly bytes: Buffer;
}

/** The same, as it was when a write-back began. */
interface Piece extends Change {
  readonly page?: Page;
  /** Its sectors in the page. */
  readonly first: number;
  readonly end: number;
}

export interface EntryCacheOptions {
  maxPages?: number;
  /** What is written as a whole. */
  sectorBytes?: number;
  /** Brings changes of the last phase to disk, durably: through a log. */
  writeLast?: (changes: readonly Change[]) => Promise<void>;
}

/** What an image says is where its file has nothing. */
export function outsideFile(what: string, offset: number): BlockError {
  return new BlockError('corrupt', `${what} lies outside the image's file`, { errno: 'EIO', offset });
}

/** Writes and flushes. */
export async function writeDurably(file: ChildIo, changes: readonly Change[]): Promise<void> {
  if (changes.length === 0) return;
  for (const { offset, bytes } of changes)
    if (!file.tryWrite(offset, bytes, 0)) await file.write(offset, bytes, 0);
  await file.flush();
}

/**
 * Tables of a file as numbers at offsets, in pages that come and go. A change reaches the disk with writeBack: what
 * guests wrote before it first, then sectors of the first phase, then those of the last, a flush after each.
 */
export class EntryCache {
  /** Called before a write-back takes what is dirty. */
  beforeWriteBack: () => void = () => undefined;
  readonly file: ChildIo;
  readonly #pages = new Map<number, Page>();
  readonly #loading = new Map<number, Promise<void>>();
  readonly #dirty = new Set<Page>();
  readonly #whole: [Piece[], Piece[]] = [[], []];
  readonly #lock = new AsyncMutex();
  readonly #maxPages: number;
  readonly #sectorBytes: number;
  readonly #writeLast: (changes: readonly Change[]) => Promise<void>;

  constructor(file: ChildIo, options: EntryCacheOptions = {}) {
    this.file = file;
    this.#maxPages = options.maxPages ?? MAX_PAGES;
    this.#sectorBytes = options.sectorBytes ?? SECTOR_BYTES;
    this.#writeLast = options.writeLast ?? ((changes) => writeDurably(file, changes));
  }

  get isDirty(): boolean {
    return this.#dirty.size > 0 || this.#whole.some((pieces) => pieces.length > 0);
  }

  /** Too much is dirty: write back before more is changed. */
  get isCrowded(): boolean {
    return this.#dirty.size > this.#maxPages / 2;
  }

  isLoaded(offset: number): boolean {
    return this.#pages.has(alignDown(offset, PAGE_BYTES));
  }

  /** It may be changed at once: it is in memory and in the file, and not too much is dirty. */
  mayChange(offset: number): boolean {
    return !this.isCrowded && this.isLoaded(offset) && offset < this.file.lengthBytes;
  }

  /** Makes ready for a change. Errors: corrupt where the file has no such place. */
  async prepare(offset: number): Promise<void> {
    if (offset >= this.file.lengthBytes) throw outsideFile('A table', offset);
    if (this.isCrowded) await this.writeBack();
    await this.load(offset);
  }

  /** Undefined where it is not in memory; never kept across a wait. */
  #tryPage(offset: number): Page | undefined {
    const page = this.#pages.get(offset - (offset % PAGE_BYTES));
    if (page) page.wasUsed = true;
    return page;
  }

  /** -1: not in memory. */
  tryUint32(offset: number, littleEndian: boolean): number {
    const page = this.#tryPage(offset);
    return page ? page.view.getUint32(offset - page.start, littleEndian) : -1;
  }

  /** -1: not in memory. Infinity: no number of ours. */
  tryUint64(offset: number, littleEndian = true): number {
    const page = this.#tryPage(offset);
    if (!page) return -1;
    const at = offset - page.start;
    const [low, high] = littleEndian ? [at, at + 4] : [at + 4, at];
    const value = page.view.getUint32(low, littleEndian) + page.view.getUint32(high, littleEndian) * 2 ** 32;
    return Number.isSafeInteger(value) ? value : Infinity;
  }

  async load(offset: number): Promise<void> {
    const start = alignDown(offset, PAGE_BYTES);
    if (this.#pages.has(start)) return;
    const running = this.#loading.get(start) ?? this.#read(start);
    this.#loading.set(start, running);
    try {
      await running;
    } finally {
      this.#loading.delete(start);
    }
  }

  async #read(start: number): Promise<void> {
    const bytes = Buffer.alloc(PAGE_BYTES + REST_BYTES);
    // Beyond the end are zeroes.
    const inside = Math.min(bytes.length, this.file.lengthBytes - start);
    if (inside <= 0) this.file.tellCutOff();
    else {
      const part = bytes.subarray(0, inside);
      if (!this.file.tryRead(start, part)) await this.file.read(start, part);
    }
    this.#makeRoom();
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#pages.set(start, { start, bytes, view, dirty: [new Set(), new Set()], writing: 0, wasUsed: true });
  }

  /** Each page is passed over once after its last use. */
  #makeRoom(): void {
    for (const page of this.#pages.values()) {
      if (this.#pages.size < this.#maxPages) return;
      if (this.#dirty.has(page) || page.writing > 0) continue;
      this.#pages.delete(page.start);
      if (page.wasUsed) this.#pages.set(page.start, page);
      page.wasUsed = false;
    }
  }

  /** The page is in memory. */
  setUint32(offset: number, value: number, littleEndian: boolean, phase: PhaseNumber): void {
    const page = this.#change(offset, phase);
    page.view.setUint32(offset - page.start, value, littleEndian);
  }

  setUint64(offset: number, value: number, phase: PhaseNumber): void {
    const page = this.#change(offset, phase);
    page.view.setUint32(offset - page.start, value % 2 ** 32, true);
    page.view.setUint32(offset - page.start + 4, Math.floor(value / 2 ** 32), true);
  }

  #change(offset: number, phase: PhaseNumber): Page {
    const page = this.#tryPage(offset);
    assert(page, () => `entry at ${offset} is not in memory`);
    assert(offset % 4 === 0, 'an entry that changes lies in one sector');
    page.dirty[phase].add(Math.floor((offset - page.start) / this.#sectorBytes));
    this.#dirty.add(page);
    return page;
  }

  /** Bytes that are no entries, to be written with the next write-back. */
  queue(offset: number, bytes: Buffer, phase: PhaseNumber): void {
    this.#whole[phase].push({ offset, bytes, first: 0, end: 0 });
  }

  /** Everything written before is durable, and so are all changes so far. */
  writeBack(): Promise<void> {
    return this.#lock.run(async () => {
      this.beforeWriteBack();
      const phases = [this.#take(Phase.first), this.#take(Phase.last)];
      let phase: PhaseNumber = Phase.first;
      try {
        await this.file.flush();
        await writeDurably(this.file, phases[Phase.first] ?? []);
        phase = Phase.last;
        const last = phases[Phase.last] ?? [];
        if (last.length > 0) await this.#writeLast(last);
      } catch (error) {
        if (phase === Phase.first) this.#giveBack(phases[Phase.first] ?? [], Phase.first);
        this.#giveBack(phases[Phase.last] ?? [], Phase.last);
        throw error;
      } finally {
        for (const { page } of phases.flat()) if (page) page.writing--;
      }
    });
  }

  /** Copies what is dirty, and counts it as clean. */
  #take(phase: PhaseNumber): Piece[] {
    const pieces = this.#whole[phase].splice(0);
    const sector = this.#sectorBytes;
    for (const page of this.#dirty) {
      const dirty = page.dirty[phase];
      for (let first = 0; first < PAGE_BYTES / sector && dirty.size > 0; first++) {
        let end = first;
        while (dirty.delete(end)) end++;
        if (end === first) continue;
        const bytes = Buffer.from(page.bytes.subarray(first * sector, end * sector));
        pieces.push({ offset: page.start + first * sector, bytes, page, first, end });
        page.writing++;
        first = end;
      }
      if (page.dirty.every((sectors) => sectors.size === 0)) this.#dirty.delete(page);
    }
    return pieces;
  }

  /** What was queued meanwhile comes after it. */
  #giveBack(pieces: readonly Piece[], phase: PhaseNumber): void {
    this.#whole[phase].unshift(...pieces.filter(({ page }) => !page));
    for (const { page, first, end } of pieces) {
      if (!page) continue;
      for (let sector = first; sector < end; sector++) page.dirty[phase].add(sector);
      this.#dirty.add(page);
    }
  }
}
