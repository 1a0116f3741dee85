import { assert } from '../../base/assert.js';
import type { SharedMemory } from '../../host/sharing.js';
import { addressAt, type Chain, MAX_CHAIN } from './chain.js';
import { broken } from './codec.js';
import { DESCRIPTOR_BYTES, DescriptorFlag, RingEvent } from './constants.js';
import type { GuestMemory } from './guest-memory.js';
import { PackedInflight } from './packed-inflight.js';
import { RingPosition } from './ring-position.js';
import { Virtqueue } from './virtqueue.js';

/** A structure that says when its writer wants to be told: position and wrap counter, then how. */
const EVENT_BYTES = 4;
const POSITION_MASK = 0x7fff;
const EVENT_FLAGS_SHIFT = 16;

interface Ring {
  /** Four words a descriptor. */
  readonly words: Uint32Array;
  /** The same memory, eight a descriptor: its identifier is the seventh, its flags are the eighth. */
  readonly halves: Uint16Array;
  readonly driverEvent: Uint32Array;
  readonly deviceEvent: Uint32Array;
  readonly hasEventIndex: boolean;
  /** Where the guest has the descriptors and our event. */
  readonly guestRing: number;
  readonly guestEvent: number;
}

/** A packed virtqueue (virtio 1.2, 2.8). A head is a buffer's identifier. */
export class PackedQueue extends Virtqueue {
  #available = new RingPosition(1);
  #used = new RingPosition(1);
  /** Where it stood when the driver was told for the last time; undefined: never. */
  #told: number | undefined;
  /** Descriptors given back since: there may be more of them than a position can tell. */
  #untold = 0;
  #ring: Ring | undefined;
  #inflight: PackedInflight | undefined;
  /** By identifier: how many descriptors its chain has in the ring, while it is under way, and its inflight entry. */
  #lengths = new Uint16Array(0);
  #entries = new Uint16Array(0);
  /** Descriptors of all chains under way. */
  #busy = 0;

  get keepsInflight(): boolean {
    return this.#inflight !== undefined;
  }

  setInflight(memory: SharedMemory | undefined, queueSize: number): void {
    this.#inflight = memory && new PackedInflight(memory, this.index, queueSize);
  }

  override setSize(size: number): void {
    super.setSize(size);
    this.#available = new RingPosition(size);
    this.#used = new RingPosition(size);
  }

  override takeOver(other: Virtqueue): void {
    super.takeOver(other);
    if (this.size > 0) this.setSize(this.size);
  }

  /** Of both positions 15 bits and the wrap counter, that of what is available in the lower half. */
  get base(): number {
    return this.startsAt ?? this.#available.encoded + this.#used.encoded * 0x10000;
  }

  get isMapped(): boolean {
    return this.#ring !== undefined;
  }

  override unmap(): void {
    this.#ring = undefined;
    super.unmap();
  }

