import type { BlockBackend } from '../block/backend.js';
import type { ChainStatus } from '../block/chain-status.js';
import { DirtyBitmap, type Stretch } from '../block/dirty-bitmap.js';
import { RangeLock } from '../block/range-lock.js';
import { alignDown } from '../base/align.js';
import { assert } from '../base/assert.js';
import { given } from '../base/given.js';
import { KiB } from '../base/limits.js';
import { Mover, ZERO_BYTES } from './block-copy.js';
import { areOpen, AWAITED_BYTES, type CopySides, takeTurn, whenOpen } from '../block/copy-turn.js';
import { CopyWindow, isRetried, journaledWindow, RETRY_MS } from './copy-window.js';
import type { Job } from './job.js';
import type { Tally } from './job-progress.js';
import type { FinishBy } from './finish-by/finish-by.js';
import type { PassedWork } from './passed/passed-job.js';
import type { JobJournal } from './persisted/job-journal.js';
import { hashesFor } from './verified/checked-copy.js';
import type { ChunkHashes } from './verified/chunk-hashes.js';
import { type FailureFate, JobCancelled } from './job-errors.js';
import { clusterOf, type MirrorNodes, type MirrorPlan } from './plans/mirror.js';
import { statusOrData } from './source-status.js';

/** A piece of the target's is worth this much of a lock at least, and whole clusters where it lacks its backing file. */
const UNIT_BYTES = 64 * KiB;

/** What another process is told, beside what is dirty. A type alias: it is JSON. */
type PassedCopy = { doneBytes: number; tally: Tally; zeroing: { doneBytes: number; leftBytes: number } };

/** A part of what is dirty, handled at once. */
interface Piece extends Stretch {
  /** What it costs of the rate limit. */
  rateBytes: number;
  /** Set: the chain holds data at its beginning. */
  data?: ChainStatus;
}

interface CopyManner {
  fate?: FailureFate;
  /** Sections of the source wait for it: it does not wait for them. */
  forGuest?: boolean;
}

export interface MirrorCopyOptions {
  readonly job: Job;
  readonly plan: MirrorPlan;
  readonly nodes: MirrorNodes;
  readonly source: BlockBackend;
  readonly target: BlockBackend;
  /** No piece is to begin any more: a point in time is being fixed, or is. */
  readonly mustStop: () => boolean;
  readonly journal?: JobJournal | undefined;
  /** It is to end by a time. */
  readonly finishBy?: FinishBy | undefined;
}

/** What the target of a mirror lacks, and how it gets it. */
export class MirrorCopy {
  readonly #options: MirrorCopyOptions;
  /** Once the point in time is fixed: what the target still lacks of it. */
  dirty: DirtyBitmap;
  /** Smallest part that is copied at a time; at most a granule. */
  readonly unitBytes: number;
  readonly window: CopyWindow;
  readonly mover: Mover;
  /** Ranges that are on their way to the target. */
  readonly locks = new RangeLock();
  /** What the target is to hold, where that is wanted to be known. */
  readonly hashes: ChunkHashes | undefined;
  /** A piece has failed in a way that is not to end the job. */
  hasFailed = false;
  /** What guests wrote to both sides, and flushed, the target may not have durably. */
  isToFlush = false;
  /** Others have brought something to the target since it was flushed. */
  #hasUnflushed = false;
  #hasDoubtful = false;
  #doneBytes = 0;
  readonly tally: Tally = { zeroBytes: 0, skippedBytes: 0 };
  #copyingBytes = 0;
  #zeroing: PassedCopy['zeroing'] = { doneBytes: 0, leftBytes: 0 };

  constructor(options: MirrorCopyOptions) {
    const { job, plan, nodes, source, target } = options;
    this.#options = options;
    this.dirty = new DirtyBitmap(nodes.source.lengthBytes, plan.granularityBytes);
    this.dirty.isSilent = plan.copyMode === 'write-blocking';
    if (job.from) this.#goOnFrom(job.from.work);
    this.unitBytes = Math.min(plan.granularityBytes, Math.max(UNIT_BYTES, clusterOf(nodes.target) ?? 0));
    this.window = new CopyWindow(job, {
      ...journaledWindow(options.journal),
      ...given({ bytes: plan.windowBytes }),
    });
    this.hashes = hashesFor(job, plan, nodes.source.lengthBytes, this.unitBytes);
    this.mover = new Mover({
      hashes: this.hashes,
      compares: plan.compares,
      job,
      source,
      target,
      unmap: plan.unmap,
      tally: this.tally,
      skipKnownZeroes: plan.targetBacking === 'leave',
      lowest: plan.kind === 'active-commit' ? nodes.lowest : undefined,
    });
  }

