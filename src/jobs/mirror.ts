import { assert } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import { KiB } from '../base/limits.js';
import type { BlockBackend } from '../block/backend.js';
import { assertBackingCertainAbove } from '../block/backing-reference.js';
import { DirtyBitmap, type Stretch } from '../block/dirty-bitmap.js';
import { resolveBackingOf } from '../block/full-filename.js';
import type { ChainStatus } from '../block/chain-status.js';
import { Node } from '../block/node.js';
import { RangeLock } from '../block/range-lock.js';
import type { GraphTransaction } from '../block/transaction.js';
import { AWAITED_BYTES, type CopyOptions, Mover, ZERO_BYTES } from './block-copy.js';
import { growBase, holdIntermediate } from './commit.js';
import { CopyBeforeWrite } from './copy-before-write.js';
import { areOpen, type CopySides, takeTurn, whenOpen } from './copy-turn.js';
import { CopyWindow, isRetried, RETRY_MS } from './copy-window.js';
import { asError, type Job, JobCancelled, type JobDriver } from './job.js';
import { ALL_PERMISSIONS, isInChain, JobPlace, type JobSurroundings, Permission } from './job-graph.js';
import { clusterOf, type MirrorPlan } from './mirror-plan.js';
import { statusOrData } from './source-status.js';
import { WriteToBoth } from './write-to-both.js';

/** How often a READY mirror looks for what the guest wrote. */
const READY_SLEEP_MS = 100;
/** A guest that writes faster than the mirror copies: after so many rounds what it writes goes to both sides at once. */
const ROUNDS_BEFORE_BLOCKING = 4;
/** A piece of the target's is worth this much of a lock at least, and whole clusters where it lacks its backing file. */
const UNIT_BYTES = 64 * KiB;

/** A part of what is dirty, handled at once. */
interface Piece extends Stretch {
  /** What it costs of the rate limit. */
  rateBytes: number;
  /** Set: the chain holds data at its beginning. */
  data?: ChainStatus;
}

/** drive-mirror, blockdev-mirror and the commit of the active layer. */
export class MirrorJob implements JobDriver {
  readonly type: 'mirror' | 'commit';
  readonly isAnnouncedFirst: boolean;
  readonly job: Job;
  readonly #plan: MirrorPlan;
  readonly #place: JobPlace;
  readonly #source: Node;
  readonly #target: Node;
  readonly #sourceBackend: BlockBackend;
  readonly #targetBackend: BlockBackend;
  readonly #sides: CopySides;
  /** Once the point in time is fixed: what the target still lacks of it. */
  #dirty: DirtyBitmap;
  /** Smallest part that is copied at a time; at most a granule. */
  readonly #unitBytes: number;
  /** A piece has failed in a way that is not to end the job. */
  #hasFailed = false;
  readonly #window: CopyWindow;
  readonly #mover: Mover;
  readonly #both: WriteToBoth;
  /** Ranges that are on their way to the target. */
  readonly #copying = new RangeLock();
  #cursor = 0;
  #offset = 0;
  #copyingBytes = 0;
  #phase: 'track' | 'freezing' | 'frozen' | 'complete' = 'track';
  #held: CopyBeforeWrite | undefined;
  #heldFailure: Error | undefined;
  #pivoted = false;

