import type { SharedMemory } from '../../host/sharing.js';
import { assert, defined } from '../../base/assert.js';
import { addressAt, type Chain, MAX_CHAIN } from './chain.js';
import { broken } from './codec.js';
import { DESCRIPTOR_BYTES, DescriptorFlag, NO_NOTIFICATION } from './constants.js';
import type { GuestMemory } from './guest-memory.js';
import { InflightQueue } from './inflight.js';
import { Virtqueue } from './virtqueue.js';

const INDEX_VALUES = 0x10000;

/** The three parts of a split ring in the peer's memory. */
interface Ring {
  readonly descriptors: Uint32Array;
  /** flags, index, heads, used_event. */
  readonly available: Uint16Array;
  /** flags, index; at its end avail_event. */
  readonly used: Uint16Array;
  /** The same memory: from 1 on, pairs of head and length. */
  readonly usedPairs: Uint32Array;
  readonly hasEventIndex: boolean;
}

/** A split virtqueue (virtio 1.2, 2.7). A head is a descriptor's number. */
export class SplitQueue extends Virtqueue {
  /** The next chain to be taken, and the next place in the used ring; modulo 2^16. */
  #nextAvailable = 0;
  #usedIndex = 0;
  /** Where the used ring stood when the driver was told for the last time; undefined: never. */
  #toldIndex: number | undefined;
  #ring: Ring | undefined;
  #inflight: InflightQueue | undefined;

  get keepsInflight(): boolean {
    return this.#inflight !== undefined;
  }

  setInflight(memory: SharedMemory | undefined, queueSize: number): void {
    this.#inflight = memory && new InflightQueue(memory, this.index, queueSize);
  }

  override setBase(base: number): void {
    if (base >= INDEX_VALUES) throw broken(`queue ${this.index} at ${base}`);
    super.setBase(base);
  }

  get base(): number {
    return this.startsAt ?? this.#nextAvailable;
  }

  get isMapped(): boolean {
    return this.#ring !== undefined;
  }

  override unmap(): void {
    this.#ring = undefined;
    super.unmap();
  }

