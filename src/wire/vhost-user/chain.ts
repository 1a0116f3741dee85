import { broken } from './codec.js';
import { DESCRIPTOR_BYTES, DescriptorFlag } from './constants.js';
import type { GuestMemory } from './guest-memory.js';
import { Stretches } from './stretches.js';

/** Most descriptors of one chain, those of an indirect table included; QEMU's limit (VIRTQUEUE_MAX_SIZE). */
export const MAX_CHAIN = 1024;

/** One request of the driver: what it gives, then what it wants filled. */
export class Chain {
  readonly out = new Stretches();
  readonly in = new Stretches();

  clear(): void {
    this.out.clear();
    this.in.clear();
  }

  /** Errors: those of broken(), for what cannot be a part of a chain. */
  add(memory: GuestMemory, address: number, lengthBytes: number, flags: number): void {
    if (lengthBytes === 0) throw broken('a descriptor of no bytes');
    const isIn = (flags & DescriptorFlag.write) !== 0;
    if (!isIn && this.in.count > 0) throw broken('descriptors are not in order');
    memory.addTo(isIn ? this.in : this.out, address, lengthBytes);
  }
}

/** A copy of an indirect table, four words a descriptor. */
export class IndirectTable {
  readonly words = new Uint32Array(MAX_CHAIN * 4);
  readonly #pieces = new Stretches();

  /** Answers how many descriptors it has. Errors: those of broken(). */
  read(memory: GuestMemory, address: number, lengthBytes: number): number {
    if (
      lengthBytes === 0 ||
      lengthBytes % DESCRIPTOR_BYTES !== 0 ||
      lengthBytes > MAX_CHAIN * DESCRIPTOR_BYTES
    )
      throw broken(`an indirect table of ${lengthBytes} bytes`);
    const pieces = this.#pieces;
    pieces.clear();
    memory.addTo(pieces, address, lengthBytes);
    for (let i = 0; i < lengthBytes / 4; i++) this.words[i] = pieces.readUint32(i * 4);
    return lengthBytes / DESCRIPTOR_BYTES;
  }

  /** No memory is kept. */
  forget(): void {
    this.#pieces.forget();
  }
}

/** What is no address, 2^53 or more, lies in no region either. */
export function addressAt(table: Uint32Array, index: number): number {
  return (table[index * 4] ?? 0) + (table[index * 4 + 1] ?? 0) * 2 ** 32;
}
