import { alignDown } from '../base/align.js';
import { failureOf } from '../base/async.js';
import { isUnsupported } from '../base/error.js';
import type { BlockBackend } from '../block/backend.js';
import type { Change, ChangeGate } from '../block/change-gate.js';
import { type DirtyBitmap, roundOut, type Stretch } from '../block/dirty-bitmap.js';
import type { RangeLock } from '../block/range-lock.js';
import { Flag, withoutFlag } from '../block/request.js';
import type { Mover } from './block-copy.js';
import { AWAITED_BYTES, type CopyTurn, takeTurn } from '../block/copy-turn.js';

export interface WriteToBothOptions {
  /** Where the target lacks something of the source. */
  readonly dirty: DirtyBitmap;
  /** Ranges that are on their way to the target. */
  readonly locks: RangeLock;
  readonly source: BlockBackend;
  readonly target: BlockBackend;
  readonly mover: Mover;
  /** Divides a granule. */
  readonly unitBytes: number;
  /** The target would fill up what is written of a unit with zeroes: it lacks its backing file. */
  readonly fillsUnits: boolean;
  /** Units go to the target whole, whatever was changed of them: what is there is known by its units. */
  readonly copiesUnits: boolean;
  /** The target did not take a change, or not durably: it stays dirty. */
  readonly failed: (error: unknown) => void;
  readonly written: (bytes: number) => void;
  /** All that was written to the target is about to be durable, or `failed` is told. */
  readonly flushes: () => void;
  /** Copies what is dirty of a stretch, request by request, until the job rests or a drained section waits for the guest. */
  readonly copyLeft: (stretch: Stretch) => Promise<void>;
  /** The job rests: what guests change is copied when it goes on. */
  readonly rests: () => boolean;
}

/** What the guest changes goes to source and target before it hears that it is done. */
export class WriteToBoth implements ChangeGate {
  readonly #options: WriteToBothOptions;
  /** What is to be copied first is all marked dirty. */
  isMarked = false;
  /** What the guest flushes is durable in the target too. */
  flushesBoth = false;

  constructor(options: WriteToBothOptions) {
    this.#options = options;
  }

  isOpen(): boolean {
    return false;
  }

  async run(change: Change, forward: () => Promise<void>): Promise<void> {
    const { dirty, locks, source, target, failed, rests, copyLeft } = this.#options;
    const whole = roundOut(change.offset, change.lengthBytes, dirty.granularityBytes);
    if (rests()) return this.#runAlone(whole, forward);
    const turn = await takeTurn(locks, whole, { source, target }, true);
    let left: Stretch | undefined;
    try {
      left = await this.#changeBoth(change, forward, turn);
    } finally {
      turn.end();
    }
    if (left) await copyLeft(left).catch(failed);
  }

