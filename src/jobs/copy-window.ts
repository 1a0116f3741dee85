import { Notifier } from '../base/async.js';
import { alignDown } from '../base/align.js';
import { KiB, MiB } from '../base/limits.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { Job } from './job.js';
import { asError, JobIoError } from './job-errors.js';

/** Data is moved in pieces of at most this. */
export const PIECE_BYTES = MiB;
/** What QEMU's streams and commits copy at a time, however slow they are to be: `offset` counts in it. */
export const COPY_PIECE_BYTES = 512 * KiB;
/** Most that a job has in flight at a time, and in how many pieces. */
const WINDOW_BYTES = 16 * MiB;
const WINDOW_PIECES = 16;
/** How long a piece waits that is tried again after an error that is ignored: an error that lasts must not make a job spin. */
export const RETRY_MS = 100;

export interface WindowSize {
  bytes?: number | undefined;
  pieces?: number | undefined;
  pieceBytes?: number | undefined;
}

/** What is in flight when a job is killed is copied again: of a small disk, that is to be little of it too. */
export function journaledWindow(journal: { readonly left: DirtyBitmap } | undefined): WindowSize {
  if (!journal) return {};
  const share = alignDown(journal.left.sizeBytes / 4096, MiB);
  const bytes = Math.min(WINDOW_BYTES, Math.max(MiB, share));
  return { bytes, pieceBytes: bytes / 4 };
}

/** Some of a job's work, which may be done again. */
interface Piece {
  /** What it costs of the rate limit. */
  readonly rateBytes: number;
  readonly work: () => Promise<void>;
}

/** The pieces that a job has in flight, and those that an error policy wants done again. */
export class CopyWindow {
  readonly #job: Job;
  readonly #windowBytes: number;
  readonly #mostPieces: number;
  readonly #pieceBytes: number;
  #bytes = 0;
  #pieces = 0;
  #failure: Error | undefined;
  readonly #again: Piece[] = [];
  readonly #done = new Notifier();

  /** `pieces`: most at a time; `pieceBytes`: longest one; default: as is usual. */
  constructor(
    job: Job,
    { bytes = WINDOW_BYTES, pieces = WINDOW_PIECES, pieceBytes = Infinity }: WindowSize = {},
  ) {
    this.#job = job;
    this.#windowBytes = bytes;
    this.#mostPieces = pieces;
    this.#pieceBytes = pieceBytes;
  }

  /** Largest piece, at most `longestBytes`, that keeps the job's rate limit finely; whole units of `unit` bytes. */
  pieceBytes(unit: number, longestBytes = PIECE_BYTES): number {
    const most = Math.min(longestBytes, this.#pieceBytes, this.#job.limit.sliceBytes);
    return Math.max(unit, alignDown(Math.floor(most), unit));
  }

  #isFull(): boolean {
    return this.#pieces > 0 && (this.#pieces >= this.#mostPieces || this.#bytes >= this.#windowBytes);
  }

  /**
   * Waits, if it must, until there is room for a piece and the job may go on: it is not paused, within its rate, and has
   * given way to others. Throws what a piece failed with, and JobCancelled.
   */
  room(wake?: () => boolean): Promise<void> | undefined {
    const isOpen =
      this.#failure === undefined &&
      this.#again.length === 0 &&
      !this.#isFull() &&
      !this.#job.pace.needsCheckpoint;
    return isOpen ? undefined : this.#untilRoom(wake);
  }

  async #untilRoom(wake?: () => boolean): Promise<void> {
    for (;;) {
      while (this.#isFull()) await this.#done.wait();
      this.#throwFailure();
      if (this.#job.pace.needsCheckpoint) {
        await this.#job.pace.checkpoint(() => this.quiet(), wake);
        this.#throwFailure();
      }
      if (this.#again.length === 0) return;
      await this.#job.pace.sleep(RETRY_MS);
      // The job may have been stopped meanwhile, by the very error that is tried again.
      const piece = this.#job.pace.needsCheckpoint ? undefined : this.#again.shift();
      if (piece) this.#begin(piece);
    }
  }

  /** A piece that is done by `attempt`, unless it answers false: then the caller launches it. After room(). */
  isDoneNow(rateBytes: number, attempt: () => boolean): boolean {
    if (!attempt()) return false;
    this.spend(rateBytes);
    return true;
  }

  /** What was copied without a wait costs of the rate limit too. */
  spend(rateBytes: number): void {
    if (rateBytes > 0) this.#job.spend(rateBytes);
  }

  /** Starts a piece; after room(). When it fails with an error that is not to end the job, it is done again. */
  launch(rateBytes: number, work: () => Promise<void>): void {
    this.spend(rateBytes);
    this.#begin({ rateBytes, work });
  }

  #begin(piece: Piece): void {
    this.#bytes += piece.rateBytes;
    this.#pieces++;
    void piece
      .work()
      .catch((error: unknown) => {
        if (isRetried(error)) this.#again.push(piece);
        else this.#failure ??= asError(error);
      })
      .then(() => {
        this.#bytes -= piece.rateBytes;
        this.#pieces--;
        this.#done.notify();
      });
  }

  /** Waits until nothing is in flight; does not throw. */
  async quiet(): Promise<void> {
    await this.#done.until(() => this.#pieces === 0);
  }

  /** Waits until all is done, also what must be done again. Throws what a piece failed with, and JobCancelled. */
  async finish(): Promise<void> {
    await this.quiet();
    while (this.#again.length > 0) {
      await this.#untilRoom();
      await this.quiet();
    }
    this.#throwFailure();
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }
}

/** Whether an error of a request does not end the job: what failed is to be done again, once the job may go on. */
export function isRetried(error: unknown): boolean {
  return error instanceof JobIoError && error.action !== 'report';
}
