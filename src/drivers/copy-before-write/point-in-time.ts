import { assert } from '../../base/assert.js';
import { deferred } from '../../base/async.js';
import { errnoError } from '../../base/error.js';
import { alignDown } from '../../base/align.js';
import type { DirtyBitmap, Stretch } from '../../block/dirty-bitmap.js';
import { roundOut } from '../../block/dirty-bitmap.js';
import { RangeLock } from '../../block/range-lock.js';
import type { Change, ChangeGate } from '../../block/change-gate.js';
import type { HostClock } from '../../host/host.js';
import { AWAITED_BYTES, type CopySides, type CopyTurn, takeTurn } from '../../block/copy-turn.js';

export interface CopyBeforeWriteOptions {
  /** What is still to be copied; granules are cleared once they are in the target. */
  due: DirtyBitmap;
  readonly sides: CopySides;
  /**
   * Copies a first part of a stretch in one go: whole granules. Answers how long it is. `forGuest`: a guest's change
   * waits for it; what fails now is not tried again.
   */
  readonly copy: (turn: CopyTurn, stretch: Stretch, forGuest: boolean) => Promise<number>;
  /** What a copy that fails breaks, when a guest's change waits for it: the change, or the point in time. */
  readonly breaks: 'guest-write' | 'snapshot';
  /** The point in time is lost: the guest's change has gone on without the copy. */
  readonly failed: (error: unknown) => void;
  /** How long a guest's change waits at most; default: as long as it takes. */
  readonly timeout?: { readonly clock: HostClock; readonly ms: number } | undefined;
  readonly copied?: (bytes: number, offset: number) => void;
  /** What guests may have changed since the point in time: marked before they do. */
  readonly changed?: DirtyBitmap;
}

/**
 * Holds a point in time: whatever is due goes to the target before the guest changes it. A guest's change waits for
 * the copy of its own granules, and for at most one request that was on its way there.
 */
export class CopyBeforeWrite implements ChangeGate {
  readonly #options: CopyBeforeWriteOptions;
  /** Exclusive: what is on its way to the target. */
  readonly #copies = new RangeLock();
  /** Shared: who reads the point in time. Exclusive, and never for long: who it is that holds it changes. */
  readonly #readers = new RangeLock();
  #given = false;

  constructor(options: CopyBeforeWriteOptions) {
    this.#options = options;
  }

  /** Copies are on their way: also those for which nobody waits any more. */
  get isCopying(): boolean {
    return !this.#copies.isIdle;
  }