  map(memory: GuestMemory, hasEventIndex: boolean): void {
    const { places: addresses, size } = this;
    const eventBytes = hasEventIndex ? 2 : 0;
    const descriptors = memory.ring(addresses.descriptors, size * DESCRIPTOR_BYTES, DESCRIPTOR_BYTES);
    const available = memory.ring(addresses.available, 4 + 2 * size + eventBytes, 2);
    const used = memory.ring(addresses.used, 4 + 8 * size + eventBytes, 4);
    this.#ring = {
      descriptors: new Uint32Array(descriptors.buffer, descriptors.byteOffset, size * 4),
      available: new Uint16Array(available.buffer, available.byteOffset, available.length / 2),
      used: new Uint16Array(used.buffer, used.byteOffset, used.length / 2),
      usedPairs: new Uint32Array(used.buffer, used.byteOffset, 1 + 2 * size),
      hasEventIndex,
    };
  }

  #mapped(): Ring {
    assert(this.#ring, 'a ring is used while it is mapped');
    return this.#ring;
  }

  /** Where the used ring stands, as it is in memory: what a device that was here before us has done. */
  start(): number[] {
    this.#nextAvailable = this.base % INDEX_VALUES;
    this.startsAt = undefined;
    this.#usedIndex = Atomics.load(this.#mapped().used, 1);
    this.#toldIndex = undefined;
    if (!this.#inflight) return [];
    if (this.size > this.#inflight.queueSize)
      throw broken(`queue ${this.index} has no room for its requests`);
    const heads = this.#inflight.recover(this.#usedIndex);
    this.#nextAvailable = (this.#usedIndex + heads.length) % INDEX_VALUES;
    return heads;
  }

  hasMore(): boolean {
    return Atomics.load(this.#mapped().available, 1) !== this.#nextAvailable;
  }

  take(memory: GuestMemory, chain: Chain): number {
    const { available } = this.#mapped();
    // Loads that follow see what the driver had written before it.
    const index = Atomics.load(available, 1);
    const waiting = (index - this.#nextAvailable + INDEX_VALUES) % INDEX_VALUES;
    if (waiting === 0) return -1;
    if (waiting > this.size) throw broken(`queue ${this.index} has more chains than places (${waiting})`);
    const head = defined(available[2 + (this.#nextAvailable % this.size)], 'a place of the ring');
    this.#nextAvailable = (this.#nextAvailable + 1) % INDEX_VALUES;
    this.readAgain(head, memory, chain);
    this.#inflight?.begin(head);
    return head;
  }

  readAgain(head: number, memory: GuestMemory, chain: Chain): void {
    const { descriptors } = this.#mapped();
    if (head >= this.size) throw broken(`queue ${this.index}: no descriptor ${head}`);
    chain.clear();
    const flags = (descriptors[head * 4 + 3] ?? 0) & 0xffff;
    if ((flags & DescriptorFlag.indirect) === 0)
      return this.#follow(descriptors, this.size, head, memory, chain);
    if ((flags & DescriptorFlag.next) !== 0) throw broken('an indirect descriptor that goes on');
    const table = this.indirect;
    const count = table.read(memory, addressAt(descriptors, head), descriptors[head * 4 + 2] ?? 0);
    this.#follow(table.words, count, 0, memory, chain);
  }

  #follow(table: Uint32Array, count: number, first: number, memory: GuestMemory, chain: Chain): void {
    let at = first;
    for (let taken = 0; ; taken++) {
      if (taken === Math.min(count, MAX_CHAIN)) throw broken('a chain of descriptors is a loop, or too long');
      const word = table[at * 4 + 3] ?? 0;
      if ((word & DescriptorFlag.indirect) !== 0) throw broken('an indirect descriptor in a chain');
      chain.add(memory, addressAt(table, at), table[at * 4 + 2] ?? 0, word);
      if ((word & DescriptorFlag.next) === 0) return;
      at = word >>> 16;
      if (at >= count) throw broken(`no descriptor ${at}`);
    }
  }

  give(head: number, filledBytes: number): void {
    const { used, usedPairs } = this.#mapped();
    const place = 1 + 2 * (this.#usedIndex % this.size);
    this.#inflight?.willEnd(head);
    usedPairs[place] = head;
    usedPairs[place + 1] = filledBytes;
    this.#mark(place * 4, 8);
    this.#usedIndex = (this.#usedIndex + 1) % INDEX_VALUES;
    // Who sees it sees what was stored before it; and what is loaded next is loaded after it.
    Atomics.store(used, 1, this.#usedIndex);
    this.#mark(0, 4);
    this.#inflight?.ended(head, this.#usedIndex);
  }

  #mark(offset: number, lengthBytes: number): void {
    if (this.log && this.addresses) this.log.mark(this.addresses.log + offset, lengthBytes);
  }

  mustTell(whenEmpty: boolean): boolean {
    const { available, hasEventIndex } = this.#mapped();
    const before = this.#toldIndex;
    const now = this.#usedIndex;
    if (before === now) return false;
    this.#toldIndex = now;
    if (whenEmpty && !this.hasMore()) return true;
    if (!hasEventIndex) {
      return (Atomics.load(available, 0) & NO_NOTIFICATION) === 0;
    }
    if (before === undefined) return true;
    const event = Atomics.load(available, 2 + this.size);
    return (now - event - 1 + INDEX_VALUES) % INDEX_VALUES < (now - before + INDEX_VALUES) % INDEX_VALUES;
  }

  suppress(): void {
    const { used, hasEventIndex } = this.#mapped();
    // With event indexes it tells of one place only, which is passed by now.
    if (hasEventIndex) return;
    Atomics.store(used, 0, NO_NOTIFICATION);
    this.#mark(0, 2);
  }

  listen(): boolean {
    const { used, hasEventIndex } = this.#mapped();
    const place = hasEventIndex ? used.length - 1 : 0;
    // A full barrier: the driver sees it, or we see its chain.
    Atomics.store(used, place, hasEventIndex ? this.#nextAvailable : 0);
    this.#mark(place * 2, 2);
    return this.hasMore();
  }
}
