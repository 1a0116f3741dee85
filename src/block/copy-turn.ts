import { MiB } from '../base/limits.js';
import type { BlockBackend } from './backend.js';
import type { Stretch } from './dirty-bitmap.js';
import type { RangeLock, Release } from './range-lock.js';

/** Longest request that somebody may wait for: a target may have to write the zeroes. */
export const AWAITED_BYTES = 2 * MiB;

/** What drained sections of a node ask and hold; a backend. */
export type Side = Pick<BlockBackend, 'isQuiesced' | 'untilOpen' | 'begin' | 'end'>;

/** One of which no drained section is alone: it is not written to, or the requests are held above it too. */
export const NEVER_HELD: Side = {
  isQuiesced: false,
  untilOpen: () => Promise.resolve(),
  begin: () => undefined,
  end: () => undefined,
};

/** A copy under way: its range is its own, and drained sections of the nodes that it still needs wait for it. */
export class CopyTurn {
  readonly #release: Release;
  readonly #needed: Set<Side>;

  constructor(release: Release, backends: Iterable<Side>) {
    this.#release = release;
    this.#needed = new Set(backends);
    for (const backend of this.#needed) backend.begin();
  }

  /** It makes no more requests of that one: changes of its nodes need not wait for the rest of the copy. */
  doneWith(backend: Side): void {
    if (this.#needed.delete(backend)) backend.end();
  }

  end(): void {
    for (const backend of [...this.#needed]) this.doneWith(backend);
    this.#release();
  }
}

/** The two sides of a copy. */
export interface CopySides {
  readonly source: Side;
  readonly target: Side;
}

/**
 * Waits for the range, and until no drained section holds either side; holds neither while it waits for the other. A
 * guest's request is waited for by sections of the source already, and waits for those of the target alone. It passes
 * others that wait for a part of its range: else a long one that waits would hold up all that are about to touch it.
 */
export async function takeTurn(
  locks: RangeLock,
  { offset, lengthBytes }: Stretch,
  sides: CopySides,
  forGuest: boolean,
): Promise<CopyTurn> {
  const { source, target } = sides;
  const backends = [source, target];
  const mustWait = (): boolean => (forGuest ? target.isQuiesced && !source.isQuiesced : !areOpen(backends));
  for (;;) {
    while (mustWait()) {
      await target.untilOpen();
      if (!forGuest) await source.untilOpen();
    }
    const release = await (forGuest
      ? locks.lockAhead(offset, lengthBytes)
      : locks.lockExclusive(offset, lengthBytes));
    if (!mustWait()) return new CopyTurn(release, backends);
    release();
  }
}

/** Whether no drained section holds them. */
export function areOpen(backends: Iterable<Side>): boolean {
  for (const backend of backends) if (backend.isQuiesced) return false;
  return true;
}

/** Runs a request of a job's own when no drained section holds the backend, and counts it as in flight. */
export async function whenOpen<T>(backend: Side, request: () => Promise<T> | T): Promise<T> {
  while (backend.isQuiesced) await backend.untilOpen();
  backend.begin();
  try {
    return await request();
  } finally {
    backend.end();
  }
}