  isOpen(offset: number, lengthBytes: number): boolean {
    if (this.#given) return true;
    const { due, changed } = this.#options;
    if (due.nextDirty(offset, Math.min(offset + lengthBytes, due.sizeBytes))) return false;
    changed?.set(offset, lengthBytes);
    return true;
  }

  async run(change: Change, forward: () => Promise<void>): Promise<void> {
    while (!this.isOpen(change.offset, change.lengthBytes)) await this.copyFor(change);
    await forward();
  }

  /** Copies what is due of what a guest is about to change; where that fails, the change or the point in time is given up. */
  async copyFor({ offset, lengthBytes }: Stretch): Promise<void> {
    try {
      await this.#inTime(this.#copyDue(offset, lengthBytes, true));
    } catch (error) {
      if (this.#given) return;
      if (this.#options.breaks === 'guest-write') throw error;
      this.giveUp();
      this.#options.failed(error);
    }
  }

  /** Some of a stretch is to be copied. */
  isDue({ offset, lengthBytes }: Stretch): boolean {
    const { due } = this.#options;
    return due.nextDirty(offset, Math.min(offset + lengthBytes, due.sizeBytes)) !== undefined;
  }

  /** Errors: those of `copy`; ETIMEDOUT, and then the copy goes on by itself. */
  async #inTime(copy: Promise<void>): Promise<void> {
    const { timeout } = this.#options;
    if (!timeout) return copy;
    const ended = deferred();
    const timer = timeout.clock.setTimer(timeout.ms, () => ended.reject(errnoError('ETIMEDOUT')));
    copy.then(
      () => ended.resolve(),
      (error: unknown) => ended.reject(error),
    );
    try {
      await ended.promise;
    } finally {
      timer.cancel();
    }
  }

  /**
   * Runs `read` on a first part of a stretch, of which the guest changes nothing meanwhile that is not copied. It is told
   * who holds the point in time there, and how long that part is. It does not wait for what is on its way to the target.
   */
  async readFirst(
    offset: number,
    lengthBytes: number,
    read: (holder: 'file' | 'target', lengthBytes: number) => Promise<void>,
  ): Promise<number> {
    for (;;) {
      const { holder, part } = this.#holderOf(offset, lengthBytes);
      const release = await this.#readers.lockShared(offset, part);
      try {
        const now = this.#holderOf(offset, part);
        if (now.holder !== holder || now.part !== part) continue;
        await read(holder, part);
        return part;
      } finally {
        release();
      }
    }
  }

  #holderOf(offset: number, lengthBytes: number): { holder: 'file' | 'target'; part: number } {
    const { due } = this.#options;
    const end = offset + lengthBytes;
    if (due.isDirty(offset)) return { holder: 'file', part: due.nextClean(offset, end) - offset };
    return { holder: 'target', part: (due.nextDirty(offset, end)?.offset ?? end) - offset };
  }

  /**
   * Copies granules, all of them due, by `attempt`, which does not wait and answers how long a first part it copied.
   * False: it was not all, and copy() must be used.
   */
  tryCopy(offset: number, lengthBytes: number, attempt: () => number): boolean {
    const { due, copied } = this.#options;
    if (!this.#isAllOurs(offset, lengthBytes)) return false;
    const done = attempt();
    const whole = done === lengthBytes ? done : alignDown(done, due.granularityBytes);
    if (whole > 0) {
      due.reset(offset, whole);
      copied?.(whole, offset);
    }
    return whole === lengthBytes;
  }

  /**
   * Of granules, all of them due, the caller knows the content: it sees to the target, and the guest may change them.
   * False: somebody copies some of them.
   */
  tryRelease(offset: number, lengthBytes: number): boolean {
    if (!this.#isAllOurs(offset, lengthBytes)) return false;
    this.#options.due.reset(offset, lengthBytes);
    return true;
  }

  #isAllOurs(offset: number, lengthBytes: number): boolean {
    if (this.#given) return false;
    for (const locks of [this.#copies, this.#readers])
      if (locks.conflictsExclusive(offset, lengthBytes)) return false;
    return this.#options.due.nextClean(offset, offset + lengthBytes) === offset + lengthBytes;
  }

  /** Copies what is still due of a stretch, whole granules. */
  copy(offset: number, lengthBytes: number): Promise<void> {
    return this.#copyDue(offset, lengthBytes, false);
  }

  /** Request by request: whoever waits for one of them need not wait for the next. */
  async #copyDue(offset: number, lengthBytes: number, forGuest: boolean): Promise<void> {
    const { due } = this.#options;
    const whole = roundOut(offset, lengthBytes, due.granularityBytes);
    const end = Math.min(whole.offset + whole.lengthBytes, due.sizeBytes);
    let at = whole.offset;
    while (!this.#given) {
      const stretch = at < end ? due.nextDirty(at, end, AWAITED_BYTES) : undefined;
      if (!stretch) return;
      at = await this.#copyRequest(stretch, forGuest);
    }
  }

  /** Answers up to where nothing is due. */
  async #copyRequest({ offset, lengthBytes }: Stretch, forGuest: boolean): Promise<number> {
    const { due, copy, copied, sides } = this.#options;
    const turn = await takeTurn(this.#copies, { offset, lengthBytes }, sides, forGuest);
    try {
      // Others may have copied some of it meanwhile.
      const still = due.nextDirty(offset, offset + lengthBytes, AWAITED_BYTES);
      if (!still || this.#given) return offset + lengthBytes;
      const bytes = await copy(turn, still, forGuest);
      const isWhole = bytes % due.granularityBytes === 0 || bytes === still.lengthBytes;
      assert(isWhole, () => `${bytes} bytes are no whole granules: the rest of the last one would be lost`);
      // Guests may have changed it before it was read.
      if (this.#given) return offset + lengthBytes;
      await this.#release(still.offset, bytes);
      copied?.(bytes, still.offset);
      return still.offset + bytes;
    } finally {
      turn.end();
    }
  }

  /**
   * The rest of a stretch is not to be copied; answers how much that was. Waits for copies under way: their writers may
   * not be overtaken.
   */
  async skip(offset: number, lengthBytes: number): Promise<number> {
    const release = await this.#copies.lockExclusive(offset, lengthBytes);
    const cleared = await this.#release(offset, lengthBytes);
    release();
    return cleared;
  }

  /** The guest may change the stretch from now on: whoever reads its point in time has done so. Answers how much was due. */
  async #release(offset: number, lengthBytes: number): Promise<number> {
    const { due } = this.#options;
    const release = await this.#readers.lockExclusive(offset, lengthBytes);
    const before = due.dirtyBytes;
    due.reset(offset, lengthBytes);
    release();
    return before - due.dirtyBytes;
  }

  /** Nothing is held any more: guests' changes pass. */
  giveUp(): void {
    this.#given = true;
  }
}
