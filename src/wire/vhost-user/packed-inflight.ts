import type { SharedMemory } from '../../host/sharing.js';
import { alignUp } from '../../base/align.js';
import { addressAt } from './chain.js';
import { broken } from './codec.js';
import { DescriptorFlag } from './constants.js';
import { asBuffer } from './guest-memory.js';
import type { RingPosition } from './ring-position.js';

/**
 * Which requests of a packed ring are in flight, in memory that outlives us ("Inflight I/O tracking" of the protocol): their
 * descriptors are kept, since the ring has room for what ended later. Numbers with "old" are those of the last moment at which
 * the memory agreed with the ring.
 */
const HEADER_BYTES = 32;
const ENTRY_BYTES = 32;
const QUEUE_UNIT = 64;
/** Of a queue's header. */
const Header = {
  version: 8,
  size: 10,
  freeHead: 12,
  oldFreeHead: 14,
  usedIndex: 16,
  oldUsedIndex: 18,
  usedWrap: 20,
  oldUsedWrap: 21,
} as const;
/** Of an entry; the first four, but `next`, are those of a chain's first one. */
const Entry = {
  inFlight: 0,
  next: 2,
  last: 4,
  length: 6,
  counter: 8,
  id: 16,
  flags: 18,
  lengthBytes: 20,
  address: 24,
};
const VERSION = 1;

export function packedInflightBytes(queueSize: number): number {
  return alignUp(HEADER_BYTES + ENTRY_BYTES * queueSize, QUEUE_UNIT);
}

/** A chain that had been begun and not ended. */
export interface KeptChain {
  readonly id: number;
  readonly entry: number;
  /** Descriptors in the ring. */
  readonly length: number;
}

/** The peer may write it, too: nothing of it is trusted. */
export class PackedInflight {
  readonly #bytes: Buffer;
  readonly queueSize: number;
  #counter = 0n;

  constructor(memory: SharedMemory, index: number, queueSize: number) {
    const lengthBytes = packedInflightBytes(queueSize);
    this.#bytes = asBuffer(memory.view(index * lengthBytes, lengthBytes));
    this.queueSize = queueSize;
  }

  /** The entry that the next chain begins with. */
  get free(): number {
    return this.#index(Header.freeHead);
  }

