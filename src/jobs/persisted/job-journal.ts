import { AsyncMutex, Notifier } from '../../base/async.js';
import { KiB, MiB } from '../../base/limits.js';
import type { ChangeGate } from '../../block/change-gate.js';
import { DirtyBitmap, roundOut, type Stretch } from '../../block/dirty-bitmap.js';
import type { Host, HostTimer } from '../../host/host.js';
import { JournalFile } from './journal-file.js';
import { asJson, headOf, type JournalHead, speedInPlan, wallMs } from './journal-head.js';

/** How often a journal tells that its job lives, and brings to disk what was copied. */
export const HEARTBEAT_MS = 1000;
/** So much may be copied, of the disk's part below, before the target is flushed for the journal. */
const MIN_UNFLUSHED_BYTES = 512 * KiB;
const MAX_UNFLUSHED_BYTES = 64 * MiB;
const UNFLUSHED_SHARE = 1 / 8000;
/** What a guest's change makes dirty in the journal at least, so that it does not wait for the journal each time. */
const AREA_BYTES = MiB;

/** Stretches that are cleared and not known to be durable, at most; more are one. */
const MAX_UNCERTAIN = 256;

/** What the job tells of its target. */
export interface JournalTarget {
  flush(): Promise<void>;
  /** What was copied is to be found in the source again, too. */
  flushSource(): Promise<void>;
  /** Some of it the target lacks, or it is on its way. */
  isDirty(offset: number): boolean;
  /** The journal cannot be written any more, and is gone. */
  broken(error: unknown): void;
}

/**
 * What is left of a job, on disk. A bit is cleared after source and target were flushed, and set before a guest may change the
 * source there: whoever reads it, at any moment, finds at least what the target lacks.
 */
export class JobJournal {
  readonly head: JournalHead;
  /** It goes on with what an earlier job left. */
  readonly isResumed: boolean;
  /** Of a backup: its point in time is when it goes on, not that of before. */
  isOfNewMoment = false;
  /** As it is on disk, or more. */
  readonly left: DirtyBitmap;
  readonly #host: Host;
  readonly #file: JournalFile;
  readonly #writes = new AsyncMutex();
  /** In the target, not known to be durable; and those for which a flush is under way. */
  #copied: DirtyBitmap;
  #flushing: DirtyBitmap;
  /** Guests' changes under way: what they touch stays. */
  readonly #changing = new Set<Stretch>();
  #copiedBytes = 0;
  /** Since it was flushed. */
  #isSourceChanged = true;
  #target: JournalTarget | undefined;
  #timer: HostTimer | undefined;
  /** Resolves to what went wrong, if something did. */
  #checkpoint: Promise<unknown> | undefined;
  /** Cleared in `left`; on disk they may not be. */
  #uncertain: Stretch[] = [];
  /** Guests that wait in secure(). */
  #waiting = 0;
  /** Something was copied, or nobody waits for that any more. */
  readonly #news = new Notifier();
  #isClosed = false;
  /** Bits on their way to disk, that guests wait for. */
  #setting: Promise<void> | undefined;

  private constructor(
    host: Host,
    file: JournalFile,
    { head, left, isResumed }: { head: JournalHead; left: DirtyBitmap; isResumed: boolean },
  ) {
    this.isResumed = isResumed;
    this.#host = host;
    this.#file = file;
    this.head = head;
    this.left = left;
    this.#copied = new DirtyBitmap(left.sizeBytes, left.granularityBytes);
    this.#flushing = new DirtyBitmap(left.sizeBytes, left.granularityBytes);
  }

  get path(): string {
    return this.#file.path;
  }

  /** Errors: exists; those of files. */
  static async create(
    host: Host,
    path: string,
    head: Omit<JournalHead, 'state' | 'aliveMs' | 'begunMs'>,
  ): Promise<JobJournal> {
    const left = new DirtyBitmap(head.diskBytes, head.granularityBytes);
    left.setAll();
    const nowMs = wallMs(host);
    const whole: JournalHead = { ...head, state: 'running', aliveMs: nowMs, begunMs: nowMs };
    const file = await JournalFile.create(host, path, asJson(whole), left);
    return new JobJournal(host, file, { head: whole, left, isResumed: false });
  }

  /** To go on with. Errors: corrupt; busy; those of files. */
  static async open(host: Host, path: string): Promise<JobJournal> {
    const { journal, head, left } = await JournalFile.open(host, path, headOf);
    return new JobJournal(host, journal, { head: headOf(head), left, isResumed: true });
  }

