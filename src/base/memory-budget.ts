import { assert } from './assert.js';

/** Somebody who keeps what can be had again. */
export interface MemoryHolder {
  readonly heldBytes: number;
  /**
   * Lets go of what nobody is using, what was not looked at for longest first, until it is so many bytes; tells the budget of it.
   */
  letGo(bytes: number): void;
}

/** Pieces of memory that are kept for the next look. */
const MOST_SCRATCH = 32;

/** Memory that many have in common: who has not taken any for longest lets go first. */
export class MemoryBudget {
  readonly limitBytes: number;
  #bytes = 0;
  /** Who has some, the one that took last at the end. */
  readonly #holders = new Set<MemoryHolder>();
  /** Memory for one look at something that is not kept; not counted. */
  readonly #scratch: Buffer[] = [];

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** A holder has taken so much more; the others may have to let go. */
  took(holder: MemoryHolder, bytes: number): void {
    this.#bytes += bytes;
    this.#holders.delete(holder);
    this.#holders.add(holder);
    // What all of them are using stays.
    for (const other of this.#holders) {
      if (other === holder || this.#bytes <= this.limitBytes) return;
      other.letGo(this.#bytes - this.limitBytes);
      if (other.heldBytes === 0) this.#holders.delete(other);
    }
  }

  gave(bytes: number): void {
    this.#bytes -= bytes;
    assert(this.#bytes >= 0, 'more memory was given back than taken');
  }

  /** Nobody uses it any more. */
  leave(holder: MemoryHolder): void {
    if (this.#holders.delete(holder)) this.gave(holder.heldBytes);
  }

  /** Memory with anything in it, which is given back soon. */
  borrow(lengthBytes: number): Buffer {
    const last = this.#scratch.pop();
    return last?.length === lengthBytes ? last : Buffer.allocUnsafeSlow(lengthBytes);
  }

  giveBack(scratch: Buffer): void {
    if (this.#scratch.length < MOST_SCRATCH) this.#scratch.push(scratch);
  }
}