  map(memory: GuestMemory, hasEventIndex: boolean): void {
    const { places, size } = this;
    const words = memory.ring(places.descriptors, size * DESCRIPTOR_BYTES, DESCRIPTOR_BYTES);
    const event = (address: number): Uint32Array => {
      const bytes = memory.ring(address, EVENT_BYTES, EVENT_BYTES);
      return new Uint32Array(bytes.buffer, bytes.byteOffset, 1);
    };
    this.#ring = {
      words: new Uint32Array(words.buffer, words.byteOffset, size * 4),
      halves: new Uint16Array(words.buffer, words.byteOffset, size * 8),
      driverEvent: event(places.available),
      deviceEvent: event(places.used),
      hasEventIndex,
      guestRing: memory.guestAddress(places.descriptors),
      guestEvent: memory.guestAddress(places.used),
    };
  }

  #mapped(): Ring {
    assert(this.#ring, 'a ring is used while it is mapped');
    return this.#ring;
  }

  start(): number[] {
    const { base } = this;
    this.startsAt = undefined;
    this.#told = undefined;
    this.#untold = 0;
    this.#lengths = new Uint16Array(this.size);
    this.#entries = new Uint16Array(this.size);
    this.#busy = 0;
    const inflight = this.#inflight;
    if (inflight && this.size !== inflight.queueSize)
      throw broken(`queue ${this.index} has other room for its requests`);
    if (inflight && !inflight.isNew) return this.#recover(inflight);
    const fits = this.#available.decode(base % 0x10000) && this.#used.decode(Math.floor(base / 0x10000));
    if (!fits) throw broken(`queue ${this.index} at ${base}`);
    inflight?.initialise(this.#used);
    return [];
  }

  /** What the memory says counts, whatever the front-end says. */
  #recover(inflight: PackedInflight): number[] {
    const { halves } = this.#mapped();
    const chains = inflight.recover(this.#used, (index) => halves[index * 8 + 7] ?? 0);
    this.#available.value = this.#used.value;
    for (const { id, entry, length } of chains) {
      this.#begin(id, entry, length);
      this.#available.advance(length);
    }
    return chains.map(({ id }) => id);
  }

  #begin(id: number, entry: number, length: number): void {
    if (id >= this.size) throw broken(`queue ${this.index}: no buffer ${id}`);
    if (this.#lengths[id] !== 0) throw broken(`queue ${this.index}: buffer ${id} is under way`);
    this.#busy += length;
    this.#lengths[id] = length;
    this.#entries[id] = entry;
  }

  hasMore(): boolean {
    const flags = Atomics.load(this.#mapped().halves, this.#available.index * 8 + 7);
    return this.#isAvailable(flags, this.#available.wrap);
  }

  #isAvailable(flags: number, wrap: number): boolean {
    const isAvailable = (flags & DescriptorFlag.available) !== 0;
    const isUsed = (flags & DescriptorFlag.used) !== 0;
    return isAvailable === (wrap === 1) && isUsed !== (wrap === 1);
  }

  take(memory: GuestMemory, chain: Chain): number {
    const { words } = this.#mapped();
    // Loads that follow see what the driver had written before it made the first descriptor available.
    if (!this.hasMore()) return -1;
    const inflight = this.#inflight;
    const entry = inflight?.free ?? 0;
    chain.clear();
    let length = 0;
    for (;;) {
      if (length === MAX_CHAIN) throw broken('a chain of descriptors is too long');
      if (this.#busy + length >= this.size) throw broken(`queue ${this.index} has more chains than places`);
      const at = this.#available.index;
      const lengthBytes = words[at * 4 + 2] ?? 0;
      const word = words[at * 4 + 3] ?? 0;
      const flags = word >>> 16;
      const goesOn = (flags & DescriptorFlag.next) !== 0;
      inflight?.note(length === 0, !goesOn, words, at);
      this.#read(memory, chain, addressAt(words, at), lengthBytes, flags, length === 0);
      length++;
      this.#available.advance(1);
      if (goesOn) continue;
      const id = word & 0xffff;
      this.#begin(id, entry, length);
      return id;
    }
  }

  #read(
    memory: GuestMemory,
    chain: Chain,
    address: number,
    lengthBytes: number,
    flags: number,
    isFirst: boolean,
  ): void {
    if ((flags & DescriptorFlag.indirect) === 0) return chain.add(memory, address, lengthBytes, flags);
    if (!isFirst) throw broken('an indirect descriptor in a chain');
    if ((flags & DescriptorFlag.next) !== 0) throw broken('an indirect descriptor that goes on');
    const table = this.indirect;
    const count = table.read(memory, address, lengthBytes);
    // All of it is the chain, whatever its flags say of a next one.
    for (let i = 0; i < count; i++) {
      const word = table.words[i * 4 + 3] ?? 0;
      const tableFlags = word >>> 16;
      if ((tableFlags & DescriptorFlag.indirect) !== 0) throw broken('an indirect descriptor in a table');
      chain.add(memory, addressAt(table.words, i), table.words[i * 4 + 2] ?? 0, tableFlags);
    }
  }

  /** Out of the inflight memory: in the ring there may be something else by now. */
  readAgain(head: number, memory: GuestMemory, chain: Chain): void {
    const inflight = this.#inflight;
    assert(inflight, 'what is repeated was kept');
    chain.clear();
    let isFirst = true;
    for (const { address, lengthBytes, flags } of inflight.chain(this.#entries[head] ?? 0)) {
      this.#read(memory, chain, address, lengthBytes, flags, isFirst);
      isFirst = false;
    }
  }

  give(head: number, filledBytes: number): void {
    const { words, halves } = this.#mapped();
    const length = this.#lengths[head] ?? 0;
    assert(length > 0, 'a buffer that is under way');
    this.#lengths[head] = 0;
    this.#busy -= length;
    const { index, wrap } = this.#used;
    this.#used.advance(length);
    this.#untold += length;
    const entry = this.#entries[head] ?? 0;
    this.#inflight?.willEnd(entry, this.#used);
    words[index * 4 + 2] = filledBytes;
    halves[index * 8 + 6] = head;
    const both = DescriptorFlag.available + DescriptorFlag.used;
    const flags = (wrap === 1 ? both : 0) + (filledBytes > 0 ? DescriptorFlag.write : 0);
    // Who sees it sees what was stored before it; and what is loaded next is loaded after it.
    Atomics.store(halves, index * 8 + 7, flags);
    this.log?.mark(this.#mapped().guestRing + index * DESCRIPTOR_BYTES, DESCRIPTOR_BYTES);
    this.#inflight?.ended(entry, this.#used);
  }

  mustTell(whenEmpty: boolean): boolean {
    const { driverEvent, hasEventIndex } = this.#mapped();
    const before = this.#told;
    const given = this.#untold;
    // Of a device before us it is not known what it told.
    if (given === 0 && before !== undefined) return false;
    this.#told = this.#used.value;
    this.#untold = 0;
    if (whenEmpty && !this.hasMore()) return true;
    const event = Atomics.load(driverEvent, 0);
    const flags = (event >>> EVENT_FLAGS_SHIFT) & 3;
    if (flags === RingEvent.disable) return false;
    if (flags !== RingEvent.descriptor || !hasEventIndex || before === undefined) return true;
    const wanted = this.#used.valueOf(event & POSITION_MASK, (event >>> 15) & 1);
    return this.#used.distance(before, wanted) < given;
  }

  suppress(): void {
    this.#ask(RingEvent.disable * 2 ** EVENT_FLAGS_SHIFT);
  }

  listen(): boolean {
    const flags = this.#mapped().hasEventIndex ? RingEvent.descriptor : RingEvent.enable;
    // A full barrier: the driver sees it, or we see its chain.
    this.#ask(this.#available.encoded + flags * 2 ** EVENT_FLAGS_SHIFT);
    return this.hasMore();
  }

  #ask(event: number): void {
    const { deviceEvent, guestEvent } = this.#mapped();
    Atomics.store(deviceEvent, 0, event);
    this.log?.mark(guestEvent, EVENT_BYTES);
  }
}
