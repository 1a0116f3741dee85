import assert from 'node:assert/strict';

/** A buffer of a chain: where the guest has it. */
export interface Piece {
  address: number;
  lengthBytes: number;
}

export interface RingPlaces {
  descriptors: number;
  available: number;
  used: number;
}

const NEXT = 1;
const WRITE = 2;
const INDIRECT = 4;

/** The driver's side of a split ring, in memory that begins at the guest's address `base`. */
export class RingDriver {
  readonly size: number;
  readonly places: RingPlaces;
  readonly memory: Buffer;
  readonly base: number;
  readonly hasEventIndex: boolean;
  #free: number[];
  #available = 0;
  #seen = 0;
  readonly #chains = new Map<number, number[]>();

  constructor(memory: Buffer, base: number, at: number, size: number, hasEventIndex = false) {
    this.memory = memory;
    this.base = base;
    this.size = size;
    this.hasEventIndex = hasEventIndex;
    const available = at + 16 * size;
    const used = Math.ceil((available + 6 + 2 * size) / 4096) * 4096;
    this.places = { descriptors: base + at, available: base + available, used: base + used };
    this.#free = Array.from({ length: size }, (_, i) => i);
  }

  /** The first guest address behind the rings, at a page. */
  get end(): number {
    return Math.ceil((this.places.used + 6 + 8 * this.size) / 4096) * 4096;
  }

  /** As SET_VRING_BASE has it. */
  readonly start = 0;

  #at(address: number): number {
    return address - this.base;
  }

  writeDescriptor(table: number, index: number, piece: Piece, flags: number, next: number): void {
    const at = this.#at(table) + 16 * index;
    this.memory.writeBigUInt64LE(BigInt(piece.address), at);
    this.memory.writeUInt32LE(piece.lengthBytes, at + 8);
    this.memory.writeUInt16LE(flags, at + 12);
    this.memory.writeUInt16LE(next, at + 14);
  }

  /** Makes a chain available; answers its head. `table`: an indirect table is made there. */
  add(out: readonly Piece[], into: readonly Piece[], table?: number): number {
    const pieces = [...out, ...into];
    const flagsOf = (i: number): number => (i >= out.length ? WRITE : 0) + (i + 1 < pieces.length ? NEXT : 0);
    const used = this.#free.splice(0, table === undefined ? pieces.length : 1);
    const head = used[0];
    assert.ok(head !== undefined, 'the ring is full');
    if (table === undefined)
      pieces.forEach((piece, i) =>
        this.writeDescriptor(this.places.descriptors, used[i] ?? 0, piece, flagsOf(i), used[i + 1] ?? 0),
      );
    else {
      pieces.forEach((piece, i) => this.writeDescriptor(table, i, piece, flagsOf(i), i + 1));
      const whole = { address: table, lengthBytes: 16 * pieces.length };
      this.writeDescriptor(this.places.descriptors, head, whole, INDIRECT, 0);
    }
    this.#chains.set(head, used);
    this.offer(head);
    return head;
  }

  /** Any number, as a head. */
  offer(head: number): void {
    const at = this.#at(this.places.available);
    this.memory.writeUInt16LE(head, at + 4 + 2 * (this.#available % this.size));
    this.setIndex(this.#available + 1);
  }

  setIndex(index: number): void {
    this.#available = index % 0x10000;
    this.memory.writeUInt16LE(this.#available, this.#at(this.places.available) + 2);
  }

  /** The device wants to be told of the chain that was made available last. */
  get mustKick(): boolean {
    const used = this.#at(this.places.used);
    if (!this.hasEventIndex) return (this.memory.readUInt16LE(used) & 1) === 0;
    return this.memory.readUInt16LE(used + 4 + 8 * this.size) === (this.#available + 0xffff) % 0x10000;
  }

  /** Of which place of the used ring the device is to tell. */
  wantEvent(place: number): void {
    this.memory.writeUInt16LE(place % 0x10000, this.#at(this.places.available) + 4 + 2 * this.size);
  }

  set noNotification(value: boolean) {
    this.memory.writeUInt16LE(value ? 1 : 0, this.#at(this.places.available));
  }

  /** Chains that were given back. */
  take(): Array<{ head: number; filledBytes: number }> {
    const found: Array<{ head: number; filledBytes: number }> = [];
    const used = this.#at(this.places.used);
    for (; this.#seen !== this.memory.readUInt16LE(used + 2); this.#seen = (this.#seen + 1) % 0x10000) {
      const at = used + 4 + 8 * (this.#seen % this.size);
      const head = this.memory.readUInt32LE(at);
      found.push({ head, filledBytes: this.memory.readUInt32LE(at + 4) });
      this.#free.push(...(this.#chains.get(head) ?? []));
      this.#chains.delete(head);
    }
    if (this.hasEventIndex) this.wantEvent(this.#seen);
    return found;
  }
}
