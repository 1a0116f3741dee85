import { assert } from '../../base/assert.js';
import { isZero } from '../../base/zero.js';
import { ENTRY_BYTES, SECTOR_BYTES, writeCopied, writeEntry } from '../qcow2/disk/layout.js';

/** A stretch of a table as it was when a write-back began. */
export interface Piece {
  /** Offset in the file. */
  offset: number;
  bytes: Buffer;
}

/**
 * A table that is kept in memory whole and written by sectors: the L1 table and the refcount table. A table that
 * grew is written in full to its new place, and only then named by the header.
 */
export class SectorTable {
  bytes: Buffer;
  hostOffset: number;
  /** Made when there are some: a chain has many tables that are only read. */
  #dirtySectors: Set<number> | undefined;
  /** Stretches whose place on the storage is sure to take a change: see MetadataSpace. */
  #withSpace: Set<number> | 'all' | undefined;
  #spaceBefore: Set<number> | 'all' | undefined;
  #isTrimmed = false;
  /** Where the table was while the header still names the old place. */
  moved: { hostOffset: number; lengthBytes: number } | undefined;

  constructor(bytes: Buffer, hostOffset: number) {
    assert(bytes.length % ENTRY_BYTES === 0, 'a table holds whole entries');
    this.bytes = bytes;
    this.hostOffset = hostOffset;
  }

  get entries(): number {
    return this.bytes.length / ENTRY_BYTES;
  }

  get isDirty(): boolean {
    return (this.#dirtySectors?.size ?? 0) > 0 || this.moved !== undefined;
  }

  hasSpace(stretch: number): boolean {
    return this.#withSpace === 'all' || this.#withSpace?.has(stretch) === true;
  }

  gotSpace(stretch: number): void {
    if (this.#withSpace === 'all') return;
    this.#withSpace ??= new Set();
    this.#withSpace.add(stretch);
  }

  set(index: number, offset: number, copied: boolean): void {
    assert(!this.#isTrimmed, 'a trimmed table is only read');
    writeEntry(this.bytes, index, offset, copied);
    this.#markDirty(Math.floor((index * ENTRY_BYTES) / SECTOR_BYTES));
  }

  setCopied(index: number, copied: boolean): void {
    writeCopied(this.bytes, index, copied);
    this.#markDirty(Math.floor((index * ENTRY_BYTES) / SECTOR_BYTES));
  }

  #markDirty(sector: number): void {
    this.#dirtySectors ??= new Set();
    this.#dirtySectors.add(sector);
  }

  /** Kept without the zeroes at its end, while it is only read. */
  trim(): void {
    this.#isTrimmed = true;
    let end = this.bytes.length;
    while (end >= SECTOR_BYTES && isZero(this.bytes.subarray(end - SECTOR_BYTES, end))) end -= SECTOR_BYTES;
    while (end > 0 && this.bytes.readBigUInt64BE(end - ENTRY_BYTES) === 0n) end -= ENTRY_BYTES;
    if (end < this.bytes.length) this.bytes = Buffer.from(this.bytes.subarray(0, end));
  }

  /** Takes trim() back. */
  untrim(lengthBytes: number): void {
    this.#isTrimmed = false;
    if (this.bytes.length < lengthBytes) this.bytes = Buffer.concat([this.bytes], lengthBytes);
  }

  /** Goes on, empty, at a new place; of the old one so many bytes are free once the header no longer names it. */
  replace(entries: number, hostOffset: number, formerBytes: number): void {
    assert(!this.isDirty, 'a table that is replaced has nothing to write');
    this.moved = { hostOffset: this.hostOffset, lengthBytes: formerBytes };
    this.bytes = Buffer.alloc(entries * ENTRY_BYTES);
    this.hostOffset = hostOffset;
    this.#withSpace = 'all';
  }

  /** Is what lies at another place, which has its space and which the header names by now. */
  adopt(bytes: Buffer, hostOffset: number): void {
    assert(!this.isDirty, 'a table that another one follows has nothing to write');
    this.bytes = bytes;
    this.hostOffset = hostOffset;
    this.#withSpace = 'all';
  }

  /** Goes on in a larger table at a new place, which has its space; the old place is free once the header no longer names it. */
  grow(entries: number, hostOffset: number): void {
    assert(entries >= this.entries && !this.moved, 'a table grows once a write-back');
    assert(!this.#isTrimmed, 'a trimmed table is only read');
    const bytes = Buffer.alloc(entries * ENTRY_BYTES);
    this.bytes.copy(bytes);
    this.moved = { hostOffset: this.hostOffset, lengthBytes: this.bytes.length };
    this.bytes = bytes;
    this.hostOffset = hostOffset;
    this.#spaceBefore = this.#withSpace;
    this.#withSpace = 'all';
  }

  /** Takes a grow() back that found no place. */
  shrinkBack(bytes: Buffer): void {
    this.bytes = bytes;
    this.moved = undefined;
    this.#withSpace = this.#spaceBefore;
  }

  /** Copies what must be written (or the whole table) and counts it as clean. */
  takeDirty(whole: boolean): Piece[] {
    const pieces: Piece[] = [];
    if (whole) {
      pieces.push({ offset: this.hostOffset, bytes: Buffer.from(this.bytes) });
    } else {
      for (const sector of this.#dirtySectors ?? []) {
        const at = sector * SECTOR_BYTES;
        const bytes = Buffer.from(this.bytes.subarray(at, Math.min(at + SECTOR_BYTES, this.bytes.length)));
        pieces.push({ offset: this.hostOffset + at, bytes });
      }
    }
    this.#dirtySectors?.clear();
    return pieces;
  }

  /** After a write-back that failed: these pieces must be written again. */
  restoreDirty(pieces: readonly Piece[]): void {
    for (const { offset, bytes } of pieces) {
      if (offset < this.hostOffset || offset >= this.hostOffset + this.bytes.length) continue;
      const first = Math.floor((offset - this.hostOffset) / SECTOR_BYTES);
      for (let i = 0; i * SECTOR_BYTES < bytes.length; i++) this.#markDirty(first + i);
    }
  }
}