  /** Its head, of a job that may be running. Errors: as of open(). */
  static async look(host: Host, path: string): Promise<JournalHead & { leftBytes: number }> {
    const { journal, head, left } = await JournalFile.open(host, path, headOf, false);
    await journal.close();
    const told = headOf(head);
    // Bits of what was copied last are not cleared where the end makes them all pointless.
    const isOver = told.state === 'ending' || told.state === 'completed';
    return { ...told, leftBytes: isOver ? 0 : left.dirtyBytes };
  }

  // ---- while the job works

  /** The job has its place; from now on checkpoints are made. */
  async begin(target: JournalTarget): Promise<void> {
    this.#target = target;
    delete this.head.error;
    try {
      // What guests wrote since it was kept, or what a new one has not to do.
      if (this.isResumed || this.left.nextClean(0) < this.left.sizeBytes)
        await this.#file.writeBits(this.left, { offset: 0, lengthBytes: this.left.sizeBytes });
      await this.#tell({ state: 'running' });
      this.#tick();
    } catch (error) {
      await this.#giveUp(error);
    }
  }

  #tick(): void {
    if (this.#isClosed) return;
    this.#timer = this.#host.clock.setTimer(HEARTBEAT_MS, () => {
      void this.checkpoint().finally(() => this.#tick());
    });
  }

  /** A copy begins there: whatever is known of it is out of date. */
  begins(offset: number, lengthBytes: number): void {
    this.#copied.reset(offset, lengthBytes);
    this.#flushing.reset(offset, lengthBytes);
  }

  /** Whole granules are in the target; so much of them may have to be brought to its disk. */
  copied(offset: number, lengthBytes: number, writtenBytes = lengthBytes): void {
    this.#copied.set(offset, lengthBytes);
    this.#copiedBytes += writtenBytes;
    this.#news.notify();
    if (this.#copiedBytes >= this.#mostUnflushed()) void this.checkpoint();
  }

  #mostUnflushed(): number {
    const share = this.left.sizeBytes * UNFLUSHED_SHARE;
    return Math.min(MAX_UNFLUSHED_BYTES, Math.max(MIN_UNFLUSHED_BYTES, share));
  }

  /** Flushes the target and clears what it then has for certain; where that fails, nothing is cleared. */
  async checkpoint(): Promise<void> {
    await this.#attempt();
  }

  #attempt(): Promise<unknown> {
    this.#checkpoint ??= this.#makeCheckpoint()
      .then(
        () => undefined,
        (error: unknown) => error,
      )
      .finally(() => (this.#checkpoint = undefined));
    return this.#checkpoint;
  }

  async #makeCheckpoint(): Promise<void> {
    const target = this.#target;
    if (!target || this.#isClosed) return;
    this.#copiedBytes = 0;
    [this.#flushing, this.#copied] = [this.#copied, this.#flushing];
    try {
      if (!this.#flushing.isClean) {
        if (this.#isSourceChanged) {
          this.#isSourceChanged = false;
          await target.flushSource();
        }
        await target.flush();
        this.#clearFlushed(target);
      }
      await this.#writeCleared();
    } finally {
      // What was not cleared is to be flushed again.
      this.#copied.merge(this.#flushing);
      this.#flushing.resetAll();
    }
  }

  #clearFlushed(target: JournalTarget): void {
    const { left } = this;
    const unit = left.granularityBytes;
    const done = this.#flushing;
    const cleared = this.#uncertain;
    for (let at = done.nextDirty(0); at; at = next(done, at)) {
      const end = at.offset + at.lengthBytes;
      for (let offset = at.offset; offset < end; offset += unit) {
        if (target.isDirty(offset) || this.#isChanging(offset)) continue;
        done.reset(offset, 1);
        if (!left.isDirty(offset)) continue;
        left.reset(offset, 1);
        const last = cleared.at(-1);
        if (last && last.offset + last.lengthBytes === offset) last.lengthBytes += unit;
        else cleared.push({ offset, lengthBytes: unit });
      }
    }
    if (cleared.length > MAX_UNCERTAIN)
      cleared.splice(0, Infinity, { offset: 0, lengthBytes: left.sizeBytes });
  }

  /** Durable, or it stays uncertain. Errors: JournalFailure. */
  async #writeCleared(): Promise<void> {
    const cleared = this.#uncertain;
    try {
      await this.#writes.run(async () => {
        for (const stretch of cleared) await this.#file.writeBits(this.left, stretch);
      });
      await this.#tell({});
      this.#uncertain = [];
    } catch (error) {
      throw new JournalFailure(error);
    }
  }

  #isChanging(offset: number): boolean {
    const end = offset + this.left.granularityBytes;
    for (const { offset: from, lengthBytes } of this.#changing)
      if (from < end && offset < from + lengthBytes) return true;
    return false;
  }

  /** Durable. */
  #tell(news: Partial<JournalHead>): Promise<void> {
    return this.#writes.run(async () => {
      if (this.#isClosed) return;
      // What guests change once it has failed, the journal does not know.
      const hadFailed = this.head.state === 'failed' && news.state !== 'running';
      Object.assign(this.head, news, hadFailed ? {} : { aliveMs: wallMs(this.#host) });
      await this.#file.writeHead(asJson(this.head));
      await this.#file.flush();
    });
  }

  // ---- a point in time

  /** Target and journal have a stretch, durably; or there is no journal any more to wait for. */
  isSecured({ offset, lengthBytes }: Stretch): boolean {
    if (this.#isClosed) return true;
    const end = offset + lengthBytes;
    const isUncertain = (one: Stretch): boolean => one.offset < end && offset < one.offset + one.lengthBytes;
    return this.left.nextDirty(offset, end) === undefined && !this.#uncertain.some(isUncertain);
  }

  /**
   * Before a guest changes what was copied, and nobody can copy it again: resolves when it is secured, or `isOver`. Errors:
   * those of the target's flush.
   */
  async secure(stretch: Stretch, isOver: () => boolean): Promise<void> {
    if (this.isSecured(stretch)) return;
    this.#waiting++;
    this.#news.notify();
    try {
      await this.#secure(stretch, isOver);
    } finally {
      this.#waiting--;
    }
  }

  get hasWaitingGuests(): boolean {
    return this.#waiting > 0;
  }

  /** Resolves when a guest comes to wait, or something else has happened. */
  untilNews(): Promise<void> {
    return this.#news.wait();
  }

  async #secure(stretch: Stretch, isOver: () => boolean): Promise<void> {
    while (!isOver() && !this.#isClosed && !this.isSecured(stretch)) {
      // One that is under way may have begun before the copy was made.
      await this.#checkpoint;
      if (isOver() || this.isSecured(stretch)) return;
      if (!this.#hasCopied(stretch)) {
        await this.#news.wait();
        continue;
      }
      const error = await this.#attempt();
      if (error instanceof JournalFailure) await this.#giveUp(error.cause);
      else if (error !== undefined) throw error as Error;
    }
  }

  /** All that is left of a stretch is in the target, or on its way through a checkpoint. */
  #hasCopied({ offset, lengthBytes }: Stretch): boolean {
    const { left } = this;
    const end = offset + lengthBytes;
    for (let at = left.nextDirty(offset, end); at; at = left.nextDirty(at.offset + at.lengthBytes, end)) {
      const stop = at.offset + at.lengthBytes;
      for (let one = at.offset; one < stop; one += left.granularityBytes)
        if (!this.#copied.isDirty(one) && !this.#flushing.isDirty(one)) return false;
      if (stop >= Math.min(end, left.sizeBytes)) break;
    }
    return true;
  }

  /** Whoever waits in secure() is to look whether it is over. */
  wake(): void {
    this.#news.notify();
  }

  /** Durable on return: from here on guests change the source without it being told here. */
  async abandon(): Promise<void> {
    await this.#tell({ state: 'failed' }).catch((error: unknown) => this.#giveUp(error));
  }

  /** Durably: whoever goes on with the job does so at this speed. */
  async speedChanged(bytesPerSecond: number | bigint): Promise<void> {
    const plan = { ...this.head.plan, speed: speedInPlan(bytesPerSecond) };
    await this.#tell({ plan }).catch((error: unknown) => this.#giveUp(error));
  }

  // ---- guests

  /** Stands before what else stands before the source's changes. `dirty`: what the job is to copy. */
  gate(dirty: () => DirtyBitmap, inner: ChangeGate | undefined, goesToBoth: boolean): ChangeGate {
    const isSet = (offset: number, lengthBytes: number): boolean =>
      this.#setting === undefined &&
      this.left.nextClean(offset, offset + lengthBytes) === offset + lengthBytes;
    return {
      // A bit that is set already is not to be cleared by a checkpoint that ends meanwhile.
      tracks: true,
      isOpen: (offset, lengthBytes) => {
        this.#isSourceChanged = true;
        return isSet(offset, lengthBytes) && (inner?.isOpen(offset, lengthBytes) ?? true);
      },
      run: async (change, forward) => {
        this.#isSourceChanged = true;
        const { offset, lengthBytes } = change;
        const stretch = { offset, lengthBytes };
        this.#changing.add(stretch);
        try {
          while (!this.#isClosed && !isSet(offset, lengthBytes)) await this.#set(stretch);
          this.begins(offset, lengthBytes);
          if (inner) await inner.run(change, forward);
          else await forward();
        } finally {
          this.#isSourceChanged = true;
          this.#changing.delete(stretch);
          if (goesToBoth) this.#settle(stretch, dirty());
        }
      },
      ...(inner?.flush && { flush: (forward) => inner.flush?.(forward) ?? forward() }),
    };
  }

  /** What went to both sides is in the target. */
  #settle({ offset, lengthBytes }: Stretch, dirty: DirtyBitmap): void {
    const { granularityBytes: unit, sizeBytes } = this.left;
    const whole = roundOut(offset, lengthBytes, unit);
    for (let at = whole.offset; at < Math.min(whole.offset + whole.lengthBytes, sizeBytes); at += unit)
      if (!dirty.isDirty(at) && !this.#isChanging(at)) this.#copied.set(at, 1);
  }

  /** Brings bits to disk before a guest's change; an area at a time, of which the rest is known to be copied. */
  async #set({ offset, lengthBytes }: Stretch): Promise<void> {
    if (this.#setting) return this.#setting;
    const { left } = this;
    const around = roundOut(offset, lengthBytes, Math.max(AREA_BYTES, left.granularityBytes));
    const end = Math.min(around.offset + around.lengthBytes, left.sizeBytes);
    const area = { offset: around.offset, lengthBytes: end - around.offset };
    for (let at = left.nextClean(area.offset, end); at < end;) {
      const clean = (left.nextDirty(at, end)?.offset ?? end) - at;
      this.#copied.set(at, clean);
      left.set(at, clean);
      at = left.nextClean(at + clean, end);
    }
    this.#setting = this.#writes.run(async () => {
      await this.#file.writeBits(left, area);
      await this.#file.flush();
    });
    try {
      await this.#setting;
    } catch (error) {
      await this.#giveUp(error);
    } finally {
      this.#setting = undefined;
    }
  }

  /** What it says is not true any more, and a guest does not wait for that to be mended. */
  async #giveUp(error: unknown): Promise<void> {
    this.#isClosed = true;
    this.#timer?.cancel();
    this.#news.notify();
    this.#target?.broken(error);
    await this.#host.files.unlink(this.path).catch(() => undefined);
  }

  // ---- ends

  /** It is not to be gone on with now. */
  async letGo(): Promise<void> {
    this.#isClosed = true;
    this.#timer?.cancel();
    await this.#file.close();
  }

  /** Its job never began. */
  async discard(): Promise<void> {
    await this.letGo();
    await this.#host.files.unlink(this.path).catch(() => undefined);
  }

  /** Durably: guests may write to the target from here on, and nobody may copy to it any more. */
  ending(): Promise<void> {
    return this.#tell({ state: 'ending' });
  }

  /** The last word. Where it cannot be written, the journal says what it said before. */
  async end(state: 'completed' | 'failed', error?: string): Promise<void> {
    this.#timer?.cancel();
    await this.#checkpoint;
    await this.#tell({ state, ...(error !== undefined && { error }) }).catch(() => undefined);
    this.#isClosed = true;
    this.#news.notify();
    this.#timer?.cancel();
    await this.#file.close().catch(() => undefined);
  }
}

function next(bitmap: DirtyBitmap, { offset, lengthBytes }: Stretch): Stretch | undefined {
  const end = offset + lengthBytes;
  return end < bitmap.sizeBytes ? bitmap.nextDirty(end) : undefined;
}

/** The journal could not be written. */
class JournalFailure extends Error {
  constructor(cause: unknown) {
    super('The journal cannot be written', { cause });
  }
}
