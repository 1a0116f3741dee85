import type { BlockBackend } from '../block/backend.js';
import type { Change, ChangeGate } from '../block/change-gate.js';
import { type DirtyBitmap, roundOut, type Stretch } from '../block/dirty-bitmap.js';
import type { RangeLock } from '../block/range-lock.js';
import { Flag, withoutFlag } from '../block/request.js';
import type { Mover } from './block-copy.js';
import { type CopyTurn, takeTurn } from '../block/copy-turn.js';

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
    const { dirty, locks, source, target, failed, written } = this.#options;
    const { offset, lengthBytes } = change;
    const whole = roundOut(offset, lengthBytes, dirty.granularityBytes);
    const turn = await takeTurn(locks, whole, { source, target }, true);
    try {
      // A granule that the change covers in part stays dirty when the rest of it is, or may yet be marked.
      const isDirty = (at: number): boolean => !this.isMarked || dirty.isDirty(at);
      const headDirty = offset > whole.offset && isDirty(offset);
      const last = offset + lengthBytes - 1;
      const end = offset + lengthBytes;
      const cutTail = end < dirty.sizeBytes && end % dirty.granularityBytes !== 0;
      const tailDirty = cutTail && isDirty(last);
      const failure = await failureOf(forward);
      try {
        // A change that failed may have been made in part. Left dirty, a guest that tries on and on would keep the job.
        if (failure) await this.#copy(this.#units(change), turn);
        else await this.#changeTarget(change, turn);
        dirty.reset(offset, lengthBytes);
        if (headDirty) dirty.set(offset, 1);
        if (tailDirty) dirty.set(last, 1);
        if (!failure) written(lengthBytes);
      } catch (error) {
        failed(error);
      }
      if (failure) throw failure.error;
    } finally {
      turn.end();
    }
  }

  async flush(forward: () => Promise<void>): Promise<void> {
    await forward();
    if (!this.flushesBoth) return;
    try {
      await this.#options.target.flush();
    } catch (error) {
      this.#options.failed(error);
    }
  }

  async #changeTarget(change: Change, turn: CopyTurn): Promise<void> {
    const { target, fillsUnits, copiesUnits } = this.#options;
    const { offset, lengthBytes } = change;
    const units = this.#units(change);
    const isWhole = units.offset === offset && units.lengthBytes === lengthBytes;
    if (copiesUnits || (fillsUnits && !isWhole)) return this.#copy(units, turn);
    if (change.kind === 'write') return target.write(offset, change.buffer, change.flags);
    // What was cheap for the source need not be for the target.
    if (change.kind === 'zeroes')
      return target.writeZeroes(offset, lengthBytes, withoutFlag(change.flags, Flag.noFallback));
    return this.#copy(units, turn);
  }

  /** Whole units around a change. */
  #units({ offset, lengthBytes }: Change): Stretch {
    const { dirty, unitBytes } = this.#options;
    const around = roundOut(offset, lengthBytes, unitBytes);
    return { ...around, lengthBytes: Math.min(around.lengthBytes, dirty.sizeBytes - around.offset) };
  }

  async #copy({ offset, lengthBytes }: Stretch, turn: CopyTurn): Promise<void> {
    const { mover, unitBytes } = this.#options;
    for (let done = 0; done < lengthBytes;) {
      const rest = { offset: offset + done, lengthBytes: lengthBytes - done };
      done += await mover.copyFirst(turn, rest, { unit: unitBytes });
    }
  }
}

/** What an attempt failed with. */
async function failureOf(attempt: () => Promise<void>): Promise<{ error: unknown } | undefined> {
  try {
    await attempt();
    return undefined;
  } catch (error) {
    return { error };
  }
}
