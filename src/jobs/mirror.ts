import { assert } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import type { BlockBackend } from '../block/backend.js';
import { assertBackingCertainAbove } from '../block/backing-reference.js';
import { DirtyBitmap, roundOut, type Stretch } from '../block/dirty-bitmap.js';
import { resolveBackingOf } from '../block/full-filename.js';
import type { ChainStatus } from '../block/chain-status.js';
import type { Change, ChangeGate } from '../block/change-gate.js';
import { Node } from '../block/node.js';
import { RangeLock } from '../block/range-lock.js';
import type { GraphTransaction } from '../block/transaction.js';
import { CopyWindow, Mover, ZERO_BYTES } from './block-copy.js';
import { growBase } from './commit.js';
import { CopyBeforeWrite } from './copy-before-write.js';
import { asError, type Job, type JobDriver } from './job.js';
import { ALL_PERMISSIONS, isInChain, JobPlace, type JobSurroundings, Permission } from './job-graph.js';
import type { MirrorPlan } from './mirror-plan.js';

/** How often a READY mirror looks for what the guest wrote. */
const READY_SLEEP_MS = 100;
/** A guest that writes faster than the mirror copies: after so many rounds it is held back for the rest. */
const ROUNDS_BEFORE_HOLDING = 4;
/** Most that is copied while guests are held back. */
const HELD_BYTES = 16 * MiB;

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
  readonly #dirty: DirtyBitmap;
  readonly #window: CopyWindow;
  readonly #mover: Mover;
  /** Ranges that are on their way to the target. */
  readonly #copying = new RangeLock();
  #cursor = 0;
  /** What is to be copied first is all marked dirty. */
  #isMarked = false;
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
    this.#sourceBackend = place.backend(Permission.consistentRead, ALL_PERMISSIONS);
    this.#targetBackend = plan.targetIsBase
      ? place.backend(
          Permission.consistentRead + Permission.write + Permission.resize,
          Permission.consistentRead + Permission.writeUnchanged,
          { isUser: true },
        )
      : place.backend(Permission.write, Permission.writeUnchanged + Permission.consistentRead, {
          isUser: true,
        });
    this.#dirty = new DirtyBitmap(plan.source.lengthBytes, plan.granularityBytes);
    this.#window = new CopyWindow(job, plan.windowBytes);
    this.#mover = new Mover({
      job,
      source: this.#sourceBackend,
      target: this.#targetBackend,
      unmap: plan.unmap,
      skipKnownZeroes: plan.targetBacking === 'leave',
      lowest: plan.targetIsBase ? plan.lowest : undefined,
    });
  }

  get offsetBytes(): number {
    return this.#offset;
  }

  get totalBytes(): number {
    return this.#offset + this.#copyingBytes + this.#dirty.dirtyBytes;
  }

  async insert(): Promise<void> {
    const place = this.#place;
    const { targetIsBase, blocked, type } = this.#plan;
    const source = this.#source;
    const target = this.#target;
    if (targetIsBase) assertBackingCertainAbove(place.graph, target);
    await place.drained([source, target], async () => {
      await place.insert(
        [
          [this.#sourceBackend, source],
          [this.#targetBackend, target],
        ],
        (transaction) => {
          if (targetIsBase) place.listWritable(transaction, target);
        },
        (edge) => isInChain(edge.parent, target),
      );
      source.dirtyBitmaps.push(this.#dirty);
    });
    place.freezeChain(place.filter, targetIsBase ? target : source);
    place.block(type, blocked);
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
      this.#isMarked = true;
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
    if (writeBlocking) {
      await this.#place.section([source], async () => {
        this.#place.guardSource(this.#mirrorGate);
      });
    }
    if (!lowest) return;
    const size = source.lengthBytes;
    if (whole && !targetIsNew && !targetIsBase) {
      const zeroFirst = this.#target.modes.discard === 'unmap' && this.#plan.unmap;
      if (!zeroFirst) {
        this.#dirty.setAll();
        return;
      }
      await this.#mover.zero(0, size);
    }
    for (let at = 0; at < size;) {
      await this.#window.room();
      const status = await source.statusThroughChain(at, size - at, lowest);
      if (status.allocated) this.#dirty.set(at, status.lengthBytes);
      at += status.lengthBytes;
    }
  }

  /** Copies until nothing is dirty: READY. A guest that keeps ahead is held back for the last, small rest. */
  async #catchUp(): Promise<void> {
    for (let round = 0; ; round++) {
      await this.#copyRound();
      await this.#window.finish();
      if (this.#dirty.isClean) return this.job.becomeReady();
      if (round < ROUNDS_BEFORE_HOLDING || this.#dirty.dirtyBytes > HELD_BYTES) continue;
      await this.#place.section([this.#source], async () => {
        await this.#copyAllNow();
        this.job.becomeReady();
      });
      return;
    }
  }

  /** Goes once through the bitmap and copies what is dirty. */
  async #copyRound(): Promise<void> {
    this.#cursor = 0;
    while (this.#cursor < this.#dirty.sizeBytes) {
      const stretch = this.#dirty.nextDirty(this.#cursor, this.#dirty.sizeBytes, ZERO_BYTES);
      if (!stretch) return;
      await this.#window.room(() => this.#phase === 'freezing');
      if (this.#phase === 'freezing' || this.#phase === 'frozen') return;
      const piece = await this.#pieceOf(stretch);
      // While this waited, a freeze may have begun; then the piece stays dirty.
      if (this.#mustStop()) return;
      this.#launch(piece);
      this.#cursor = piece.offset + piece.lengthBytes;
    }
  }

  #mustStop(): boolean {
    return this.#phase === 'freezing' || this.#phase === 'frozen';
  }

  /** A first part of a dirty stretch that is handled at once: long when the source says that it is zero. */
  async #pieceOf({ offset, lengthBytes }: Stretch): Promise<Piece> {
    const { granularityBytes } = this.#dirty;
    const most = Math.min(lengthBytes, this.#window.pieceBytes(granularityBytes));
    const longest = Math.min(lengthBytes, ZERO_BYTES);
    const status = await this.#source.statusThroughChain(offset, longest, this.#plan.lowest);
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

  async #copyTracked({ offset, lengthBytes, data }: Stretch & { data?: ChainStatus }): Promise<void> {
    const release = await this.#copying.lockExclusive(offset, lengthBytes);
    try {
      await this.#mover.copy(offset, lengthBytes, data);
      this.#offset += lengthBytes;
    } catch (error) {
      this.#dirty.set(offset, lengthBytes);
      throw error;
    } finally {
      this.#copyingBytes -= lengthBytes;
      release();
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
        // Most of it before guests are held back.
        for (let round = 0; round < ROUNDS_BEFORE_HOLDING && !this.#dirty.isClean; round++) {
          await this.#copyRound();
          await this.#window.finish();
        }
        await this.#mover.flush();
        return;
      } else {
        if (!this.#dirty.isClean) await this.#copyRound();
        await this.#window.finish();
        if (this.#phase === 'track') await job.sleep(READY_SLEEP_MS);
      }
    }
  }

  /** Copies all that is dirty without pause; guests are held back. */
  async #copyAllNow(): Promise<void> {
    await this.#window.finish();
    const next = (offset: number): Stretch | undefined =>
      this.#dirty.nextDirty(offset, this.#dirty.sizeBytes, HELD_BYTES);
    for (let piece = next(0); piece; piece = next(piece.offset + piece.lengthBytes)) {
      this.#copyingBytes += piece.lengthBytes;
      this.#dirty.reset(piece.offset, piece.lengthBytes);
      await this.#copyTracked(piece);
    }
  }

  // ---- ends

  complete(): void {
    this.#phase = 'complete';
  }

  /**
   * A soft cancel: the target is to hold this moment. Guests are held back until pieces in flight have landed; from
   * then on what is still dirty is copied before the guest changes it, so that the end does not depend on the guest.
   */
  async freeze(): Promise<void> {
    this.#phase = 'freezing';
    await this.#place.drained([this.#source], async () => {
      await this.#window.quiet();
      if (this.job.isCancelled || !this.job.isReady) return;
      this.#dirty.enabled = false;
      this.#held = new CopyBeforeWrite({
        due: this.#dirty,
        copy: (offset, lengthBytes) => this.#mover.copy(offset, lengthBytes),
        failed: (error) => {
          this.#heldFailure ??= asError(error);
          this.job.kick();
        },
        copied: (bytes) => {
          this.#offset += bytes;
        },
      });
      this.#place.guardSource(this.#held);
      this.#phase = 'frozen';
    });
    this.job.kick();
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
      await this.#copyAllNow();
      await this.#mover.flush();
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
    if (targetBacking === 'leave' || target.children.has('backing')) return undefined;
    if (targetBacking === 'source-chain')
      return isNone ? this.#source : this.#source.skipFilters().children.get('backing')?.node;
    const named = target.instance.backing;
    if (!named) return undefined;
    const filename = resolveBackingOf(target, named.filename);
    const backing = await this.#place.opener.openImage(filename, named.format, { readOnly: true });
    target.automaticBacking = backing.filename;
    return backing;
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

  // ---- write-blocking

  /** copy-mode=write-blocking: what the guest changes goes to both sides before it hears that it is done. */
  readonly #mirrorGate: ChangeGate = {
    isOpen: () => false,
    run: (change, forward) => this.#changeBoth(change, forward),
  };

  async #changeBoth(change: Change, forward: () => Promise<void>): Promise<void> {
    const dirty = this.#dirty;
    const { offset, lengthBytes } = change;
    const whole = roundOut(offset, lengthBytes, dirty.granularityBytes);
    const release = await this.#copying.lockExclusive(whole.offset, whole.lengthBytes);
    try {
      // A granule that the change covers in part stays dirty when the rest of it is, or may yet be marked.
      const isDirty = (at: number): boolean => !this.#isMarked || dirty.isDirty(at);
      const headDirty = offset > whole.offset && isDirty(offset);
      const last = offset + lengthBytes - 1;
      const end = offset + lengthBytes;
      const cutTail = end < dirty.sizeBytes && end % dirty.granularityBytes !== 0;
      const tailDirty = cutTail && isDirty(last);
      const isWhole = offset === whole.offset && !cutTail;
      await forward();
      try {
        await this.#changeTarget(change, isWhole);
      } catch (error) {
        this.#window.launch(0, () => Promise.reject(this.job.ioError('write', error)));
        this.job.kick();
        return;
      }
      dirty.reset(offset, lengthBytes);
      if (headDirty) dirty.set(offset, 1);
      if (tailDirty) dirty.set(last, 1);
      this.#offset += lengthBytes;
    } finally {
      release();
    }
  }

  async #changeTarget(change: Change, isWhole: boolean): Promise<void> {
    const target = this.#targetBackend;
    if (!isWhole && this.#plan.targetBacking !== 'leave') return this.#copyGranules(change);
    if (change.kind === 'write') return target.write(change.offset, change.buffer, change.flags);
    if (change.kind === 'zeroes') return target.writeZeroes(change.offset, change.lengthBytes, change.flags);
    return this.#mover.copy(change.offset, change.lengthBytes);
  }

  /** Without its backing file the target would fill up a cluster that is written in part with zeroes. */
  #copyGranules({ offset, lengthBytes }: Change): Promise<void> {
    const { granularityBytes, sizeBytes } = this.#dirty;
    const whole = roundOut(offset, lengthBytes, granularityBytes);
    return this.#mover.copy(whole.offset, Math.min(whole.lengthBytes, sizeBytes - whole.offset));
  }
}
