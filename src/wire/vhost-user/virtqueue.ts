import { assert, defined } from '../../base/assert.js';
import { broken, type VringAddresses } from './codec.js';
import { DESCRIPTOR_BYTES, DescriptorFlag, MAX_QUEUE_SIZE, NO_NOTIFICATION, VRING_LOG } from './constants.js';
import type { DirtyLog } from './dirty-log.js';
import type { GuestMemory } from './guest-memory.js';
import type { InflightQueue } from './inflight.js';
import { Stretches } from './stretches.js';

/** Most descriptors of one chain, those of an indirect table included; QEMU's limit (VIRTQUEUE_MAX_SIZE). */
const MAX_CHAIN = 1024;
const INDEX_VALUES = 0x10000;

/** One request of the driver: what it gives, then what it wants filled. */
export class Chain {
  readonly out = new Stretches();
  readonly in = new Stretches();

  clear(): void {
    this.out.clear();
    this.in.clear();
  }
}

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

/**
 * The device's side of a split virtqueue (virtio 1.2, 2.7). Everything that the driver writes is read once and checked.
 * src/wire/vhost-user/README.md says how loads and stores are ordered. All errors are those of broken().
 */
export class Virtqueue {
  readonly index: number;
  size = 0;
  addresses: VringAddresses | undefined;
  /** The next chain to be taken, and the next place in the used ring; modulo 2^16. */
  nextAvailable = 0;
  #usedIndex = 0;
  /** Where the used ring stood when the driver was told for the last time; undefined: never. */
  #toldIndex: number | undefined;
  #ring: Ring | undefined;
  /** The used ring is marked in it. */
  log: DirtyLog | undefined;
  inflight: InflightQueue | undefined;
  /** A copy of an indirect table. */
  readonly #indirect = new Uint32Array(MAX_CHAIN * 4);
  readonly #indirectPieces = new Stretches();

  constructor(index: number) {
    this.index = index;
  }

  setSize(size: number): void {
    if (size === 0 || size > MAX_QUEUE_SIZE || (size & (size - 1)) !== 0) throw broken(`a queue of ${size}`);
    this.size = size;
    this.#ring = undefined;
  }

  setAddresses(addresses: VringAddresses): void {
    this.addresses = addresses;
    this.#ring = undefined;
  }

  get logsWrites(): boolean {
    return this.addresses !== undefined && (this.addresses.flags & VRING_LOG) !== 0;
  }

  get isMapped(): boolean {
    return this.#ring !== undefined;
  }

  /** Nothing of the memory is used any more, until map(). */
  unmap(): void {
    this.#ring = undefined;
    this.#indirectPieces.forget();
  }

