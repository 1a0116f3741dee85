import type { NbdTarget } from './target.js';

/** A write, zeroing or trim that the target is working on. */
export interface Change {
  readonly offset: number;
  readonly lengthBytes: number;
  /** When it is over, done or failed; never rejects. */
  readonly over: Promise<void>;
}

/**
 * Changes under way whose clients are gone. A client that comes back and writes anew must not find its new data
 * overwritten by the old when that is done at last: whoever changes the same bytes later, through whatever export of the
 * disk, waits for them first.
 */
export class LostChanges<T extends object = NbdTarget> {
  readonly #changes = new Set<Change & { target: T }>();
  readonly #isSameDisk: (one: T, other: T) => boolean;

  constructor(isSameDisk: (one: T, other: T) => boolean = (one, other) => one === other) {
    this.#isSameDisk = isSameDisk;
  }

  get isEmpty(): boolean {
    return this.#changes.size === 0;
  }

  add(target: T, { offset, lengthBytes, over }: Change): void {
    const change = { target, offset, lengthBytes, over };
    this.#changes.add(change);
    void over.then(() => this.#changes.delete(change));
  }

  /** Resolves when those that overlap a range are over, others may have come meanwhile; undefined when none does. */
  overlapping(target: T, offset: number, lengthBytes: number): Promise<unknown> | undefined {
    if (this.#changes.size === 0) return undefined;
    const found = [...this.#changes].filter(
      (change) =>
        change.offset < offset + lengthBytes &&
        offset < change.offset + change.lengthBytes &&
        this.#isSameDisk(change.target, target),
    );
    return found.length > 0 ? Promise.all(found.map(({ over }) => over)) : undefined;
  }
}
