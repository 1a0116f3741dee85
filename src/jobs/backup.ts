import { BlockError } from '../base/error.js';
import { alignDown, alignUp } from '../base/align.js';
import { assert } from '../base/assert.js';
import { given } from '../base/given.js';
import { MiB } from '../base/limits.js';
import type { BlockBackend } from '../block/backend.js';
import type { ChainStatus } from '../block/chain-status.js';
import { DirtyBitmap, type Stretch } from '../block/dirty-bitmap.js';
import type { Node } from '../block/node.js';
import { CopyBitmaps } from '../drivers/copy-before-write/bitmaps.js';
import { COPY_BEFORE_WRITE, COPY_BEFORE_WRITE_DISCARDING } from '../drivers/copy-before-write/job-filter.js';
import { Mover, ZERO_BYTES } from './block-copy.js';
import { CopyBeforeWrite } from '../drivers/copy-before-write/point-in-time.js';
import { type CopyTurn, areOpen, AWAITED_BYTES, whenOpen } from '../block/copy-turn.js';
import { CopyWindow, journaledWindow } from './copy-window.js';
import type { Job } from './job.js';
import type { JobDriver } from './job-driver.js';
import type { Tally, WorkProgress } from './job-progress.js';
import { asError } from './job-errors.js';
import {
  ALL_PERMISSIONS,
  AS_NODE,
  creatingNode,
  isInChain,
  JobPlace,
  type JobSurroundings,
  Permission,
} from './job-graph.js';
import { HeldMoment } from './persisted/held-moment.js';
import type { JobJournal } from './persisted/job-journal.js';
import { forgetAbandoned, lostPoint, overlap } from './persisted/resume.js';
import { type BackupNodes, type BackupPlan, copyUnitBytes } from './plans/backup.js';
import { CheckedCopy, hashesFor } from './verified/checked-copy.js';
import { statusOrData } from './source-status.js';

/** Zeroes that are on their way to the target at a time, where guests may have to wait for them. */
const AWAITED_ZERO_BYTES = 16 * MiB;

/** sync=none has nothing to do but wait. */
const IDLE_SLEEP_MS = 60_000;

/** drive-backup and blockdev-backup: the source as it was when the job started. */
export class BackupJob implements JobDriver {
  readonly type = 'backup';
  readonly isAnnouncedFirst: boolean;
  readonly job: Job;
  readonly #plan: BackupPlan;
  readonly #bitmap: DirtyBitmap | undefined;
  readonly #place: JobPlace;
  readonly #source: Node;
  readonly #target: Node;
  readonly #sourceBackend: BlockBackend;
  readonly #targetBackend: BlockBackend;
  readonly #window: CopyWindow;
  readonly #mover: Mover;
  readonly #checked: CheckedCopy;
  readonly #bitmaps: CopyBitmaps;
  /** What the target still lacks. */
  readonly #due: DirtyBitmap;
  readonly #gate: CopyBeforeWrite;
  /** Stretches known to be zeroes, which the target does not read as such yet. Guests may change them. */
  readonly #zeroing = new Set<Stretch>();
  #totalBytes: number;
  readonly #tally: Tally = { zeroBytes: 0, skippedBytes: 0 };
  #failure: Error | undefined;
  #succeeded = false;
  readonly #journal: JobJournal | undefined;
  readonly #moment: HeldMoment | undefined;
  readonly #abandoned: JobSurroundings['abandoned'];
  /** What guests change once the point in time is not held any more. */
  readonly #changedAfter: DirtyBitmap;

