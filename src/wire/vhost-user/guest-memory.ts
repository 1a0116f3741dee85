import { assert } from '../../base/assert.js';
import { MAX_VIEW_BYTES } from '../../base/limits.js';
import { broken, type MemoryRegion } from './codec.js';
import type { PeerMemory } from './kept-memory.js';
import type { Stretches } from './stretches.js';

/** A region that is mapped, shared by the tables that have it. */
export class MappedRegion {
  readonly region: MemoryRegion;
  readonly memory: PeerMemory;
  /** Of MAX_VIEW_BYTES each, made as they are needed. */
  readonly #windows: Buffer[] = [];
  #tables = 0;

  constructor(region: MemoryRegion, memory: PeerMemory) {
    assert(memory.lengthBytes === region.lengthBytes, 'a region is mapped as a whole');
    this.region = region;
    this.memory = memory;
  }

  keep(): void {
    this.#tables++;
  }

  release(): void {
    if (--this.#tables === 0) this.memory.unmap();
  }

  /** Unless a table has it. */
  discard(): void {
    if (this.#tables === 0) this.memory.unmap();
  }

  window(index: number): Buffer {
    return (this.#windows[index] ??= this.#newWindow(index));
  }

  #newWindow(index: number): Buffer {
    const start = index * MAX_VIEW_BYTES;
    const lengthBytes = Math.min(MAX_VIEW_BYTES, this.region.lengthBytes - start);
    return asBuffer(this.memory.view(start, lengthBytes));
  }

  /** In one piece, however large. */
  view(offset: number, lengthBytes: number): Uint8Array {
    return this.memory.view(offset, lengthBytes);
  }
}

/**
 * The memory that a peer has let us see. A table does not change: another one takes its place. What was begun with an
 * old one keeps it until it has ended.
 */
export class GuestMemory {
  readonly regions: readonly MappedRegion[];
  /** Where the last address was found; most are near. */
  #last: MappedRegion | undefined;
  #users = 1;

  /** It is in use by who makes it. Errors: those of broken(), for regions that overlap. */
  constructor(regions: readonly MappedRegion[]) {
    const sorted = [...regions].sort((a, b) => a.region.guestAddress - b.region.guestAddress);
    sorted.forEach(({ region }, i) => {
      const next = sorted[i + 1]?.region.guestAddress ?? Infinity;
      if (region.guestAddress + region.lengthBytes > next) throw broken('regions of memory overlap');
    });
    this.regions = sorted;
    for (const region of sorted) region.keep();
  }

  use(): void {
    this.#users++;
  }

  unuse(): void {
    if (--this.#users === 0) for (const region of this.regions) region.release();
  }

  /** Adds what lies at a guest's address, in pieces where views or regions end. Errors: those of broken(). */
  addTo(stretches: Stretches, address: number, lengthBytes: number): void {
    let at = address;
    let left = lengthBytes;
    while (left > 0) {
      const found = this.#find(at);
      const offset = at - found.region.guestAddress;
      const index = Math.floor(offset / MAX_VIEW_BYTES);
      const start = offset - index * MAX_VIEW_BYTES;
      const window = found.window(index);
      const length = Math.min(left, window.length - start);
      stretches.add(window, start, length, at);
      at += length;
      left -= length;
    }
  }

  #find(address: number): MappedRegion {
    const last = this.#last;
    if (last && contains(last.region, address)) return last;
    for (const candidate of this.regions)
      if (contains(candidate.region, address)) return (this.#last = candidate);
    throw broken(`address ${address} lies in no region of memory`);
  }

  /** Where the guest sees what lies at an address of the peer's process. Errors: those of broken(). */
  guestAddress(userAddress: number): number {
    for (const { region } of this.regions) {
      const offset = userAddress - region.userAddress;
      if (offset >= 0 && offset < region.lengthBytes) return region.guestAddress + offset;
    }
    throw broken(`${userAddress} lies in no region of memory`);
  }

  /**
   * A ring, which lies in one region at an address of the peer's process that is a multiple of `unit`. Errors: those of
   * broken().
   */
  ring(userAddress: number, lengthBytes: number, unit: number): Uint8Array {
    for (const mapped of this.regions) {
      const { region } = mapped;
      const offset = userAddress - region.userAddress;
      if (offset < 0 || offset + lengthBytes > region.lengthBytes) continue;
      // What is mapped begins at a page.
      if ((region.fileOffset + offset) % unit !== 0) throw broken(`a ring at ${userAddress} is not aligned`);
      return mapped.view(offset, lengthBytes);
    }
    throw broken(`a ring at ${userAddress} lies in no region of memory`);
  }
}

function contains({ guestAddress, lengthBytes }: MemoryRegion, address: number): boolean {
  return address >= guestAddress && address < guestAddress + lengthBytes;
}

export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}
