import { ByteRanges } from '../../base/byte-ranges.js';
import { errnoError } from '../../base/error.js';

/**
 * What a server answered for and was not told to keep. When it is lost and another takes its place, that may be gone:
 * then it is read by nobody before it was written anew, and flushes fail until all of it was.
 */
export class Unflushed {
  /** Since the last flush began. */
  #written = new ByteRanges();
  /** Of the flushes that are under way. */
  readonly #flushing = new Set<ByteRanges>();
  /** Nobody has connected again yet. */
  #left = new ByteRanges();
  #lost = new ByteRanges();
  /** Taken for kept, since the server is taken for the one that it was. */
  #doubtful = new ByteRanges();

  /** `isLeft`: over a connection that is lost by now. */
  wrote(offset: number, lengthBytes: number, how: { isDurable: boolean; isLeft: boolean }): void {
    if (!this.#lost.isEmpty) this.#lost.remove(offset, lengthBytes);
    if (!how.isDurable) (how.isLeft ? this.#left : this.#written).add(offset, lengthBytes);
  }

  /** Errors: those of `flush`; EIO while something is lost. */
  async during(flush: () => Promise<void>): Promise<void> {
    const covered = this.#written;
    this.#written = new ByteRanges();
    this.#flushing.add(covered);
    try {
      await flush();
    } catch (error) {
      if (this.#flushing.has(covered)) this.#written.addAll(covered);
      throw error;
    } finally {
      this.#flushing.delete(covered);
    }
    if (!this.#lost.isEmpty) throw lostError(this.#lost.lengthBytes);
  }

  /** Errors: EIO where some of it is lost. */
  assertKept(offset: number, lengthBytes: number): void {
    if (!this.#lost.isEmpty && this.#lost.overlaps(offset, lengthBytes)) throw lostError(lengthBytes);
  }

  connectionLost(): void {
    for (const ranges of [this.#written, ...this.#flushing]) this.#left.addAll(ranges);
    this.#written = new ByteRanges();
    this.#flushing.clear();
  }

  /** `isSame`: it is taken for the server that it was, with all that it had. */
  connectedAgain(isSame: boolean): void {
    (isSame ? this.#written : this.#lost).addAll(this.#left);
    if (isSame) this.#doubtful.addAll(this.#left);
    this.#left = new ByteRanges();
  }

  /**
   * What was taken for kept since it was asked last, and may be gone; what is lost, until it is written anew; and what was
   * left to a server that nobody has connected to again.
   */
  takeDoubtful(): ByteRanges {
    const taken = this.#doubtful;
    this.#doubtful = new ByteRanges();
    taken.addAll(this.#lost);
    taken.addAll(this.#left);
    return taken;
  }

  get hasLost(): boolean {
    return !this.#lost.isEmpty;
  }
}

function lostError(lengthBytes: number): Error {
  const text = `The NBD server was lost before it was told to keep what was written (${lengthBytes} bytes)`;
  return errnoError('EIO', text);
}
