import { assert } from './assert.js';

/** Somebody who keeps what can be had again. */
export interface MemoryHolder {
  readonly heldBytes: number;
  /** Lets go of all that nobody is using; tells the budget of it. */
  letGo(): void;
}

/** Memory that many have in common: who has not taken any for longest lets go first. */
export class MemoryBudget {
  readonly limitBytes: number;
  #bytes = 0;
  /** Who has some, the one that took last at the end. */
  readonly #holders = new Set<MemoryHolder>();

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
    // Once around: what all of them are using stays.
    for (let others = this.#holders.size - 1; others > 0 && this.#bytes > this.limitBytes; others--) {
      const [oldest] = this.#holders;
      if (!oldest) return;
      this.#holders.delete(oldest);
      oldest.letGo();
      if (oldest.heldBytes > 0) this.#holders.add(oldest);
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
}
