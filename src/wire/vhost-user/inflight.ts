import type { SharedMemory } from '../../host/sharing.js';
import { alignUp } from '../../base/align.js';
import { assert, defined } from '../../base/assert.js';
import { asBuffer } from './guest-memory.js';

/**
 * Which requests of a split ring are in flight, in memory that outlives us ("Inflight I/O tracking" of the protocol). The
 * place of a queue in it is the back-end's choice: as libvhost-user has it, so that either may take over from the other.
 */
const HEADER_BYTES = 16;
const ENTRY_BYTES = 16;
const QUEUE_UNIT = 64;
/** Of a queue's header. */
const Header = { version: 8, size: 10, lastHead: 12, usedIndex: 14 } as const;
/** Of a descriptor's entry. */
const Entry = { inFlight: 0, next: 6, counter: 8 } as const;
const VERSION = 1;

export function inflightQueueBytes(queueSize: number): number {
  return alignUp(HEADER_BYTES + ENTRY_BYTES * queueSize, QUEUE_UNIT);
}

/** The peer may write it, too: nothing of it is trusted. */
export class InflightQueue {
  readonly #bytes: Buffer;
  readonly queueSize: number;
  #counter = 0n;

  constructor(memory: SharedMemory, index: number, queueSize: number) {
    const lengthBytes = inflightQueueBytes(queueSize);
    this.#bytes = asBuffer(memory.view(index * lengthBytes, lengthBytes));
    this.queueSize = queueSize;
  }

  /**
   * Heads of what had been begun and not ended when the ring stood at `usedIndex`, oldest first; the memory agrees with
   * the ring then.
   */
  recover(usedIndex: number): number[] {
    const bytes = this.#bytes;
    if (bytes.readUInt16LE(Header.version) !== VERSION) {
      bytes.writeUInt16LE(VERSION, Header.version);
      bytes.writeUInt16LE(this.queueSize, Header.size);
      bytes.writeUInt16LE(usedIndex, Header.usedIndex);
    }
    // Ended, as the ring says, and not marked so: the last ones.
    const unmarked = (usedIndex - bytes.readUInt16LE(Header.usedIndex) + 0x10000) % 0x10000;
    let head = bytes.readUInt16LE(Header.lastHead);
    for (let i = 0; i < Math.min(unmarked, this.queueSize) && head < this.queueSize; i++) {
      bytes[at(head) + Entry.inFlight] = 0;
      head = bytes.readUInt16LE(at(head) + Entry.next);
    }
    bytes.writeUInt16LE(usedIndex, Header.usedIndex);
    const found: Array<{ head: number; counter: bigint }> = [];
    for (let i = 0; i < this.queueSize; i++) {
      if (bytes[at(i) + Entry.inFlight] !== 1) continue;
      found.push({ head: i, counter: bytes.readBigUInt64LE(at(i) + Entry.counter) });
    }
    found.sort((a, b) => (a.counter < b.counter ? -1 : 1));
    const last = found.at(-1)?.counter ?? 0n;
    this.#counter = BigInt.asUintN(64, last + 1n);
    return found.map((entry) => entry.head);
  }

  begin(head: number): void {
    assert(head < this.queueSize, 'a descriptor of the queue');
    this.#bytes.writeBigUInt64LE(this.#counter, at(head) + Entry.counter);
    this.#counter = BigInt.asUintN(64, this.#counter + 1n);
    Atomics.store(this.#bytes, at(head) + Entry.inFlight, 1);
  }

  /** Before the ring says that it has ended. */
  willEnd(head: number): void {
    const bytes = this.#bytes;
    bytes.writeUInt16LE(bytes.readUInt16LE(Header.lastHead), at(head) + Entry.next);
    bytes.writeUInt16LE(head, Header.lastHead);
  }

  /** After that. */
  ended(head: number, usedIndex: number): void {
    Atomics.store(this.#bytes, at(head) + Entry.inFlight, 0);
    this.#bytes.writeUInt16LE(usedIndex, Header.usedIndex);
  }

  /** For tests: whether a request is marked. */
  isInFlight(head: number): boolean {
    return defined(this.#bytes[at(head) + Entry.inFlight], 'a descriptor of the queue') === 1;
  }
}

function at(head: number): number {
  return HEADER_BYTES + ENTRY_BYTES * head;
}
