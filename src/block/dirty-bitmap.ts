import { assert } from '../base/assert.js';
import { alignDown, alignUp, divideRoundUp, isPowerOfTwo } from '../base/align.js';
import { Bitmap } from '../base/bitmap.js';
import { BlockError } from '../base/error.js';
import { MAX_BITMAP_GRANULES } from '../base/limits.js';

/** What somebody wants of a bitmap: an image that is not ours to write forbids two of them, an inconsistent one two others. */
export type BitmapUse = 'read' | 'change' | 'remove';

/** Why what a durable bitmap says cannot be relied on. */
export type TrackingLoss = 'written-by-another' | 'unclean-end';

/** A persistent bitmap that a crash leaves right, with bits too many at most. */
export interface Durability {
  /** Nobody else's: 16 hexadecimal digits. */
  readonly id: string;
  /** Since when it has been so, in milliseconds since 1970. */
  readonly sinceMs: number;
  /** It is so no longer. */
  readonly lost?: TrackingLoss;
  /** Another program had the image for writing, and says that the bitmap knows of what it changed. */
  readonly wasElsewhere?: boolean;
}

/** Which granules of a node were written. Named ones are the user's; jobs use unnamed ones. */
export class DirtyBitmap {
  readonly name: string | undefined;
  readonly granularityBytes: number;
  /** False: writes are not recorded. */
  enabled = true;
  /** Of a copy-before-write: it keeps its size, and queries tell that it does not record. */
  isInternal = false;
  /** Of a mirror that writes to both sides: queries tell that it does not record. */
  isSilent = false;
  /** In use by a job: the user may not change it. */
  busy = false;
  /** The image keeps it, beyond the end of the node: see BitmapStore. */
  persistent = false;
  /** Persistent, and whoever had the image last did not bring it to disk: what it missed nobody knows. */
  inconsistent = false;
  /** Undefined: a crash leaves it inconsistent. */
  durable: Durability | undefined;
  /** Persistent, in an image that may not be written now: what is there stays. */
  readOnly = false;
  /** Somebody else keeps it from now on (a migration): the image is left with what it has of it. */
  isGivenAway = false;
  /** Records in its place while a job works on what this one holds. */
  successor: DirtyBitmap | undefined;
  #bits: Bitmap;
  #sizeBytes: number;

  /** Errors: as checkSize. */
  constructor(sizeBytes: number, granularityBytes: number, name?: string) {
    DirtyBitmap.checkSize(sizeBytes, granularityBytes);
    assert(isPowerOfTwo(granularityBytes), () => `granularity ${granularityBytes}`);
    this.name = name;
    this.granularityBytes = granularityBytes;
    this.#sizeBytes = sizeBytes;
    this.#bits = new Bitmap(divideRoundUp(sizeBytes, granularityBytes));
  }