  map(memory: GuestMemory, hasEventIndex: boolean): void {
    const { addresses, size } = this;
    if (!addresses || size === 0) throw broken(`queue ${this.index} starts without a ring`);
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
  start(): void {
    this.#usedIndex = Atomics.load(this.#mapped().used, 1);
    this.#toldIndex = undefined;
  }

  get usedIndex(): number {
    return this.#usedIndex;
  }

  /** The driver has made chains available that were not taken. */
  hasMore(): boolean {
    return Atomics.load(this.#mapped().available, 1) !== this.nextAvailable;
  }

  /** Takes the next chain; answers its head, or -1 where there is none. */
  take(memory: GuestMemory, chain: Chain): number {
    const { available } = this.#mapped();
    // Loads that follow see what the driver had written before it.
    const index = Atomics.load(available, 1);
    const waiting = (index - this.nextAvailable + INDEX_VALUES) % INDEX_VALUES;
    if (waiting === 0) return -1;
    if (waiting > this.size) throw broken(`queue ${this.index} has more chains than places (${waiting})`);
    const head = defined(available[2 + (this.nextAvailable % this.size)], 'a place of the ring');
    this.nextAvailable = (this.nextAvailable + 1) % INDEX_VALUES;
    this.read(head, memory, chain);
    this.inflight?.begin(head);
    return head;
  }

  /** Reads the chain of a head. */
  read(head: number, memory: GuestMemory, chain: Chain): void {
    const { descriptors } = this.#mapped();
    if (head >= this.size) throw broken(`queue ${this.index}: no descriptor ${head}`);
    chain.clear();
    const flags = (descriptors[head * 4 + 3] ?? 0) & 0xffff;
    if ((flags & DescriptorFlag.indirect) === 0)
      return this.#follow(descriptors, this.size, head, memory, chain);
    if ((flags & DescriptorFlag.next) !== 0) throw broken('an indirect descriptor that goes on');
    const count = this.#readIndirect(addressAt(descriptors, head), descriptors[head * 4 + 2] ?? 0, memory);
    this.#follow(this.#indirect, count, 0, memory, chain);
  }

  #readIndirect(address: number, lengthBytes: number, memory: GuestMemory): number {
    if (
      lengthBytes === 0 ||
      lengthBytes % DESCRIPTOR_BYTES !== 0 ||
      lengthBytes > MAX_CHAIN * DESCRIPTOR_BYTES
    )
      throw broken(`an indirect table of ${lengthBytes} bytes`);
    const pieces = this.#indirectPieces;
    pieces.clear();
    memory.addTo(pieces, address, lengthBytes);
    for (let i = 0; i < lengthBytes / 4; i++) this.#indirect[i] = pieces.readUint32(i * 4);
    return lengthBytes / DESCRIPTOR_BYTES;
  }

  #follow(table: Uint32Array, count: number, first: number, memory: GuestMemory, chain: Chain): void {
    let at = first;
    for (let taken = 0; ; taken++) {
      if (taken === Math.min(count, MAX_CHAIN)) throw broken('a chain of descriptors is a loop, or too long');
      const lengthBytes = table[at * 4 + 2] ?? 0;
      const word = table[at * 4 + 3] ?? 0;
      if ((word & DescriptorFlag.indirect) !== 0) throw broken('an indirect descriptor in a chain');
      if (lengthBytes === 0) throw broken('a descriptor of no bytes');
      const isIn = (word & DescriptorFlag.write) !== 0;
      if (!isIn && chain.in.count > 0) throw broken('descriptors are not in order');
      memory.addTo(isIn ? chain.in : chain.out, addressAt(table, at), lengthBytes);
      if ((word & DescriptorFlag.next) === 0) return;
      at = word >>> 16;
      if (at >= count) throw broken(`no descriptor ${at}`);
    }
  }

  /** Gives a chain back, of which so many bytes were filled. */
  give(head: number, filledBytes: number): void {
    const { used, usedPairs } = this.#mapped();
    const place = 1 + 2 * (this.#usedIndex % this.size);
    this.inflight?.willEnd(head);
    usedPairs[place] = head;
    usedPairs[place + 1] = filledBytes;
    this.#mark(place * 4, 8);
    this.#usedIndex = (this.#usedIndex + 1) % INDEX_VALUES;
    // Who sees it sees what was stored before it; and what is loaded next is loaded after it.
    Atomics.store(used, 1, this.#usedIndex);
    this.#mark(0, 4);
    this.inflight?.ended(head, this.#usedIndex);
  }

  #mark(offset: number, lengthBytes: number): void {
    if (this.log && this.addresses) this.log.mark(this.addresses.log + offset, lengthBytes);
  }

  /**
   * Whether the driver is to be told of what was given since the last time; then it counts as told. `whenEmpty`: in any
   * case where nothing is left (VIRTIO_F_NOTIFY_ON_EMPTY).
   */
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

  /** The driver need not tell of new chains: they are looked for. */
  suppress(): void {
    const { used, hasEventIndex } = this.#mapped();
    // With event indexes it tells of one place only, which is passed by now.
    if (hasEventIndex) return;
    Atomics.store(used, 0, NO_NOTIFICATION);
    this.#mark(0, 2);
  }

  /** The driver tells of the next chain. True: there is one already, of which it may not have told. */
  listen(): boolean {
    const { used, hasEventIndex } = this.#mapped();
    const place = hasEventIndex ? used.length - 1 : 0;
    // A full barrier: the driver sees it, or we see its chain.
    Atomics.store(used, place, hasEventIndex ? this.nextAvailable : 0);
    this.#mark(place * 2, 2);
    return this.hasMore();
  }
}

/** What is no address, 2^53 or more, lies in no region either. */
function addressAt(table: Uint32Array, index: number): number {
  return (table[index * 4] ?? 0) + (table[index * 4 + 1] ?? 0) * 2 ** 32;
}