  constructor(job: Job, plan: MirrorPlan, surroundings: JobSurroundings) {
    this.type = plan.type;
    // Of an active commit, only what is wrong with the images is told before.
    this.isAnnouncedFirst = !plan.targetIsBase || plan.source.activity === 'inactive';
    job.setDriver(this);
    this.job = job;
    this.#plan = plan;
    this.#source = plan.source;
    this.#target = plan.target;
    const place = new JobPlace(job, surroundings, plan.filter, plan.filterNodeName, plan.source);
    this.#place = place;
    const { consistentRead, write, writeUnchanged, resize } = Permission;
    const { source, target, targetIsBase } = plan;
    place.hold('main node', place.filter, consistentRead, consistentRead + writeUnchanged + write);
    this.#sourceBackend = place.filterChild('file', source, 0, ALL_PERMISSIONS);
    const isToGrow = targetIsBase && target.lengthBytes < source.lengthBytes;
    // What is copied in part only is for nobody to read, unless it is the base that was right before.
    this.#targetBackend = place.backend(
      target,
      write + (isToGrow ? resize : 0),
      writeUnchanged + (targetIsBase ? consistentRead + write : 0),
    );
    place.hold('source', source, 0, consistentRead + writeUnchanged + write);
    place.hold('target', target, 0, ALL_PERMISSIONS);
    const below = source.below?.node;
    if (targetIsBase && below) holdIntermediate(place, below, target);
    const sides = { source: this.#sourceBackend, target: this.#targetBackend };
    this.#sides = sides;
    this.#dirty = new DirtyBitmap(plan.source.lengthBytes, plan.granularityBytes);
    this.#unitBytes = Math.min(plan.granularityBytes, Math.max(UNIT_BYTES, clusterOf(plan.target) ?? 0));
    this.#window = new CopyWindow(job, plan.windowBytes);
    this.#mover = new Mover({
      job,
      source: this.#sourceBackend,
      target: this.#targetBackend,
      unmap: plan.unmap,
      skipKnownZeroes: plan.targetBacking === 'leave',
      lowest: plan.targetIsBase ? plan.lowest : undefined,
    });
    this.#both = new WriteToBoth({
      ...sides,
      dirty: this.#dirty,
      locks: this.#copying,
      mover: this.#mover,
      unitBytes: this.#unitBytes,
      fillsUnits: plan.targetBacking !== 'leave',
      failed: (error) => this.#targetFailed(this.job.ioError('write', error)),
      written: (bytes) => {
        this.#offset += bytes;
      },
    });
  }

  /** A change that a guest made is in the source only. */
  #targetFailed(error: Error): void {
    if (isRetried(error)) this.#hasFailed = true;
    else this.#window.launch(0, () => Promise.reject(error));
    this.job.kick();
  }

  get offsetBytes(): number {
    return this.#offset;
  }

  get totalBytes(): number {
    return this.#offset + this.#copyingBytes + this.#dirty.dirtyBytes;
  }

  async insert(): Promise<void> {
    const place = this.#place;
    const { targetIsBase } = this.#plan;
    const source = this.#source;
    const target = this.#target;
    if (targetIsBase) assertBackingCertainAbove(place.graph, target);
    await place.drained([source, target], async () => {
      await place.insert({
        before: (transaction) => {
          if (targetIsBase) place.listWritable(transaction, target);
        },
        keep: (edge) => isInChain(edge.parent, target),
      });
      source.dirtyBitmaps.push(this.#dirty);
    });
    if (!targetIsBase) place.copiesTo(this.#targetBackend);
    place.freezeChain(place.filter, targetIsBase ? target : source);
  }

  // ---- the loop

  async run(): Promise<void> {
    const window = this.#window;
    const plan = this.#plan;
    try {
      if (plan.targetIsBase) await growBase(this.#targetBackend, this.#source.lengthBytes);
      else if (this.#source.lengthBytes !== this.#target.lengthBytes)
        throw new BlockError('invalid', 'Source and target image have different sizes');
      await this.#begin();
      this.#both.isMarked = true;
      await this.#catchUp();
      await this.#followGuest();
      await window.finish();
      if (this.#phase !== 'complete') await this.#mover.flush();
    } finally {
      await window.quiet();
    }
  }

  /** Marks what is to be copied; prepares a target whose content is unknown. */
  async #begin(): Promise<void> {
    const { lowest, whole, targetIsNew, targetIsBase, writeBlocking } = this.#plan;
    const source = this.#source;
    if (writeBlocking) await this.#writeToBoth(true);
    if (!lowest) return;
    const size = source.lengthBytes;
    if (whole && !targetIsNew && !targetIsBase) {
      const zeroFirst = this.#target.modes.discard === 'unmap' && this.#plan.unmap;
      if (!zeroFirst) {
        this.#dirty.setAll();
        return;
      }
      this.#window.launch(0, () => this.#mover.zero(0, size));
      await this.#window.finish();
    }
    for (let at = 0; at < size;) {
      await this.#window.room();
      if (!this.#isOpen()) continue;
      const status = await this.#status(at, size - at);
      if (status.allocated) this.#dirty.set(at, status.lengthBytes);
      at += status.lengthBytes;
    }
  }

  #status(offset: number, lengthBytes: number): Promise<ChainStatus> {
    return whenOpen(this.#sourceBackend, () =>
      statusOrData(this.#source, offset, lengthBytes, this.#plan.lowest),
    );
  }

  /** Copies until nothing is dirty: READY. */
  async #catchUp(): Promise<void> {
    await this.#copyUntilClean();
    this.job.becomeReady();
    if (!this.#plan.writeBlocking) await this.#writeToBoth(false);
  }

  /** A guest may keep ahead: then what is dirty is kept from becoming more. */
  async #copyUntilClean(): Promise<void> {
    for (let round = 0; ; round++) {
      await this.#copyRound();
      await this.#window.finish();
      if (this.#dirty.isClean || this.#mustStop()) return;
      if (round >= ROUNDS_BEFORE_BLOCKING) await this.#writeToBoth(true);
    }
  }

  /** Switches whether guests' changes go to both sides, while none of them is under way. Nothing is being copied. */
  async #writeToBoth(on: boolean): Promise<void> {
    const gate = on ? this.#both : undefined;
    if (this.#source.gate === gate) return;
    await this.#place.section([this.#source], async () => {
      // Meanwhile a point in time may have been fixed.
      if (!this.#held) this.#place.guardSource(gate);
    });
  }

  /** Goes once through the bitmap and copies what is dirty. */
  async #copyRound(): Promise<void> {
    this.#cursor = 0;
    if (this.#hasFailed) await this.job.sleep(RETRY_MS);
    this.#hasFailed = false;
    while (this.#cursor < this.#dirty.sizeBytes) {
      const stretch = this.#dirty.nextDirty(this.#cursor, this.#dirty.sizeBytes, ZERO_BYTES);
      if (!stretch) return;
      await this.#window.room(() => this.#phase === 'freezing');
      if (this.#phase === 'freezing' || this.#phase === 'frozen') return;
      // A drained section has begun: the job rests first.
      if (!this.#isOpen()) continue;
      const piece = await this.#pieceOf(stretch);
      // While this waited, a freeze may have begun; then the piece stays dirty.
      if (this.#mustStop()) return;
      if (!this.#isOpen()) continue;
      this.#launch(piece);
      this.#cursor = piece.offset + piece.lengthBytes;
    }
  }

  /** No drained section has begun in which the job is to rest. */
  #isOpen(): boolean {
    return areOpen([this.#sourceBackend, this.#targetBackend]);
  }

  #mustStop(): boolean {
    return this.#phase === 'freezing' || this.#phase === 'frozen';
  }

  /** A first part of a dirty stretch that is handled at once: long when the source says that it is zero. */
  async #pieceOf({ offset, lengthBytes }: Stretch): Promise<Piece> {
    const { granularityBytes } = this.#dirty;
    const most = Math.min(lengthBytes, this.#window.pieceBytes(granularityBytes));
    const longest = Math.min(lengthBytes, ZERO_BYTES);
    const status = await this.#status(offset, longest);
    // What is data now can be copied as data whatever becomes of it; what is zero now, the guest may still write.
    if (status.data && !status.zero) return { offset, lengthBytes: most, rateBytes: most, data: status };
    if (!status.zero || status.lengthBytes <= most) return { offset, lengthBytes: most, rateBytes: most };
    const end = offset + status.lengthBytes;
    const whole = end === offset + lengthBytes ? end : end - (end % granularityBytes);
    return { offset, lengthBytes: Math.max(most, whole - offset), rateBytes: 0 };
  }

  /** Copies a dirty piece, what needs a wait in the background; what the guest writes there meanwhile makes it dirty again. */
  #launch(piece: Piece): void {
    // What is left of a granule that was copied in part belongs to the rest.
    const done = this.#tryCopy(piece);
    const rest = done === 0 ? piece : { offset: piece.offset + done, lengthBytes: piece.lengthBytes - done };
    const restRateBytes = Math.min(piece.rateBytes, rest.lengthBytes);
    this.#window.spend(piece.rateBytes - restRateBytes);
    if (rest.lengthBytes === 0) return;
    this.#copyingBytes += rest.lengthBytes;
    this.#dirty.reset(rest.offset, rest.lengthBytes);
    this.#window.launch(restRateBytes, () => this.#copyTracked(rest));
  }

  /** What can be copied of a piece without a wait; answers how long that first part is. */
  #tryCopy({ offset, lengthBytes, data }: Piece): number {
    if (this.#copying.conflictsExclusive(offset, lengthBytes)) return 0;
    const done = this.#mover.tryCopy(offset, lengthBytes, data);
    this.#dirty.reset(offset, done);
    this.#offset += done;
    return done;
  }

  /** Copies a piece that is dirty no more, part by part: who waits for one need not wait for the next. */
  async #copyTracked(piece: Stretch & { data?: ChainStatus }, isLost = false): Promise<void> {
    const { offset, lengthBytes, data } = piece;
    const end = offset + lengthBytes;
    let at = offset;
    try {
      while (at < end) {
        if (this.job.isCancelled) throw new JobCancelled();
        const rest = { offset: at, lengthBytes: end - at };
        const done = await this.#copyPart(rest, { data: at === offset ? data : undefined, isLost });
        at += done;
        this.#offset += done;
        this.#copyingBytes -= done;
      }
    } catch (error) {
      const release = await this.#copying.lockExclusive(at, end - at);
      this.#dirty.set(at, end - at);
      this.#copyingBytes -= end - at;
      release();
      if (!isRetried(error)) throw error;
      this.#hasFailed = true;
    }
  }

  /** Answers how long the part is. Where guests' changes go to both sides, they may have to wait for it. */
  async #copyPart({ offset, lengthBytes }: Stretch, options: Omit<CopyOptions, 'unit'>): Promise<number> {
    const isAwaited = this.#source.gate !== undefined;
    const mayBeZero = isAwaited && !options.data;
    const zeroBytes = mayBeZero ? await this.#mover.zeroBytes(offset, lengthBytes) : 0;
    if (zeroBytes > 0) return zeroBytes;
    const part = { offset, lengthBytes: isAwaited ? Math.min(lengthBytes, AWAITED_BYTES) : lengthBytes };
    const turn = await takeTurn(this.#copying, part, this.#sides, false);
    try {
      return await this.#mover.copyFirst(turn, part, { unit: this.#unitBytes, ...options });
    } finally {
      turn.end();
    }
  }

  /** READY: copies what the guest writes until the job is told how to end. */
  async #followGuest(): Promise<void> {
    const job = this.job;
    for (;;) {
      await job.checkpoint(
        () => this.#window.quiet(),
        () => this.#phase !== 'track',
      );
      if (this.#phase === 'freezing') {
        await job.sleep(READY_SLEEP_MS);
      } else if (this.#phase === 'frozen') {
        await this.#copyHeld();
        return;
      } else if (this.#phase === 'complete') {
        await this.#copyUntilClean();
        // From here on the target has what the source has, durably if the guest flushed it: the pivot waits for nothing.
        this.#both.flushesBoth = true;
        await this.#writeToBoth(true);
        await this.#copyUntilClean();
        await this.#mover.flush();
        return;
      } else {
        if (!this.#dirty.isClean) await this.#copyRound();
        await this.#window.finish();
        if (this.#phase === 'track') await job.sleep(READY_SLEEP_MS);
      }
    }
  }

  // ---- ends

  complete(): void {
    this.#phase = 'complete';
  }

  /**
   * A soft cancel: the target is to hold this moment. No piece begins, and when those in flight have landed guests are
   * held back for a moment; from then on what is still dirty is copied before the guest changes it, so that the end does
   * not depend on the guest.
   */
  async freeze(): Promise<void> {
    this.#phase = 'freezing';
    await this.#window.quiet();
    await this.#place.drained([this.#source], async () => {
      if (this.job.isCancelled || !this.job.isReady) return;
      this.#hold();
      this.#phase = 'frozen';
    });
    this.job.kick();
  }

  #hold(): void {
    const { dirtyBitmaps } = this.#source;
    // Small granules, so that a guest's write waits for little.
    const due = new DirtyBitmap(this.#dirty.sizeBytes, this.#unitBytes);
    due.merge(this.#dirty);
    due.enabled = false;
    dirtyBitmaps.splice(dirtyBitmaps.indexOf(this.#dirty), 1, due);
    this.#dirty = due;
    this.#held = new CopyBeforeWrite({
      due,
      sides: this.#sides,
      copy: (turn, stretch, isLost) =>
        this.#mover.copyFirst(turn, stretch, { unit: this.#unitBytes, isLost }),
      failed: (error) => {
        this.#heldFailure ??= asError(error);
        this.job.kick();
      },
      copied: (bytes) => {
        this.#offset += bytes;
      },
    });
    this.#place.guardSource(this.#held);
  }

  async #copyHeld(): Promise<void> {
    const held = this.#held;
    assert(held, 'a frozen mirror holds its point in time');
    const window = this.#window;
    const next = (offset: number): Stretch | undefined =>
      this.#dirty.nextDirty(offset, this.#dirty.sizeBytes, window.pieceBytes(this.#dirty.granularityBytes));
    for (let at = next(0); at; at = next(at.offset + at.lengthBytes)) {
      await window.room();
      if (this.#heldFailure !== undefined) break;
      const piece = at;
      window.launch(piece.lengthBytes, () => held.copy(piece.offset, piece.lengthBytes));
    }
    await window.finish();
    if (this.#heldFailure !== undefined) throw this.#heldFailure;
    assert(this.#dirty.isClean, 'a mirror that ends has copied all');
  }

  async prepare(): Promise<void> {
    if (this.#phase !== 'complete') return;
    const place = this.#place;
    const { replaces } = this.#plan;
    const moved = [this.#source, this.#target, ...(replaces ? [replaces] : [])];
    await place.section(moved, async () => {
      await this.#window.finish();
      await this.#copyRest();
      const backing = await this.#newBacking();
      place.thaw();
      try {
        await place.graph.transaction((transaction) => {
          if (backing) transaction.attach(this.#target.skipFilters(), 'backing', backing);
          this.#listPivot(transaction);
        });
      } catch (error) {
        if (backing) await place.graph.release([backing]);
        throw error;
      }
      place.removed();
      this.#pivoted = true;
    });
  }

  /** Nothing, unless the target failed to take what a guest wrote since all was copied. */
  async #copyRest(): Promise<void> {
    if (this.#dirty.isClean) return;
    for (let at = this.#dirty.nextDirty(0); at; at = this.#dirty.nextDirty(0)) {
      this.#copyingBytes += at.lengthBytes;
      this.#dirty.reset(at.offset, at.lengthBytes);
      await this.#copyTracked(at, true);
    }
    await this.#mover.flush();
  }

  #listPivot(transaction: GraphTransaction): void {
    const { replaces } = this.#plan;
    if (replaces && replaces !== this.#source) {
      transaction.replaceNode(replaces, this.#target);
      this.#place.listRemoval(transaction);
    } else {
      this.#place.listPivot(transaction, this.#target);
    }
  }

  /** The backing file that the target gets with the pivot, if it is to get one. */
  async #newBacking(): Promise<Node | undefined> {
    const { targetBacking, isNone } = this.#plan;
    const target = this.#target.skipFilters();
    if (target.children.has('backing')) return undefined;
    if (targetBacking === 'source-chain')
      return isNone ? this.#source : this.#source.skipFilters().children.get('backing')?.node;
    const named = target.instance.backing;
    if (targetBacking !== 'open' || !named) return undefined;
    const filename = resolveBackingOf(target, named.filename);
    const backing = await this.#place.opener.openImage(filename, named.format, { readOnly: true });
    target.automaticBacking = backing.filename;
    return backing;
  }

  giveUp(): void {
    this.#place.giveUpCopy();
  }

  abort(): void {
    this.#held?.giveUp();
  }

  async clean(): Promise<void> {
    const source = this.#source;
    await this.#place.remove();
    const index = source.dirtyBitmaps.indexOf(this.#dirty);
    if (index >= 0) source.dirtyBitmaps.splice(index, 1);
    await this.#place.close(this.#pivoted ? [source] : [this.#target]);
  }
}