  #goOnFrom({ data, parts }: PassedWork): void {
    const { doneBytes, tally, zeroing } = data as PassedCopy;
    const [bits] = parts['dirty'] ?? [];
    if (bits) this.dirty.deserialise(0, bits);
    this.#doneBytes = doneBytes;
    Object.assign(this.tally, tally);
    this.#zeroing = zeroing;
  }

  /** Nothing is in flight. What is dirty of a point in time has other granules. */
  passed(isFrozen: boolean): PassedWork & { data: PassedCopy } {
    assert(this.#copyingBytes === 0, 'nothing is in flight of a mirror that goes over');
    const data = { doneBytes: this.#doneBytes, tally: { ...this.tally }, zeroing: { ...this.#zeroing } };
    return { data, parts: isFrozen ? {} : { dirty: [this.dirty.bytes()] } };
  }

  get sides(): CopySides {
    return this.#options;
  }

  get doneBytes(): number {
    return this.#doneBytes;
  }

  /** Not in the target yet, as far as is known. */
  get remainingBytes(): number {
    return this.#copyingBytes + this.dirty.dirtyBytes;
  }

  get zeroing(): { readonly doneBytes: number; readonly leftBytes: number } {
    return this.#zeroing;
  }

  /** Others have brought as much to the target. */
  addDone(bytes: number): void {
    this.#doneBytes += bytes;
    this.#hasUnflushed = true;
  }

  /** They are about to make that durable. */
  flushes(): void {
    this.#hasUnflushed = false;
  }

  /** No drained section has begun in which the job is to rest. */
  #isOpen(): boolean {
    const { source, target } = this.#options;
    return areOpen([source, target]);
  }

  #status(offset: number, lengthBytes: number): Promise<ChainStatus> {
    const { source, nodes } = this.#options;
    return whenOpen(source, () => statusOrData(nodes.source, offset, lengthBytes, nodes.lowest));
  }

  // ---- what is dirty

  /** What the target's server had taken, and may have lost, is dirty again. */
  markDoubtful(): void {
    const { instance } = this.#options.nodes.target;
    for (const { offset, lengthBytes } of instance.takeDoubtful?.() ?? []) {
      this.dirty.set(offset, Math.min(lengthBytes, this.dirty.sizeBytes - offset));
      this.#hasDoubtful = true;
    }
  }

  /** The same; answers whether there was any since this was asked last. */
  takeDoubtful(): boolean {
    this.markDoubtful();
    const wasDoubtful = this.#hasDoubtful;
    this.#hasDoubtful = false;
    return wasDoubtful;
  }

  /** Marks what is to be copied; prepares a target whose content is unknown. */
  async mark(): Promise<void> {
    const { sync, targetIsNew, compares } = this.#options.plan;
    const { source } = this.#options.nodes;
    const { journal } = this.#options;
    if (journal?.isResumed === true) {
      this.dirty.merge(journal.left);
      if (compares === true) this.dirty.setAll();
      return;
    }
    if (sync === 'none') return;
    const size = source.lengthBytes;
    if (sync === 'full' && targetIsNew) this.hashes?.zeroes(0, size);
    if (sync === 'full' && !targetIsNew) {
      if (compares === true || !this.#unmaps()) {
        this.dirty.setAll();
        return;
      }
      await this.#zeroTarget();
    }
    for (let at = 0; at < size;) {
      await this.window.room();
      if (!this.#isOpen()) continue;
      const status = await this.#status(at, size - at);
      if (status.allocated) this.dirty.set(at, status.lengthBytes);
      at += status.lengthBytes;
    }
    this.#tellClean();
  }

  /** What needs no copy is as good as copied. */
  #tellClean(): void {
    const { journal } = this.#options;
    const { dirty } = this;
    const end = dirty.sizeBytes;
    for (let at = dirty.nextClean(0); journal && at < end;) {
      const next = dirty.nextDirty(at, end)?.offset ?? end;
      journal.copied(at, next - at, 0);
      at = next < end ? dirty.nextClean(next, end) : end;
    }
  }

  async #zeroTarget(): Promise<void> {
    const { lengthBytes } = this.#options.nodes.source;
    this.#options.job.enter('zeroing');
    for (let at = 0; at < lengthBytes; at += ZERO_BYTES) {
      const piece = { offset: at, lengthBytes: Math.min(ZERO_BYTES, lengthBytes - at) };
      this.#zeroing = { doneBytes: at, leftBytes: lengthBytes - at };
      await this.window.room();
      this.window.launch(0, () => this.mover.target.zero(piece.offset, piece.lengthBytes));
      await this.window.finish();
    }
    this.#zeroing = { doneBytes: lengthBytes, leftBytes: 0 };
    this.#options.job.enter('scanning');
  }

  /** Goes once through the bitmap and copies what is dirty. */
  async round(): Promise<void> {
    const { job, mustStop } = this.#options;
    if (this.hasFailed) await job.pace.sleep(RETRY_MS);
    this.hasFailed = false;
    const whole = [{ offset: 0, lengthBytes: this.dirty.sizeBytes }];
    for (const { offset, lengthBytes } of this.#options.finishBy?.route() ?? whole) {
      await this.#go(offset, Math.min(offset + lengthBytes, this.dirty.sizeBytes));
      if (mustStop()) return;
    }
  }

  /** Copies what is dirty of a stretch. */
  async #go(offset: number, end: number): Promise<void> {
    const { job, mustStop, finishBy } = this.#options;
    for (let cursor = offset; cursor < end;) {
      const stretch = this.dirty.nextDirty(cursor, end, finishBy?.longestPieceBytes ?? ZERO_BYTES);
      if (!stretch) return;
      // Ends early when the job is to rest or to end, which room() sees to.
      const delayMs = finishBy?.copyDelayMs() ?? 0;
      if (delayMs > 0) await job.pace.sleep(delayMs);
      await this.window.room(mustStop);
      if (mustStop()) return;
      // A drained section has begun: the job rests first.
      if (!this.#isOpen()) continue;
      const piece = await this.#pieceOf(stretch);
      // While this waited, a freeze may have begun; then the piece stays dirty.
      if (mustStop()) return;
      if (!this.#isOpen()) continue;
      this.#launch(piece);
      finishBy?.spend(piece.rateBytes);
      cursor = piece.offset + piece.lengthBytes;
    }
  }

  /** A first part of a dirty stretch that is handled at once: long when the source says that it is zero. */
  async #pieceOf({ offset, lengthBytes }: Stretch): Promise<Piece> {
    const { granularityBytes } = this.dirty;
    const most = Math.min(lengthBytes, this.window.pieceBytes(granularityBytes));
    const longest = Math.min(lengthBytes, ZERO_BYTES);
    const status = await this.#status(offset, longest);
    // What is data now can be copied as data whatever becomes of it; what is zero now, the guest may still write.
    if (status.data && !status.zero) return this.#dataPiece({ offset, lengthBytes }, most, status);
    if (!status.zero || status.lengthBytes <= most) return { offset, lengthBytes: most, rateBytes: most };
    // Zeroes cost something where they may have to be written.
    const { job, finishBy } = this.#options;
    if ((job.limit.isLimited || finishBy?.pacesCopy === true) && !this.#unmaps())
      return { offset, lengthBytes: most, rateBytes: most };
    const end = offset + status.lengthBytes;
    const whole = end === offset + lengthBytes ? end : end - (end % granularityBytes);
    return { offset, lengthBytes: Math.max(most, whole - offset), rateBytes: 0 };
  }

  #unmaps(): boolean {
    const { plan, nodes } = this.#options;
    return plan.unmap && nodes.target.modes.discard === 'unmap';
  }

  /** Longer than others where all of it is data, whole granules. */
  #dataPiece({ offset, lengthBytes }: Stretch, most: number, data: ChainStatus): Piece {
    const { granularityBytes } = this.dirty;
    const longest = this.window.pieceBytes(granularityBytes, this.mover.longestBytes());
    const alike = alignDown(Math.min(data.lengthBytes, longest), granularityBytes);
    const length = Math.min(lengthBytes, Math.max(most, alike));
    return { offset, lengthBytes: length, rateBytes: length, data };
  }

  // ---- pieces

  /** Copies a dirty piece, what needs a wait in the background; what the guest writes there meanwhile makes it dirty again. */
  #launch(piece: Piece): void {
    // What is left of a granule that was copied in part belongs to the rest.
    const done = this.#tryCopy(piece);
    const rest = done === 0 ? piece : { offset: piece.offset + done, lengthBytes: piece.lengthBytes - done };
    const restRateBytes = Math.min(piece.rateBytes, rest.lengthBytes);
    this.window.spend(piece.rateBytes - restRateBytes);
    if (rest.lengthBytes === 0) return;
    this.#copyingBytes += rest.lengthBytes;
    this.dirty.reset(rest.offset, rest.lengthBytes);
    this.window.launch(restRateBytes, () => this.#copyTracked(rest));
  }

  /** What can be copied of a piece without a wait; answers how long that first part is. */
  #tryCopy({ offset, lengthBytes, data }: Piece): number {
    if (this.locks.conflictsExclusive(offset, lengthBytes)) return 0;
    const { journal } = this.#options;
    const unit = journal ? this.dirty.granularityBytes : 1;
    journal?.begins(offset, lengthBytes);
    const done = this.mover.tryCopy(offset, lengthBytes, { unit, data });
    this.dirty.reset(offset, done);
    if (done > 0) journal?.copied(offset, done);
    this.#doneBytes += done;
    return done;
  }

  /** Copies a piece that is dirty no more, part by part: who waits for one need not wait for the next. */
  async #copyTracked(piece: Stretch & { data?: ChainStatus }, how: CopyManner = {}): Promise<void> {
    const { offset, lengthBytes, data } = piece;
    const end = offset + lengthBytes;
    const { journal } = this.#options;
    journal?.begins(offset, lengthBytes);
    let at = offset;
    try {
      while (at < end) {
        if (this.#options.job.isCancelled) throw new JobCancelled();
        const rest = { offset: at, lengthBytes: end - at };
        const done = await this.#copyPart(rest, at === offset ? data : undefined, how);
        at += done;
        this.#doneBytes += done;
        this.#copyingBytes -= done;
      }
      journal?.copied(offset, lengthBytes);
    } catch (error) {
      const release = await this.locks.lockExclusive(at, end - at);
      this.dirty.set(at, end - at);
      this.#copyingBytes -= end - at;
      release();
      if (!isRetried(error)) throw error;
      this.hasFailed = true;
    }
  }

  /** Answers how long the part is. Where guests' changes go to both sides, they may have to wait for it. */
  async #copyPart(
    { offset, lengthBytes }: Stretch,
    data: ChainStatus | undefined,
    { fate = 'policy', forGuest = false }: CopyManner,
  ): Promise<number> {
    const isAwaited = this.#options.nodes.source.gate !== undefined;
    const mayBeZero = isAwaited && !data && !forGuest;
    const zeroBytes = mayBeZero ? await this.mover.zeroBytes(offset, lengthBytes) : 0;
    this.tally.zeroBytes += zeroBytes;
    if (zeroBytes > 0) return zeroBytes;
    const part = { offset, lengthBytes: isAwaited ? Math.min(lengthBytes, AWAITED_BYTES) : lengthBytes };
    const turn = await takeTurn(this.locks, part, this.sides, forGuest);
    try {
      return await this.mover.copyFirst(turn, part, { unit: this.unitBytes, data, fate });
    } finally {
      turn.end();
    }
  }

  /** Calls `body` while nothing of a stretch is on its way to the target. */
  async withStill(stretch: Stretch, body: () => Promise<void>): Promise<void> {
    const turn = await takeTurn(this.locks, stretch, this.sides, false);
    try {
      await body();
    } finally {
      turn.end();
    }
  }

  /**
   * All of what is dirty, and what the target's server has lost, durably, at the job's end; what fails now is lost. While
   * guests are held, what they have not flushed is not flushed for them: a loss that nobody has heard of is told to them.
   */
  async copyRest({ isHeld }: { isHeld: boolean }): Promise<void> {
    this.markDoubtful();
    if (this.dirty.isClean && !this.isToFlush && (isHeld || !this.#hasUnflushed)) return;
    do {
      for (let at = this.dirty.nextDirty(0); at; at = this.dirty.nextDirty(0)) {
        this.#copyingBytes += at.lengthBytes;
        this.dirty.reset(at.offset, at.lengthBytes);
        await this.#copyTracked(at, { fate: 'lost' });
      }
      this.#hasDoubtful = false;
      this.isToFlush = false;
      this.#hasUnflushed = false;
      await this.#flushRest();
    } while (this.takeDoubtful());
  }

  async #flushRest(): Promise<void> {
    const { job, target } = this.#options;
    try {
      await whenOpen(target, () => target.flush());
    } catch (error) {
      this.markDoubtful();
      if (!this.#hasDoubtful) throw job.ioError('write', error, 'lost');
    }
  }

  /**
   * What is dirty of a guest's change that is not done yet, until the job rests, or a drained section of the source begins,
   * which waits for the guest: then it stays dirty.
   */
  async copyLeft({ offset, lengthBytes }: Stretch, rests: () => boolean): Promise<void> {
    const { source } = this.#options;
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) {
      const piece = this.dirty.nextDirty(at, end, AWAITED_BYTES);
      if (!piece || source.isQuiesced || rests()) return;
      this.#copyingBytes += piece.lengthBytes;
      this.dirty.reset(piece.offset, piece.lengthBytes);
      await this.#copyTracked(piece, { forGuest: true });
      at = piece.offset + piece.lengthBytes;
    }
  }
}
