import { alignDown, alignUp } from '../base/align.js';
import { given } from '../base/given.js';
import { MiB } from '../base/limits.js';
import type { BlockBackend } from '../block/backend.js';
import type { ChainStatus } from '../block/chain-status.js';
import { areOpen, AWAITED_BYTES, type CopyTurn, NEVER_HELD, whenOpen } from '../block/copy-turn.js';
import type { DirtyBitmap, Stretch } from '../block/dirty-bitmap.js';
import { hasLostWrites } from '../block/lost-writes.js';
import type { Node } from '../block/node.js';
import { CopyBeforeWrite } from '../drivers/copy-before-write/point-in-time.js';
import { Mover, ZERO_BYTES } from './block-copy.js';
import { CopyWindow, isRetried, journaledWindow } from './copy-window.js';
import { dueAgain } from './due-again.js';
import { Fleecing, type PassedFleecing } from './fleecing/fleecing.js';
import type { FleecingBuffer } from './fleecing/fleecing-buffer.js';
import type { Job } from './job.js';
import type { JobPlace } from './job-graph.js';
import type { Tally, WorkProgress } from './job-progress.js';
import type { PassedWork } from './passed/passed-job.js';
import type { JobJournal } from './persisted/job-journal.js';
import type { BackupNodes, BackupPlan } from './plans/backup.js';
import { statusOrData } from './source-status.js';
import type { ChunkHashes } from './verified/chunk-hashes.js';

/** Zeroes that are on their way to the target at a time, where guests may have to wait for them. */
const AWAITED_ZERO_BYTES = 16 * MiB;

/** What another process is told, beside what is due. A type alias: it is JSON. */
export type PassedBackupCopy = {
  totalBytes: number;
  tally: Tally;
  /** Known to be zeroes, and the target does not have them yet. */
  zeroing: PassedStretch[];
  /** See CopyTarget. */
  torn: PassedStretch[];
  fleecing?: PassedFleecing;
};
type PassedStretch = { offset: number; lengthBytes: number };

export interface BackupCopyOptions {
  readonly job: Job;
  readonly plan: BackupPlan;
  readonly nodes: BackupNodes;
  readonly place: JobPlace;
  readonly sides: { readonly source: BlockBackend; readonly target: BlockBackend };
  /** What the target still lacks. */
  readonly due: DirtyBitmap;
  /** What guests have changed since. */
  readonly changed: DirtyBitmap;
  readonly hashes: ChunkHashes | undefined;
  readonly journal?: JobJournal;
  readonly buffer?: FleecingBuffer;
  /** What a failure to copy for a guest ends. */
  readonly breaks: 'snapshot' | 'guest-write';
  /** The point in time cannot be held. */
  readonly failed: (error: unknown) => void;
  /** Throws what that was. */
  readonly throwFailure: () => void;
}

/** What the target of a backup lacks of its point in time, and how it gets it. */
export class BackupCopy {
  readonly #options: BackupCopyOptions;
  readonly #sides: BackupCopyOptions['sides'];
  readonly #due: DirtyBitmap;
  readonly #journal: JobJournal | undefined;
  readonly window: CopyWindow;
  readonly mover: Mover;
  /** Before guests' changes. */
  readonly gate: CopyBeforeWrite;
  readonly fleecing: Fleecing | undefined;
  /** Stretches known to be zeroes, which the target does not read as such yet. Guests may change them. */
  readonly #zeroing = new Set<Stretch>();
  readonly #tally: Tally = { zeroBytes: 0, skippedBytes: 0 };
  #totalBytes = 0;

  constructor(options: BackupCopyOptions) {
    this.#options = options;
    const { job, plan, place, sides, due, changed, journal, buffer, hashes, breaks, failed } = options;
    this.#sides = sides;
    this.#due = due;
    this.#journal = journal;
    const { offloads, maxPieces: pieces, maxPieceBytes: pieceBytes } = plan.performance;
    this.window = new CopyWindow(job, { ...journaledWindow(journal), ...given({ pieces, pieceBytes }) });
    this.mover = new Mover({
      hashes,
      compares: plan.compares,
      job,
      ...sides,
      unmap: true,
      tally: this.#tally,
      compress: plan.compress,
      skipKnownZeroes: plan.sync === 'full',
      offloads,
    });
    if (buffer)
      this.fleecing = new Fleecing({
        ...{ ...sides, buffer, mover: this.mover, window: this.window },
        // Nobody waits any more for a target that may hang.
        failed: (error) => (failed(error), place.giveUpCopy()),
      });
    this.gate = new CopyBeforeWrite({
      due,
      changed,
      sides: buffer ? { source: sides.source, target: NEVER_HELD } : sides,
      copy: (turn, stretch, forGuest) => this.#copyFirst(turn, stretch, forGuest),
      breaks,
      failed,
      copied: (bytes, at) => journal?.copied(at, bytes),
    });
  }