  constructor(
    job: Job,
    plan: BackupPlan,
    nodes: BackupNodes,
    surroundings: JobSurroundings,
    journal?: JobJournal,
  ) {
    this.#journal = journal;
    this.#abandoned = surroundings.abandoned;
    job.setDriver(this);
    this.job = job;
    const { device, target, bitmap } = nodes;
    this.#plan = plan;
    this.#bitmap = bitmap;
    this.#source = device;
    this.#target = target;
    // The filter of a node without users asks for nothing before the job is its user.
    this.isAnnouncedFirst = device.parents.size === 0;
    creatingNode(() => {
      if (target.readOnly)
        throw new BlockError('permission', 'Block node is read-only', { node: target.name });
    });
    const size = device.lengthBytes;
    const filter = plan.discardSource ? COPY_BEFORE_WRITE_DISCARDING : COPY_BEFORE_WRITE;
    const place = creatingNode(() => new JobPlace(job, surroundings, filter, plan.filterNodeName, device));
    this.#place = place;
    place.hold('main node', place.filter, 0, ALL_PERMISSIONS);
    this.#sourceBackend = place.filterChild('file', device, 0, ALL_PERMISSIONS);
    // Others may write: the source itself may be in the target's backing chain, where the guest goes on.
    const others = ALL_PERMISSIONS - Permission.resize;
    this.#targetBackend = place.filterChild('target', target, Permission.write, others);
    // Not the source: another layer or another backup may come between it and the filter.
    place.hold('target', target, 0, ALL_PERMISSIONS);
    const { offloads, maxPieces: pieces, maxPieceBytes: pieceBytes } = plan.performance;
    this.#window = new CopyWindow(job, { ...journaledWindow(journal), ...given({ pieces, pieceBytes }) });
    const unit = copyUnitBytes(plan, target);
    const hashes = hashesFor(job, plan, size, unit);
    const sides = { source: this.#sourceBackend, target: this.#targetBackend };
    this.#checked = new CheckedCopy(job, plan, { hashes, ...sides });
    this.#mover = new Mover({
      hashes,
      compares: plan.compares,
      job,
      source: this.#sourceBackend,
      target: this.#targetBackend,
      unmap: true,
      tally: this.#tally,
      compress: plan.compress,
      skipKnownZeroes: plan.sync === 'full',
      offloads,
    });
    this.#bitmaps = new CopyBitmaps(size, unit);
    this.#bitmaps.access.setAll();
    this.#due = this.#bitmaps.due;
    this.#totalBytes = size;
    this.#changedAfter = new DirtyBitmap(size, unit);
    this.#changedAfter.enabled = false;
    const breaks = plan.onGuestCopyError === 'break-snapshot' ? 'snapshot' : 'guest-write';
    const failed = (error: unknown): void => {
      this.#failure ??= asError(error);
      this.#giveUpMoment();
      job.pace.kick();
    };
    this.#moment = journal && new HeldMoment({ journal, breaks, failed });
    this.#gate = new CopyBeforeWrite({
      due: this.#due,
      sides,
      copy: (turn, stretch, forGuest) => this.#copyFirst(turn, stretch, forGuest),
      breaks,
      failed,
    });
  }

  #giveUpMoment(): void {
    this.#changedAfter.enabled = true;
    this.#moment?.giveUp();
    this.#gate.giveUp();
  }

  async #copyFirst(turn: CopyTurn, stretch: Stretch, forGuest: boolean): Promise<number> {
    const { onGuestCopyError, discardSource } = this.#plan;
    const ofGuest = onGuestCopyError === 'break-snapshot' ? 'lost' : 'guest';
    const fate = forGuest ? ofGuest : 'policy';
    const copied = await this.#mover.copyFirst(turn, stretch, { unit: this.#due.granularityBytes, fate });
    this.#journal?.copied(stretch.offset, copied);
    // A hint: what is not discarded is there for nothing.
    if (discardSource)
      await this.#place.filter
        .child('file')
        .discard(stretch.offset, copied)
        .catch(() => undefined);
    return copied;
  }

  /** What the source's users see now; layers may have come to lie above it. */
  #shown(): Node {
    return this.#sourceBackend.node;
  }

  /** In whole clusters, as QEMU counts, also where the disk ends within one. */
  progress(): WorkProgress {
    const unit = this.#due.granularityBytes;
    let remainingBytes = alignUp(this.#due.dirtyBytes, unit);
    for (const { lengthBytes } of this.#zeroing) remainingBytes += alignUp(lengthBytes, unit);
    const doneBytes = alignUp(this.#totalBytes, unit) - remainingBytes;
    return { doneBytes, ...this.#tally, remainingBytes };
  }

  /** Its point in time is now: the caller holds a drained section. */
  async insert(): Promise<void> {
    const place = this.#place;
    const journal = this.#journal;
    if (journal) this.#joinChanges(journal);
    // What is left, the source has after a power loss too.
    if (journal) await this.#source.io.flush();
    await place.insert({
      // A target above the source (sync=none) reads the source itself, not through the filter.
      keep: ({ parent }) => isInChain(parent, this.#target),
      wording: AS_NODE,
    });
    place.copiesTo(this.#targetBackend);
    this.#markDue();
    const { due, written, access } = this.#bitmaps;
    this.#source.dirtyBitmaps.push(due);
    place.filter.dirtyBitmaps.push(written, access);
    place.passThrough.gate = this.#moment?.gate(this.#gate) ?? this.#gate;
    if (journal) await this.#beginJournal(journal);
  }

  async #beginJournal(journal: JobJournal): Promise<void> {
    forgetAbandoned(this.#abandoned, journal.path);
    this.#source.dirtyBitmaps.push(this.#changedAfter);
    await journal.begin({
      flush: () => this.#flushFor(journal),
      flushSource: () => Promise.resolve(),
      isDirty: (offset) => this.#due.isDirty(offset),
      broken: (error) => this.#window.launch(0, () => Promise.reject(asError(error))),
    });
  }

  /** A guest that waits for it is waited for by sections of the source. */
  async #flushFor(journal: JobJournal): Promise<void> {
    const [source, target] = [this.#sourceBackend, this.#targetBackend];
    while (target.isQuiesced && !(source.isQuiesced && journal.hasWaitingGuests))
      await Promise.race([target.untilOpen(), journal.untilNews()]);
    target.begin();
    try {
      await target.flush();
    } finally {
      target.end();
    }
  }

  /** What guests have changed since the journal was looked at. Errors: invalid, when some of it is left. */
  #joinChanges(journal: JobJournal): void {
    const known = this.#abandoned.get(journal.path);
    const isNew = journal.isOfNewMoment;
    if (known?.node === this.#source && !isNew && overlap(journal.left, known.dirty))
      throw lostPoint(this.#source);
    if (known?.node === this.#source && isNew) journal.left.merge(known.dirty);
  }

  /** In the drained section in which it was inserted; so, as QEMU's, it shows itself paused at first. */
  begin(): void {
    this.job.start();
  }

  /** Takes an inserted job back that was not started, in the drained section in which it was inserted. */
  async withdraw(): Promise<void> {
    this.abort();
    await this.#place.removeNow();
    await this.#leave();
    if (this.#journal) this.#forget(this.#changedAfter);
    await (this.#journal?.isResumed === true ? this.#journal.letGo() : this.#journal?.discard());
    this.job.withdrawn();
  }

  #markDue(): void {
    const { sync } = this.#plan;
    const bitmap = this.#bitmap;
    const journal = this.#journal;
    if (journal?.isResumed) {
      this.#due.merge(journal.left);
      this.#totalBytes = this.#due.dirtyBytes;
    } else if (!bitmap || (sync !== 'incremental' && sync !== 'bitmap')) {
      this.#due.setAll();
    } else {
      this.#due.merge(bitmap);
      this.#totalBytes = this.#due.dirtyBytes;
    }
    if (journal && !journal.isResumed) {
      journal.left.resetAll();
      journal.left.merge(this.#due);
    }
    if (!bitmap) return;
    bitmap.busy = true;
    bitmap.successor = new DirtyBitmap(bitmap.sizeBytes, bitmap.granularityBytes);
    bitmap.successor.enabled = bitmap.enabled;
    this.#source.dirtyBitmaps.push(bitmap.successor);
  }

  async run(): Promise<void> {
    const window = this.#window;
    try {
      await this.job.pace.checkpoint(() => undefined);
      if (this.#plan.sync === 'none') await this.#waitForEnd();
      else await this.#copyAll();
      await window.finish();
      this.#throwFailure();
      this.job.enter('flushing');
      await this.#mover.flush();
      await this.#checked.verify();
      this.#throwFailure();
    } finally {
      await window.quiet();
    }
  }

  async #waitForEnd(): Promise<never> {
    for (;;) {
      await this.job.pace.checkpoint(() => undefined);
      this.#throwFailure();
      await this.job.pace.sleep(IDLE_SLEEP_MS);
    }
  }

  async #copyAll(): Promise<void> {
    if (this.#plan.sync === 'top') {
      // First of all, so that it is known how much there is to be copied.
      this.job.enter('scanning');
      await this.#goThrough((stretch) => this.#skipUnallocated(stretch));
      this.job.enter('copying');
    }
    await this.#goThrough((stretch) => this.#launch(stretch));
  }

  /** Calls `visit` with what is due, from the beginning of the disk to its end; it answers up to where it dealt with. */
  async #goThrough(visit: (stretch: Stretch) => Promise<number>): Promise<void> {
    const due = this.#due;
    const next = (offset: number): Stretch | undefined => due.nextDirty(offset, due.sizeBytes, ZERO_BYTES);
    for (let at = next(0); at;) {
      await this.#window.room();
      this.#throwFailure();
      // A drained section has begun: the job rests first.
      const isOpen = areOpen([this.#sourceBackend, this.#targetBackend]);
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
    const status = await whenOpen(this.#sourceBackend, () =>
      statusOrData(this.#shown(), offset, lengthBytes, this.#source),
    );
    const unit = this.#due.granularityBytes;
    const end = offset + lengthBytes;
    const alike = offset + status.lengthBytes;
    if (status.allocated) return Math.min(end, alignUp(alike, unit));
    const whole = alike === this.#due.sizeBytes ? alike : alignDown(alike, unit);
    if (whole <= offset) return Math.min(end, offset + unit);
    // The guest may make some of it allocated meanwhile, having copied it first.
    const skippedBytes = await this.#gate.skip(offset, whole - offset);
    this.#journal?.copied(offset, whole - offset, 0);
    this.#tally.skippedBytes += skippedBytes;
    this.#totalBytes -= skippedBytes;
    return whole;
  }

  /** Deals with a first part of a stretch; answers its end. */
  async #launch(stretch: Stretch): Promise<number> {
    const unit = this.#due.granularityBytes;
    const { offset } = stretch;
    const status = await whenOpen(this.#sourceBackend, () =>
      statusOrData(this.#shown(), offset, stretch.lengthBytes),
    );
    // A guest does not wait for zeroes that are there already.
    const isAwaited = this.#journal !== undefined && status.zero;
    const knownBytes = isAwaited ? await this.#mover.zeroBytes(offset, stretch.lengthBytes) : 0;
    if (!areOpen([this.#sourceBackend, this.#targetBackend])) return offset;
    const most = Math.min(stretch.lengthBytes, this.#pieceBytes(status));
    const mostZero = this.#journal ? Math.max(unit, AWAITED_ZERO_BYTES, knownBytes) : Infinity;
    const zero = Math.min(status.lengthBytes, mostZero);
    const alike = status.zero ? zero - (zero % unit) : 0;
    const zeroBytes = this.job.limit.isLimited ? Math.min(alike, most) : alike;
    // What is still due reads as it did at the start, so that the status holds as long as it matters.
    if (zeroBytes >= most && this.#launchZeroes({ offset, lengthBytes: zeroBytes }, zeroBytes <= knownBytes))
      return offset + zeroBytes;
    // What is to be discarded afterwards takes a wait anyway.
    const mayTry = !this.#plan.discardSource;
    const tryCopy = (): number => {
      const data = status.data && !status.zero ? status : undefined;
      const done = this.#mover.tryCopy(offset, most, { unit, data });
      const whole = done === most ? done : alignDown(done, unit);
      if (whole > 0) this.#journal?.copied(offset, whole);
      return done;
    };
    if (!mayTry || !this.#window.isDoneNow(most, () => this.#gate.tryCopy(offset, most, tryCopy)))
      this.#window.launch(most, () => this.#gate.copy(offset, most));
    return offset + most;
  }

  /** Longer than others where all of it is data. */
  #pieceBytes({ data, zero, lengthBytes }: ChainStatus): number {
    const unit = this.#due.granularityBytes;
    const usual = this.#window.pieceBytes(unit);
    if (!data || zero || lengthBytes <= usual) return usual;
    // A guest may have to wait for it.
    const longest = Math.min(AWAITED_BYTES, this.#mover.longestBytes());
    return Math.max(usual, Math.min(alignDown(lengthBytes, unit), this.#window.pieceBytes(unit, longest)));
  }

  /** A guest need not wait for zeroes, unless somebody reads the source's present content through the target. */
  #launchZeroes(stretch: Stretch, isKnown: boolean): boolean {
    const { offset, lengthBytes } = stretch;
    if (this.#plan.discardSource || this.#target.isAbove(this.#source)) return false;
    if (!this.#gate.tryRelease(offset, lengthBytes)) return false;
    this.job.limit.spend(lengthBytes);
    this.#zeroing.add(stretch);
    this.#window.launch(0, async () => {
      await this.#mover.zero(offset, lengthBytes);
      this.#zeroing.delete(stretch);
      this.#journal?.copied(offset, lengthBytes, isKnown ? 0 : lengthBytes);
      this.#tally.zeroBytes += lengthBytes;
    });
    return true;
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** It may still be cancelled while it waits for its end. */
  async prepare(): Promise<void> {
    this.#succeeded = true;
  }

  /** Nobody needs its point in time any more, and no guest waits for it. */
  giveUp(): void {
    this.#giveUpMoment();
    this.#place.giveUpCopy();
  }

  abort(): void {
    this.#succeeded = false;
    this.#giveUpMoment();
  }

  async clean(): Promise<void> {
    await this.#place.remove();
    await this.#endJournal();
    await this.#leave();
    if (this.#succeeded) await this.#checked.writeManifest();
  }

  /** One that may be gone on with leaves behind what guests change from now on. */
  async #endJournal(): Promise<void> {
    const journal = this.#journal;
    if (!journal) return;
    if (this.#succeeded) this.#forget(this.#changedAfter);
    else this.#abandoned.set(journal.path, { node: this.#source, dirty: this.#changedAfter });
    await journal.end(this.#succeeded ? 'completed' : 'failed', this.job.failureText);
  }

  async #leave(): Promise<void> {
    this.#place.passThrough.gate = undefined;
    this.#settleBitmap();
    this.#forget(this.#due);
    await this.#place.close([this.#target]);
  }

  #forget(bitmap: DirtyBitmap): void {
    const { dirtyBitmaps } = this.#source;
    const index = dirtyBitmaps.indexOf(bitmap);
    assert(index >= 0, "a job's bitmap is on its node");
    dirtyBitmaps.splice(index, 1);
  }

  /** What the user's bitmap holds after the job, by bitmap-mode. */
  #settleBitmap(): void {
    const bitmap = this.#bitmap;
    const successor = bitmap?.successor;
    if (!bitmap || !successor) return;
    const mode = this.#plan.bitmap?.mode;
    const replace = mode === 'always' || (mode === 'on-success' && this.#succeeded);
    if (replace) {
      bitmap.resetAll();
      if (!this.#succeeded) {
        bitmap.merge(this.#due);
        for (const { offset, lengthBytes } of this.#zeroing) bitmap.set(offset, lengthBytes);
      }
    }
    bitmap.merge(successor);
    bitmap.successor = undefined;
    this.#forget(successor);
    if (replace) this.#source.changeLog?.shrunk();
    bitmap.busy = false;
  }
}
