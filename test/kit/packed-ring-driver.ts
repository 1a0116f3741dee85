import assert from 'node:assert/strict';
import type { Piece, RingPlaces } from './ring-driver.js';

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;
const AVAILABLE = 0x80;
const USED = 0x8000;

/** The driver's side of a packed ring, in memory that begins at the guest's address `base`. A head is a buffer's identifier. */
export class PackedRingDriver {
  readonly size: number;
  readonly places: RingPlaces;
  readonly memory: Buffer;
  readonly base: number;
  readonly hasEventIndex: boolean;
  #next = 0;
  #wrap = 1;
  #seen = 0;
  #seenWrap = 1;
  /** Places of the last chain, with their wrap counters. */
  #offered: number[] = [];
  readonly #ids: number[];
  readonly #lengths = new Map<number, number>();

  constructor(memory: Buffer, base: number, at: number, size: number, hasEventIndex = false) {
    this.memory = memory;
    this.base = base;
    this.size = size;
    this.hasEventIndex = hasEventIndex;
    const events = at + 16 * size;
    this.places = { descriptors: base + at, available: base + events, used: base + events + 4 };
    // No identifier is a place's number.
    this.#ids = Array.from({ length: size }, (_, i) => size - 1 - i);
  }

  get end(): number {
    return Math.ceil((this.places.used + 4) / 4096) * 4096;
  }

  #at(address: number): number {
    return address - this.base;
  }

  writeDescriptor(table: number, index: number, piece: Piece, flags: number, id: number): void {
    const at = this.#at(table) + 16 * index;
    this.memory.writeBigUInt64LE(BigInt(piece.address), at);
    this.memory.writeUInt32LE(piece.lengthBytes, at + 8);
    this.memory.writeUInt16LE(id, at + 12);
    this.memory.writeUInt16LE(flags, at + 14);
  }

  /** Makes a chain available; answers its identifier. `table`: an indirect table is made there. */
  add(out: readonly Piece[], into: readonly Piece[], table?: number): number {
    const pieces = [...out, ...into];
    const id = this.#ids.shift();
    assert.ok(id !== undefined, 'the ring is full');
    const kindOf = (i: number): number => (i >= out.length ? WRITE : 0);
    if (table === undefined)
      return this.offer(
        id,
        pieces.map((piece, i) => ({ piece, flags: kindOf(i) })),
      );
    pieces.forEach((piece, i) => this.writeDescriptor(table, i, piece, kindOf(i), 0));
    const whole = { address: table, lengthBytes: 16 * pieces.length };
    return this.offer(id, [{ piece: whole, flags: INDIRECT }]);
  }

  /** Any identifier, and descriptors with any flags, which are completed. */
  offer(id: number, descriptors: ReadonlyArray<{ piece: Piece; flags: number }>): number {
    const first = this.#next;
    let firstFlags = 0;
    this.#offered = [];
    descriptors.forEach(({ piece, flags }, i) => {
      const next = i + 1 < descriptors.length ? NEXT : 0;
      const all = flags | next | (this.#wrap === 1 ? AVAILABLE : USED);
      // The first one makes all of them available.
      if (i === 0) firstFlags = all;
      const now = i === 0 ? this.flagsAt(this.#next) : all;
      this.writeDescriptor(this.places.descriptors, this.#next, piece, now, id);
      this.#offered.push(this.#next + this.#wrap * 0x8000);
      this.#next = (this.#next + 1) % this.size;
      if (this.#next === 0) this.#wrap = 1 - this.#wrap;
    });
    this.#lengths.set(id, descriptors.length);
    this.memory.writeUInt16LE(firstFlags, this.#at(this.places.descriptors) + 16 * first + 14);
    return id;
  }

  flagsAt(index: number): number {
    return this.memory.readUInt16LE(this.#at(this.places.descriptors) + 16 * index + 14);
  }

  /** The device wants to be told of a descriptor of the chain that was made available last. */
  get mustKick(): boolean {
    const at = this.#at(this.places.used);
    const flags = this.memory.readUInt16LE(at + 2) & 3;
    if (flags !== 2) return flags === 0;
    const wanted = this.memory.readUInt16LE(at);
    return this.#offered.includes(wanted);
  }

  /** Of which descriptor the device is to tell: so many after the next one that it gives back. */
  wantEvent(ahead: number): void {
    const place = this.#seen + ahead;
    const wrap = place >= this.size ? 1 - this.#seenWrap : this.#seenWrap;
    const at = this.#at(this.places.available);
    this.memory.writeUInt16LE((place % this.size) + wrap * 0x8000, at);
    this.memory.writeUInt16LE(2, at + 2);
  }

  set noNotification(value: boolean) {
    this.memory.writeUInt16LE(value ? 1 : 0, this.#at(this.places.available) + 2);
  }

  /** As SET_VRING_BASE has it: both wrap counters are 1. */
  readonly start = 0x8000_8000;

  /** Chains that were given back. */
  take(): Array<{ head: number; filledBytes: number }> {
    const found: Array<{ head: number; filledBytes: number }> = [];
    for (;;) {
      const flags = this.flagsAt(this.#seen);
      const isUsed =
        ((flags & AVAILABLE) !== 0) === (this.#seenWrap === 1) &&
        ((flags & USED) !== 0) === (this.#seenWrap === 1);
      if (!isUsed) break;
      const at = this.#at(this.places.descriptors) + 16 * this.#seen;
      const head = this.memory.readUInt16LE(at + 12);
      const length = this.#lengths.get(head);
      assert.ok(length !== undefined, `buffer ${head} was under way`);
      this.#lengths.delete(head);
      this.#ids.push(head);
      found.push({ head, filledBytes: this.memory.readUInt32LE(at + 8) });
      this.#seen += length;
      if (this.#seen >= this.size) {
        this.#seen -= this.size;
        this.#seenWrap = 1 - this.#seenWrap;
      }
    }
    if (this.hasEventIndex) this.wantEvent(0);
    return found;
  }
}