  /** As it was in another process. */
  goOnFrom({ data, parts }: PassedWork): void {
    const { totalBytes, tally, zeroing, torn, fleecing } = data as PassedBackupCopy;
    if (fleecing) this.fleecing?.goOnFrom(fleecing, parts);
    for (const stretch of torn) this.mover.target.torn.add(stretch);
    this.#totalBytes = totalBytes;
    Object.assign(this.#tally, tally);
    for (const stretch of zeroing) this.#zeroing.add(stretch);
  }

  /** Nothing is in flight. Errors: unsupported, for a buffer where files cannot be passed. */
  passed(): PassedWork {
    const fleecing = this.fleecing?.passed();
    const data: PassedBackupCopy = {
      totalBytes: this.#totalBytes,
      tally: { ...this.#tally },
      zeroing: [...this.#zeroing].map(({ offset, lengthBytes }) => ({ offset, lengthBytes })),
      torn: [...this.mover.target.torn].map(({ offset, lengthBytes }) => ({ offset, lengthBytes })),
      ...given({ fleecing: fleecing?.data }),
    };
    return { data, parts: fleecing?.parts ?? {}, ...given({ files: fleecing?.files }) };
  }

  /** What is due is marked. */
  marked(): void {
    this.#totalBytes = this.#due.dirtyBytes;
  }

  /** What the target may have lost is due again where the source still has it. Answers whether anything is due. */
  lookForLoss(): boolean {
    const { plan, nodes, changed } = this.#options;
    if (!plan.discardSource) dueAgain(nodes.target, this.#due, changed);
    return !this.#due.isClean;
  }

  /** The target may have lost something, at any time since it was asked last. */
  hasLost(): boolean {
    const { target } = this.#options.nodes;
    return hasLostWrites(target) || target.instance.takeDoubtful?.().isEmpty === false;
  }

  /** What the target lacks that is not due any more. */
  pending(): Stretch[] {
    return [...this.#zeroing, ...(this.fleecing?.pending() ?? [])];
  }

  /** In whole clusters, as QEMU counts, also where the disk ends within one. */
  progress(): WorkProgress {
    const unit = this.#due.granularityBytes;
    let remainingBytes = alignUp(this.#due.dirtyBytes, unit);
    for (const { lengthBytes } of this.#zeroing) remainingBytes += alignUp(lengthBytes, unit);
    remainingBytes += alignUp(this.fleecing?.pendingBytes ?? 0, unit);
    const doneBytes = alignUp(this.#totalBytes, unit) - remainingBytes;
    return { doneBytes, ...this.#tally, remainingBytes };
  }

  async copyAll(): Promise<void> {
    for (const stretch of [...this.#zeroing]) {
      await this.window.room();
      this.#zero(stretch, stretch.lengthBytes);
    }
    await this.fleecing?.goOn();
    if (this.#options.plan.sync === 'top') {
      // First of all, so that it is known how much there is to be copied.
      this.#options.job.enter('scanning');
      await this.#goThrough((stretch) => this.#skipUnallocated(stretch));
      this.#options.job.enter('copying');
    }
    await this.#goThrough((stretch) => this.#launch(stretch));
    await this.fleecing?.finish(async () => {
      await this.window.room();
      this.#options.throwFailure();
    });
  }

  /** Calls `visit` with what is due, from the beginning of the disk to its end; it answers up to where it dealt with. */
  async #goThrough(visit: (stretch: Stretch) => Promise<number>): Promise<void> {
    const due = this.#due;
    const next = (offset: number): Stretch | undefined => due.nextDirty(offset, due.sizeBytes, ZERO_BYTES);
    for (let at = next(0); at;) {
      await this.window.room();
      this.#options.throwFailure();
      // What guests wait for to be let in comes first.
      if (this.fleecing?.launch() === true) continue;
      // A drained section has begun: the job rests first.
      const isOpen = areOpen([this.#sides.source, this.#sides.target]);
      const end = isOpen ? await visit(at) : at.offset;
      if (end >= due.sizeBytes) return;
      at = next(end);
    }
  }

  /**
   * sync=top: whole clusters that only the backing file holds are not copied. Looks at a first part of a stretch; answers
   * its end.
   */
  async #skipUnallocated({ offset, lengthBytes }: Stretch): Promise<number> {
    const status = await whenOpen(this.#sides.source, () =>
      statusOrData(this.#shown(), offset, lengthBytes, this.#options.nodes.device),
    );
    const unit = this.#due.granularityBytes;
    const end = offset + lengthBytes;
    const alike = offset + status.lengthBytes;
    if (status.allocated) return Math.min(end, alignUp(alike, unit));
    const whole = alike === this.#due.sizeBytes ? alike : alignDown(alike, unit);
    if (whole <= offset) return Math.min(end, offset + unit);
    // The guest may make some of it allocated meanwhile, having copied it first.
    const skippedBytes = await this.gate.skip(offset, whole - offset);
    this.#journal?.copied(offset, whole - offset, 0);
    this.#tally.skippedBytes += skippedBytes;
    this.#totalBytes -= skippedBytes;
    return whole;
  }

  /** Deals with a first part of a stretch; answers its end. */
  async #launch(stretch: Stretch): Promise<number> {
    const unit = this.#due.granularityBytes;
    const { offset } = stretch;
    const status = await whenOpen(this.#sides.source, () =>
      statusOrData(this.#shown(), offset, stretch.lengthBytes),
    );
    // A guest does not wait for zeroes that are there already.
    const isAwaited = this.#journal !== undefined && status.zero;
    const knownBytes = isAwaited ? await this.mover.zeroBytes(offset, stretch.lengthBytes) : 0;
    if (!areOpen([this.#sides.source, this.#sides.target])) return offset;
    const most = Math.min(stretch.lengthBytes, this.#pieceBytes(status));
    const mostZero = this.#journal ? Math.max(unit, AWAITED_ZERO_BYTES, knownBytes) : Infinity;
    const zero = Math.min(status.lengthBytes, mostZero);
    const alike = status.zero ? zero - (zero % unit) : 0;
    const zeroBytes = this.#options.job.limit.isLimited ? Math.min(alike, most) : alike;
    // What is still due reads as it did at the start, so that the status holds as long as it matters.
    if (zeroBytes >= most && this.#launchZeroes({ offset, lengthBytes: zeroBytes }, zeroBytes <= knownBytes))
      return offset + zeroBytes;
    // What is to be discarded afterwards takes a wait anyway.
    const mayTry = !this.#options.plan.discardSource;
    const tryCopy = (): number => {
      const data = status.data && !status.zero ? status : undefined;
      return this.mover.tryCopy(offset, most, { unit, data });
    };
    if (!mayTry || !this.window.isDoneNow(most, () => this.gate.tryCopy(offset, most, tryCopy)))
      this.window.launch(most, async () => {
        await this.gate.copy(offset, most);
        await this.fleecing?.carry();
      });
    return offset + most;
  }

  /** Longer than others where all of it is data. */
  #pieceBytes({ data, zero, lengthBytes }: ChainStatus): number {
    const unit = this.#due.granularityBytes;
    const usual = this.window.pieceBytes(unit);
    if (!data || zero || lengthBytes <= usual) return usual;
    // A guest may have to wait for it.
    const longest = Math.min(AWAITED_BYTES, this.mover.longestBytes());
    return Math.max(usual, Math.min(alignDown(lengthBytes, unit), this.window.pieceBytes(unit, longest)));
  }

  /** A guest need not wait for zeroes, unless somebody reads the source's present content through the target. */
  #launchZeroes(stretch: Stretch, isKnown: boolean): boolean {
    const { offset, lengthBytes } = stretch;
    if (this.#options.plan.discardSource || this.#options.nodes.target.isAbove(this.#options.nodes.device))
      return false;
    if (!this.gate.tryRelease(offset, lengthBytes)) return false;
    this.#options.job.limit.spend(lengthBytes);
    this.#zeroing.add(stretch);
    this.#zero(stretch, isKnown ? 0 : lengthBytes);
    return true;
  }

  #zero(stretch: Stretch, writtenBytes: number): void {
    const { offset, lengthBytes } = stretch;
    let isDueAgain = false;
    this.window.launch(0, async () => {
      if (isDueAgain) return this.gate.copy(offset, lengthBytes);
      try {
        await this.mover.target.zero(offset, lengthBytes);
      } catch (error) {
        isDueAgain = isRetried(error) && this.#takeBack(stretch);
        throw error;
      }
      this.#zeroing.delete(stretch);
      this.#journal?.copied(offset, lengthBytes, writtenBytes);
      this.#tally.zeroBytes += lengthBytes;
    });
  }

  /**
   * Zeroes that could not be written are due again while the source has them for certain: a guest that waits for them copies
   * them itself, as the job may rest until the guest is done. Answers whether they are.
   */
  #takeBack(stretch: Stretch): boolean {
    const { offset, lengthBytes } = stretch;
    const journal = this.#journal;
    const end = offset + lengthBytes;
    if (!journal || journal.left.nextClean(offset, end) < end) return false;
    this.#zeroing.delete(stretch);
    this.#due.set(offset, lengthBytes);
    journal.wake();
    return true;
  }

  async #copyFirst(turn: CopyTurn, stretch: Stretch, forGuest: boolean): Promise<number> {
    const ofGuest = this.#options.breaks === 'snapshot' ? 'lost' : 'guest';
    const fate = forGuest ? ofGuest : 'policy';
    const fleecing = this.fleecing;
    if (fleecing) return forGuest ? fleecing.keepFor(stretch, fate) : fleecing.take(turn, stretch);
    const copied = await this.mover.copyFirst(turn, stretch, {
      unit: this.#due.granularityBytes,
      fate,
    });
    // A hint: what is not discarded is there for nothing.
    if (this.#options.plan.discardSource)
      await this.#options.place.filter
        .child('file')
        .discard(stretch.offset, copied)
        .catch(() => undefined);
    return copied;
  }

  /** What the source's users see now; layers may have come to lie above it. */
  #shown(): Node {
    return this.#sides.source.node;
  }
}
