import type { HostRandom } from '../../src/host/host.js';

export const SECTOR_BYTES = 512;

/** Values that sectors may have: by sector, the stamps allowed (0: zeroes). */
export interface Allowed {
  readonly sectorCount: number;
  at(sector: number): readonly number[];
}

interface Sector {
  /** Every stamp it ever had or may have had, in order. */
  versions: number[];
  /** The last write that succeeded; what comes after it was in flight or failed, and may be there too. */
  certain: number;
  /** The oldest version that a power loss may leave. */
  durable: number;
}

/** One number for each write of each sector, so that a foreign sector is told by its content. */
export class Stamps {
  #last = 0;

  next(): number {
    return ++this.#last;
  }

  get newest(): number {
    return this.#last;
  }
}

/** What the guest knows of its disk: for each sector the values that it may hold now and after a power loss. */
export class GuestDisk {
  readonly #stamps: Stamps;
  #sectors: Sector[];
  /** Sectors of requests that are under way; requests of one guest do not overlap. */
  readonly #busy = new Set<number>();
  /** Sectors whose last write was of memory that changed: what came to be there shows when they are read. */
  readonly #undecided = new Set<number>();

  constructor(stamps: Stamps, content: readonly number[]) {
    this.#stamps = stamps;
    this.#sectors = content.map((stamp) => ({ versions: [stamp], certain: 0, durable: 0 }));
  }

  get sectorCount(): number {
    return this.#sectors.length;
  }

  get lengthBytes(): number {
    return this.#sectors.length * SECTOR_BYTES;
  }

  /** A random stretch that no other request touches; undefined when the first few tries find none. */
  claim(random: HostRandom, most: number): Stretch | undefined {
    for (let tries = 0; tries < 8; tries++) {
      const first = random.below(this.sectorCount);
      const count = Math.min(1 + random.below(most), this.sectorCount - first);
      const stretch = { first, count };
      if (!anyOf(stretch, (sector) => this.#busy.has(sector))) {
        forEach(stretch, (sector) => void this.#busy.add(sector));
        return stretch;
      }
    }
    return undefined;
  }

  release(stretch: Stretch): void {
    forEach(stretch, (sector) => void this.#busy.delete(sector));
  }

  /** A write with new stamps begins; answers its bytes. */
  beginWrite({ first, count }: Stretch): Buffer {
    const bytes = Buffer.alloc(count * SECTOR_BYTES);
    for (let i = 0; i < count; i++) {
      const stamp = this.#stamps.next();
      fillSector(bytes, i, stamp);
      this.#at(first + i).versions.push(stamp);
      this.#undecided.delete(first + i);
    }
    return bytes;
  }

  /** Zeroes are about to be written, or may come to be there. */
  beginZero(stretch: Stretch): void {
    forEach(stretch, (sector) => {
      this.#at(sector).versions.push(0);
      this.#undecided.delete(sector);
    });
  }

  /** The write that began last in these sectors has succeeded; with any of the last `versions` of each. */
  wrote(stretch: Stretch, durably: boolean, versions = 1): void {
    forEach(stretch, (index) => {
      const sector = this.#at(index);
      sector.certain = sector.versions.length - versions;
      if (durably) sector.durable = sector.certain;
      if (versions > 1) this.#undecided.add(index);
    });
  }

  /** What was read, rightly, of sectors that nobody writes meanwhile: it stays so. */
  saw({ first, count }: Stretch, bytes: Buffer): void {
    for (let i = 0; i < count; i++) {
      if (!this.#undecided.delete(first + i)) continue;
      const sector = this.#at(first + i);
      sector.versions.push(bytes.readUInt32LE(i * SECTOR_BYTES));
      sector.certain = sector.versions.length - 1;
    }
  }

  /** What a flush that begins now makes durable; for flushed(). */
  position(): number[] {
    return this.#sectors.map(({ certain }) => certain);
  }

  /** The newest version of every sector, in flight or not. */
  newest(): number[] {
    return this.#sectors.map(({ versions }) => versions.length - 1);
  }

  flushed(position: readonly number[]): void {
    position.forEach((index, sector) => {
      const at = this.#at(sector);
      at.durable = Math.max(at.durable, index);
    });
  }

  allowedNow(): Allowed {
    return this.#allowed((sector) => sector.versions.slice(sector.certain));
  }

  allowedAfterPowerLoss(): Allowed {
    return this.#allowed((sector) => sector.versions.slice(sector.durable));
  }

  /** What an image holds that was taken between two moments. */
  allowedBetween(low: readonly number[], high: readonly number[]): Allowed {
    return {
      sectorCount: this.sectorCount,
      at: (sector) => this.#at(sector).versions.slice(low[sector], (high[sector] ?? 0) + 1),
    };
  }

  #allowed(of: (sector: Sector) => readonly number[]): Allowed {
    return { sectorCount: this.sectorCount, at: (sector) => of(this.#at(sector)) };
  }

  #at(index: number): Sector {
    const sector = this.#sectors[index];
    if (!sector) throw new Error(`no sector ${index}`);
    return sector;
  }
}

export interface Stretch {
  first: number;
  count: number;
}

function forEach({ first, count }: Stretch, visit: (sector: number) => void): void {
  for (let i = first; i < first + count; i++) visit(i);
}

function anyOf({ first, count }: Stretch, test: (sector: number) => boolean): boolean {
  for (let i = first; i < first + count; i++) if (test(i)) return true;
  return false;
}

/** A sector holds its stamp over and over, so that a torn one shows. */
export function fillSector(bytes: Buffer, index: number, stamp: number): void {
  const start = index * SECTOR_BYTES;
  bytes.writeUInt32LE(stamp, start);
  bytes.copyWithin(start + 4, start, start + 4);
  for (let done = 8; done < SECTOR_BYTES; done *= 2) bytes.copyWithin(start + done, start, start + done);
}

/** The stamps of a content; undefined for a sector that is none. */
export function stampsOf(content: Buffer): Array<number | undefined> {
  const stamps: Array<number | undefined> = [];
  for (let at = 0; at < content.length; at += SECTOR_BYTES) {
    const sector = content.subarray(at, at + SECTOR_BYTES);
    const isWhole = sector.compare(sector, 4, sector.length, 0, sector.length - 4) === 0;
    stamps.push(isWhole ? sector.readUInt32LE(0) : undefined);
  }
  return stamps;
}

/**
 * Why a content cannot be right; the sector number of its first byte is `first`. A disk may have become longer: that
 * of a base which is longer than what was committed into it.
 */
export function problemOf(content: Buffer, allowed: Allowed, first = 0): string | undefined {
  for (const [index, stamp] of stampsOf(content).entries()) {
    if (first + index >= allowed.sectorCount) break;
    const may = allowed.at(first + index);
    if (stamp === undefined) return `sector ${first + index} is torn`;
    if (!may.includes(stamp)) return `sector ${first + index} holds ${stamp}, not one of ${may.join(' ')}`;
  }
  return undefined;
}