  /** Errors: kind limit, when so fine a bitmap of so large a node would not fit into memory. */
  static checkSize(sizeBytes: number, granularityBytes: number): void {
    if (divideRoundUp(sizeBytes, granularityBytes) <= MAX_BITMAP_GRANULES) return;
    const text = `A dirty bitmap with a granularity of ${granularityBytes} bytes is too large for ${sizeBytes} bytes`;
    throw new BlockError('limit', `${text}: choose a larger granularity`);
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Writes are recorded, in it or in its successor. */
  get isRecording(): boolean {
    return this.enabled || (this.successor?.enabled ?? false);
  }

  /** Errors, in QEMU's words: busy; permission where it cannot be written; invalid for an inconsistent one. */
  assertUsable(use: BitmapUse): void {
    const name = this.name ?? '';
    if (this.busy) {
      const text = `Bitmap '${name}' is currently in use by another operation and cannot be used`;
      throw new BlockError('busy', text);
    }
    if (this.readOnly && use !== 'read')
      throw new BlockError('permission', `Bitmap '${name}' is readonly and cannot be modified`);
    if (this.inconsistent && use !== 'remove')
      throw new BlockError('invalid', `Bitmap '${name}' is inconsistent and cannot be used`, {
        hint: 'Try block-dirty-bitmap-remove to delete this bitmap from disk',
      });
  }

  /** Of all dirty granules, the last one as long as the others: what queries tell. */
  get granulesBytes(): number {
    return this.#bits.count * this.granularityBytes;
  }

  /** Dirty bytes, the last granule cut at the node's end. */
  get dirtyBytes(): number {
    const whole = this.granulesBytes;
    const last = this.#bits.length - 1;
    const overhang = this.#bits.length * this.granularityBytes - this.#sizeBytes;
    return overhang > 0 && this.#bits.get(last) ? whole - overhang : whole;
  }

  get isClean(): boolean {
    return this.#bits.count === 0;
  }

  isDirty(offset: number): boolean {
    return this.#bits.get(Math.floor(offset / this.granularityBytes));
  }

  /** Marks every granule that the range touches. */
  set(offset: number, lengthBytes: number): void {
    if (lengthBytes === 0) return;
    const end = Math.min(divideRoundUp(offset + lengthBytes, this.granularityBytes), this.#bits.length);
    const first = Math.floor(offset / this.granularityBytes);
    if (first < end) this.#bits.set(first, end);
  }

  /** Clears every granule that the range touches: the caller took care of them whole. */
  reset(offset: number, lengthBytes: number): void {
    if (lengthBytes === 0) return;
    const end = Math.min(divideRoundUp(offset + lengthBytes, this.granularityBytes), this.#bits.length);
    const first = Math.floor(offset / this.granularityBytes);
    if (first < end) this.#bits.clear(first, end);
  }

  setAll(): void {
    this.#bits.set(0, this.#bits.length);
  }

  resetAll(): void {
    this.#bits.clear(0, this.#bits.length);
  }

  /** First dirty stretch in [offset, end), whole granules cut at the node's end; at most maxBytes long. */
  nextDirty(offset: number, end = this.#sizeBytes, maxBytes = Infinity): Stretch | undefined {
    const stop = Math.min(divideRoundUp(end, this.granularityBytes), this.#bits.length);
    const from = Math.floor(offset / this.granularityBytes);
    if (offset >= end || from >= stop) return undefined;
    const first = this.#bits.nextSet(from, stop);
    if (first < 0) return undefined;
    const most = Math.min(stop, first + Math.max(1, Math.floor(maxBytes / this.granularityBytes)));
    const clear = this.#bits.nextClear(first, most);
    return this.#stretch(first, clear < 0 ? most : clear);
  }

  /** First clean granule stretch start in [offset, end), or end. */
  nextClean(offset: number, end = this.#sizeBytes): number {
    const stop = Math.min(divideRoundUp(end, this.granularityBytes), this.#bits.length);
    const from = Math.floor(offset / this.granularityBytes);
    if (offset >= end || from >= stop) return end;
    const clear = this.#bits.nextClear(from, stop);
    return clear < 0 ? end : Math.min(clear * this.granularityBytes, end);
  }

  /** Follows a resize of the node, which checkSize allowed; new space is clean. */
  resize(sizeBytes: number): void {
    if (this.isInternal) return;
    const bits = new Bitmap(divideRoundUp(sizeBytes, this.granularityBytes));
    for (let i = this.#bits.nextSet(0); i >= 0 && i < bits.length;) {
      const end = this.#bits.nextClear(i);
      bits.set(i, Math.min(end < 0 ? this.#bits.length : end, bits.length));
      i = end < 0 ? -1 : this.#bits.nextSet(end);
    }
    this.#bits = bits;
    this.#sizeBytes = sizeBytes;
  }

  /** One bit a granule, in whole units of 8 bytes. */
  bytes(): Uint8Array {
    return this.#bits.bytes();
  }

  /** How long its granules are as bytes, 8 in each. */
  get serialisedBytes(): number {
    return Math.ceil(this.#bits.length / 8);
  }

  /** Fills `out` with granules as bytes, from `byteOffset` on (zeroes beyond the end). False: none of them is dirty. */
  serialise(byteOffset: number, out: Uint8Array): boolean {
    const first = Math.min(byteOffset * 8, this.#bits.length);
    const end = Math.min((byteOffset + out.length) * 8, this.#bits.length);
    this.#bits.readBytes(byteOffset, out);
    return this.#bits.nextSet(first, end) >= 0;
  }

  /** Makes granules dirty that are so in bytes of serialise(); `byteOffset` is a multiple of 4. */
  deserialise(byteOffset: number, bytes: Uint8Array): void {
    this.#bits.setBytes(byteOffset, bytes);
  }

  /** Makes granules dirty that as bytes are [byteOffset, byteOffset + lengthBytes). */
  deserialiseOnes(byteOffset: number, lengthBytes: number): void {
    const end = Math.min((byteOffset + lengthBytes) * 8, this.#bits.length);
    const first = Math.min(byteOffset * 8, end);
    this.#bits.set(first, end);
  }

  /** Adds another bitmap's dirty bytes. */
  merge(other: DirtyBitmap): void {
    for (let at = other.nextDirty(0); at; at = other.nextDirty(at.offset + at.lengthBytes)) {
      this.set(at.offset, at.lengthBytes);
      if (at.offset + at.lengthBytes >= other.sizeBytes) break;
    }
  }

  #stretch(first: number, end: number): Stretch {
    const offset = first * this.granularityBytes;
    return { offset, lengthBytes: Math.min(end * this.granularityBytes, this.#sizeBytes) - offset };
  }
}

export interface Stretch {
  offset: number;
  lengthBytes: number;
}

/** The smallest granule-aligned range around [offset, offset + lengthBytes). */
export function roundOut(offset: number, lengthBytes: number, unit: number): Stretch {
  const start = alignDown(offset, unit);
  return { offset: start, lengthBytes: alignUp(offset + lengthBytes, unit) - start };
}
