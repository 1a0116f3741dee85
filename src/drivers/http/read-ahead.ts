import { assert, defined } from '../../base/assert.js';
import { type Deferred, deferred, Slots } from '../../base/async.js';
import { MiB } from '../../base/limits.js';

/** Requests to the server at a time, and pieces that are kept after they came. */
export const MAX_IN_FLIGHT = 8;
const MAX_KEPT = 8;
/** Most that is asked for at once, besides what is read ahead. */
export const MAX_PIECE_BYTES = 4 * MiB;

/** Hands over [start, end), piece by piece. */
export type Fetch = (start: number, end: number, take: (chunk: Uint8Array) => void) => Promise<void>;

/**
 * Reads of something far away: each takes more than was asked for, and what came is kept for a while. So many requests at
 * a time; what is under way is not asked for again.
 */
export class ReadAhead {
  readonly #fetch: Fetch;
  readonly #lengthBytes: number;
  readonly #aheadBytes: number;
  readonly #slots = new Slots(MAX_IN_FLIGHT);
  /** The newest last. */
  #pieces: Piece[] = [];

  constructor(fetch: Fetch, lengthBytes: number, aheadBytes: number) {
    this.#fetch = fetch;
    this.#lengthBytes = lengthBytes;
    this.#aheadBytes = aheadBytes;
  }

  /** All of a range, where it is here already in one piece. */
  tryRead(offset: number, lengthBytes: number): Uint8Array | undefined {
    const piece = this.#pieceAt(offset);
    return piece?.hasUntil(offset + lengthBytes) === true
      ? piece.view(offset, offset + lengthBytes)
      : undefined;
  }

  /** Fills `target` with what is at `offset`. Errors: those of fetching. */
  async read(offset: number, target: Uint8Array): Promise<void> {
    const end = offset + target.length;
    assert(end <= this.#lengthBytes, 'a read inside the file');
    const parts: Array<Promise<void>> = [];
    for (let at = offset; at < end;) {
      const piece = this.#pieceAt(at) ?? this.#start(at, Math.min(end, at + MAX_PIECE_BYTES));
      const [from, until] = [at, Math.min(end, piece.end)];
      parts.push(piece.until(until).then(() => target.set(piece.view(from, until), from - offset)));
      at = until;
    }
    // Also after one has failed: the memory is the caller's again, so nothing may come into it any more.
    const ends = await Promise.allSettled(parts);
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  }

  #pieceAt(offset: number): Piece | undefined {
    return this.#pieces.findLast(({ start, end }) => start <= offset && offset < end);
  }

  #start(start: number, wanted: number): Piece {
    const piece = new Piece(start, Math.min(this.#lengthBytes, wanted + this.#aheadBytes));
    this.#pieces.push(piece);
    void this.#run(piece);
    return piece;
  }

  async #run(piece: Piece): Promise<void> {
    await this.#slots.take();
    try {
      piece.allocate();
      await this.#fetch(piece.start, piece.end, (chunk) => piece.add(chunk));
      piece.check();
    } catch (error) {
      piece.fail(error);
      this.#pieces = this.#pieces.filter((other) => other !== piece);
    } finally {
      this.#slots.giveBack();
    }
    const kept = this.#pieces.filter((other) => other.isWhole);
    const old = new Set(kept.slice(0, Math.max(0, kept.length - MAX_KEPT)));
    if (old.size > 0) this.#pieces = this.#pieces.filter((other) => !old.has(other));
  }
}

/** A stretch that is here, or on its way. */
class Piece {
  readonly start: number;
  readonly end: number;
  #memory: Buffer | undefined;
  #receivedBytes = 0;
  #waiting: Array<{ end: number; came: Deferred<void> }> = [];
  #failure: { error: unknown } | undefined;

  constructor(start: number, end: number) {
    this.start = start;
    this.end = end;
  }

  get isWhole(): boolean {
    return this.hasUntil(this.end);
  }

  hasUntil(end: number): boolean {
    return end <= this.start + this.#receivedBytes;
  }

  view(from: number, until: number): Uint8Array {
    return defined(this.#memory, 'memory of a piece that came').subarray(
      from - this.start,
      until - this.start,
    );
  }

  /** Resolves when all before `end` is here. */
  async until(end: number): Promise<void> {
    if (this.#failure) throw this.#failure.error;
    if (this.hasUntil(end)) return;
    const came = deferred();
    this.#waiting.push({ end, came });
    await came.promise;
  }

  allocate(): void {
    this.#memory = Buffer.allocUnsafeSlow(this.end - this.start);
  }

  add(chunk: Uint8Array): void {
    // RangeError where it is more than was asked for: fetching sees to that.
    defined(this.#memory, 'memory of a piece under way').set(chunk, this.#receivedBytes);
    this.#receivedBytes += chunk.length;
    const ready = this.#waiting.filter(({ end }) => this.hasUntil(end));
    this.#waiting = this.#waiting.filter(({ end }) => !this.hasUntil(end));
    for (const { came } of ready) came.resolve();
  }

  check(): void {
    assert(this.isWhole, 'a piece that was fetched is whole');
  }

  fail(error: unknown): void {
    this.#failure = { error };
    for (const { came } of this.#waiting.splice(0)) came.reject(error);
  }
}