  /** Behind changes of the same place that go to both sides still: what this one makes dirty stays so. */
  async #runAlone({ offset, lengthBytes }: Stretch, forward: () => Promise<void>): Promise<void> {
    const release = await this.#options.locks.lockAhead(offset, lengthBytes);
    try {
      await forward();
    } finally {
      release();
    }
  }

  /** Answers what of it the target lacks still, dirty; of what has failed, nobody waits for that. */
  async #changeBoth(
    change: Change,
    forward: () => Promise<void>,
    turn: CopyTurn,
  ): Promise<Stretch | undefined> {
    const { dirty, failed, written } = this.#options;
    const { offset, lengthBytes } = change;
    const end = offset + lengthBytes;
    // A granule that the change covers in part stays dirty when the rest of it is, or may yet be marked.
    const isDirty = (at: number): boolean => !this.isMarked || dirty.isDirty(at);
    const headDirty = offset % dirty.granularityBytes !== 0 && isDirty(offset);
    const cutTail = end < dirty.sizeBytes && end % dirty.granularityBytes !== 0;
    const tailDirty = cutTail && isDirty(end - 1);
    const failure = await failureOf(forward);
    let doneEnd = end;
    try {
      // A change that failed may have been made in part. Left dirty, a guest that tries on and on would keep the job.
      const done = failure ? this.#copy(change, turn) : this.#changeTarget(change, turn);
      doneEnd = Math.min(end, await done);
      dirty.reset(offset, doneEnd - offset);
      if (headDirty) dirty.set(offset, 1);
      if (tailDirty) dirty.set(end - 1, 1);
      dirty.set(doneEnd, end - doneEnd);
      if (!failure) written(doneEnd - offset);
    } catch (error) {
      failed(error);
    }
    if (failure) throw failure.error;
    return doneEnd < end ? { offset: doneEnd, lengthBytes: end - doneEnd } : undefined;
  }

  async flush(forward: () => Promise<void>): Promise<void> {
    await forward();
    if (!this.flushesBoth) return;
    this.#options.flushes();
    try {
      await this.#options.target.flush();
    } catch (error) {
      this.#options.failed(error);
    }
  }

  /** Up to where the target has the change: all of it, but for a long one that costs data. */
  async #changeTarget(change: Change, turn: CopyTurn): Promise<number> {
    const { target, fillsUnits, copiesUnits } = this.#options;
    const { offset, lengthBytes } = change;
    const units = this.#units(change);
    const isWhole = units.offset === offset && units.lengthBytes === lengthBytes;
    if (change.kind === 'discard' || copiesUnits || (fillsUnits && !isWhole)) return this.#copy(change, turn);
    // Zeroes are to be the target's own where it is to get a backing file.
    if (change.kind === 'zeroes' && fillsUnits) return this.#copy(change, turn);
    if (change.kind === 'zeroes') return this.#zeroTarget(change);
    await target.write(offset, change.buffer, change.flags);
    return offset + lengthBytes;
  }

  /** What was cheap for the source need not be for the target. */
  async #zeroTarget({ offset, lengthBytes, flags }: Change & { kind: 'zeroes' }): Promise<number> {
    const { target, unitBytes } = this.#options;
    const end = offset + lengthBytes;
    const plain = withoutFlag(flags, Flag.noFallback);
    const most = Math.max(AWAITED_BYTES, unitBytes);
    const first = lengthBytes > most ? alignDown(offset + most, unitBytes) : end;
    await target.writeZeroes(offset, first - offset, plain);
    const last = alignDown(end, unitBytes);
    if (last <= first) return first;
    try {
      await target.writeZeroes(first, last - first, plain | Flag.noFallback);
      return last;
    } catch (error) {
      if (!isUnsupported(error)) throw error;
      return first;
    }
  }

  /** Whole units around a change. */
  #units({ offset, lengthBytes }: Change): Stretch {
    const { dirty, unitBytes } = this.#options;
    const around = roundOut(offset, lengthBytes, unitBytes);
    return { ...around, lengthBytes: Math.min(around.lengthBytes, dirty.sizeBytes - around.offset) };
  }

  /** Up to where: what others may have to wait for is bounded, but for a write, which is no longer than its guest's request. */
  async #copy(change: Change, turn: CopyTurn): Promise<number> {
    const { mover, unitBytes } = this.#options;
    const { offset, lengthBytes } = this.#units(change);
    const isBounded = change.kind !== 'write';
    const most = isBounded ? Math.min(lengthBytes, Math.max(AWAITED_BYTES, unitBytes)) : lengthBytes;
    let done = 0;
    while (done < most) {
      const rest = { offset: offset + done, lengthBytes: most - done };
      done += await mover.copyFirst(turn, rest, { unit: unitBytes });
    }
    while (done < lengthBytes) {
      const rest = { offset: offset + done, lengthBytes: lengthBytes - done };
      const cheap = await mover.zeroQuickly(rest, unitBytes);
      if (cheap === 0) break;
      done += cheap;
    }
    return offset + done;
  }
}