  /** A field that names an entry. */
  #index(at: number): number {
    const index = this.#bytes.readUInt16LE(at);
    if (index >= this.queueSize) throw broken(`no entry ${index} of requests`);
    return index;
  }

  #set(at: number, value: number): void {
    this.#bytes.writeUInt16LE(value, at);
  }

  /** Nothing was ever kept in it. */
  get isNew(): boolean {
    return this.#bytes.readUInt16LE(Header.version) !== VERSION;
  }

  /** Of a ring up to whose position `used` all has ended. */
  initialise(used: RingPosition): void {
    const bytes = this.#bytes;
    this.#set(Header.freeHead, 0);
    this.#set(Header.oldFreeHead, 0);
    this.#set(Header.usedIndex, used.index);
    this.#set(Header.oldUsedIndex, used.index);
    bytes[Header.usedWrap] = bytes[Header.oldUsedWrap] = used.wrap;
    for (let i = 0; i < this.queueSize; i++) {
      bytes[at(i) + Entry.inFlight] = 0;
      this.#set(at(i) + Entry.next, (i + 1) % this.queueSize);
    }
    this.#set(Header.size, this.queueSize);
    this.#set(Header.version, VERSION);
  }

  /**
   * Takes over: `used` becomes the position up to which all has ended. Answers what had been begun and not ended, oldest
   * first. `flagsAt`: of the ring's descriptors, as they are.
   */
  recover(used: RingPosition, flagsAt: (index: number) => number): KeptChain[] {
    if (!this.#agrees() && this.#wasGiven(flagsAt)) this.#commit();
    else this.#rollBack();
    const wrap = this.#bytes[Header.usedWrap] === 0 ? 0 : 0x8000;
    if (!used.decode(this.#index(Header.usedIndex) + wrap)) throw broken('no such place of the ring');
    return this.#marked();
  }

  #agrees(): boolean {
    const bytes = this.#bytes;
    return (
      bytes.readUInt16LE(Header.usedIndex) === bytes.readUInt16LE(Header.oldUsedIndex) &&
      bytes[Header.usedWrap] === bytes[Header.oldUsedWrap]
    );
  }

  /** The ring's descriptor at the old place is not as the driver made it available any more. */
  #wasGiven(flagsAt: (index: number) => number): boolean {
    const mask = DescriptorFlag.available + DescriptorFlag.used;
    const available = this.#bytes[Header.oldUsedWrap] === 0 ? DescriptorFlag.used : DescriptorFlag.available;
    return (flagsAt(this.#index(Header.oldUsedIndex)) & mask) !== available;
  }

  /** What was given last is in front of what was free before, and may still be marked. */
  #commit(): void {
    const bytes = this.#bytes;
    const old = this.#index(Header.oldFreeHead);
    let entry = this.#index(Header.freeHead);
    for (let left = this.queueSize; left > 0 && (entry !== old || left === this.queueSize); left--) {
      bytes[at(entry) + Entry.inFlight] = 0;
      entry = this.#index(at(entry) + Entry.next);
    }
    this.#set(Header.oldFreeHead, this.#index(Header.freeHead));
    this.#set(Header.oldUsedIndex, this.#index(Header.usedIndex));
    bytes[Header.oldUsedWrap] = bytes[Header.usedWrap] === 0 ? 0 : 1;
  }

  /** What was being taken or given was not. */
  #rollBack(): void {
    const bytes = this.#bytes;
    const free = this.#index(Header.oldFreeHead);
    this.#set(Header.freeHead, free);
    this.#set(Header.usedIndex, this.#index(Header.oldUsedIndex));
    bytes[Header.usedWrap] = bytes[Header.oldUsedWrap] === 0 ? 0 : 1;
    // Where nothing is free the number names none that is; else that one is, whatever its mark says.
    const busy = this.#heads().reduce((sum, entry) => sum + bytes.readUInt16LE(at(entry) + Entry.length), 0);
    if (busy < this.queueSize) bytes[at(free) + Entry.inFlight] = 0;
  }

  #heads(): number[] {
    return Array.from({ length: this.queueSize }, (_, entry) => entry).filter((entry) =>
      this.isInFlight(entry),
    );
  }

  #marked(): KeptChain[] {
    const bytes = this.#bytes;
    let total = 0;
    const found = this.#heads().map((entry) => {
      const length = bytes.readUInt16LE(at(entry) + Entry.length);
      total += length;
      if (length === 0 || total > this.queueSize) throw broken('more requests than places of the ring');
      const last = this.#index(at(entry) + Entry.last);
      const id = bytes.readUInt16LE(at(last) + Entry.id);
      return { id, entry, length, counter: bytes.readBigUInt64LE(at(entry) + Entry.counter) };
    });
    found.sort((a, b) => (a.counter < b.counter ? -1 : 1));
    this.#counter = BigInt.asUintN(64, (found.at(-1)?.counter ?? -1n) + 1n);
    return found;
  }

  /** A descriptor of the ring that is taken. */
  note(isFirst: boolean, isLast: boolean, words: Uint32Array, index: number): void {
    const bytes = this.#bytes;
    const head = at(this.#index(Header.oldFreeHead));
    const free = this.#index(Header.freeHead);
    if (isFirst) {
      this.#set(head + Entry.length, 0);
      bytes.writeBigUInt64LE(this.#counter, head + Entry.counter);
      this.#counter = BigInt.asUintN(64, this.#counter + 1n);
      Atomics.store(bytes, head + Entry.inFlight, 1);
    }
    const entry = at(free);
    const word = words[index * 4 + 3] ?? 0;
    this.#set(entry + Entry.id, word & 0xffff);
    this.#set(entry + Entry.flags, word >>> 16);
    bytes.writeUInt32LE(words[index * 4 + 2] ?? 0, entry + Entry.lengthBytes);
    bytes.writeUInt32LE(words[index * 4] ?? 0, entry + Entry.address);
    bytes.writeUInt32LE(words[index * 4 + 1] ?? 0, entry + Entry.address + 4);
    if (isLast) this.#set(head + Entry.last, free);
    // What counts is there.
    this.#set(head + Entry.length, bytes.readUInt16LE(head + Entry.length) + 1);
    this.#set(Header.freeHead, this.#index(entry + Entry.next));
    if (isLast) this.#set(Header.oldFreeHead, this.#index(Header.freeHead));
  }

  /** The descriptors of a chain. */
  chain(entry: number): Array<{ address: number; lengthBytes: number; flags: number }> {
    const bytes = this.#bytes;
    const length = bytes.readUInt16LE(at(entry) + Entry.length);
    if (length === 0 || length > this.queueSize) throw broken(`a chain of ${length} descriptors`);
    const found = [];
    for (let i = entry, left = length; left > 0; left--, i = this.#index(at(i) + Entry.next)) {
      const words = new Uint32Array([
        bytes.readUInt32LE(at(i) + Entry.address),
        bytes.readUInt32LE(at(i) + Entry.address + 4),
      ]);
      found.push({
        address: addressAt(words, 0),
        lengthBytes: bytes.readUInt32LE(at(i) + Entry.lengthBytes),
        flags: bytes.readUInt16LE(at(i) + Entry.flags),
      });
    }
    return found;
  }

  /** Before the ring says that it has ended, which then stands at `used`. */
  willEnd(entry: number, used: RingPosition): void {
    this.#set(at(this.#index(at(entry) + Entry.last)) + Entry.next, this.#index(Header.freeHead));
    this.#set(Header.freeHead, entry);
    this.#set(Header.usedIndex, used.index);
    this.#bytes[Header.usedWrap] = used.wrap;
  }

  /** After that. */
  ended(entry: number, used: RingPosition): void {
    Atomics.store(this.#bytes, at(entry) + Entry.inFlight, 0);
    this.#set(Header.oldFreeHead, this.#index(Header.freeHead));
    this.#set(Header.oldUsedIndex, used.index);
    this.#bytes[Header.oldUsedWrap] = used.wrap;
  }

  isInFlight(entry: number): boolean {
    return this.#bytes[at(entry) + Entry.inFlight] === 1;
  }
}

function at(entry: number): number {
  return HEADER_BYTES + ENTRY_BYTES * entry;
}
