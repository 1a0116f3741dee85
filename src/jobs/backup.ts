import { eachInTurn, failureOf } from '../base/async.js';
import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { BlockBackend } from '../block/backend.js';
import { whenOpen } from '../block/copy-turn.js';
import type { Json } from '../block/driver.js';
import { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { Node } from '../block/node.js';
import { CopyBitmaps } from '../drivers/copy-before-write/bitmaps.js';
import { COPY_BEFORE_WRITE, COPY_BEFORE_WRITE_DISCARDING } from '../drivers/copy-before-write/job-filter.js';
import type { Job } from './job.js';
import type { JobDriver } from './job-driver.js';
import type { WorkProgress } from './job-progress.js';
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
import type { FleecingBuffer } from './fleecing/fleecing-buffer.js';
import type { PassedWork } from './passed/passed-job.js';
import { forgetBitmap, heldBits, holdBitmap, holdBitmapAgain, settleBitmap } from './backup-bitmap.js';
import { BackupCopy } from './backup-copy.js';
import { HeldMoment } from './persisted/held-moment.js';
import type { JobJournal } from './persisted/job-journal.js';
import { forgetAbandoned, lostPoint, overlap } from './persisted/resume.js';
import { type BackupNodes, type BackupPlan, copyUnitBytes } from './plans/backup.js';
import { CheckedCopy, hashesFor } from './verified/checked-copy.js';

/** sync=none has nothing to do but wait. */
const IDLE_SLEEP_MS = 60_000;
/** How long a backup that failed waits for what it copied to be durable; one that is cancelled by force waits for less. */
const LAST_FLUSH_MS = 10_000;

/** drive-backup and blockdev-backup: the source as it was when the job started. */
export class BackupJob implements JobDriver {
  readonly type = 'backup';
  readonly isAnnouncedFirst = false;
  readonly #hadUsers: boolean;
  readonly job: Job;
  readonly #plan: BackupPlan;
  readonly #bitmap: DirtyBitmap | undefined;
  readonly place: JobPlace;
  readonly #source: Node;
  readonly #target: Node;
  readonly #sourceBackend: BlockBackend;
  readonly #targetBackend: BlockBackend;
  readonly #copy: BackupCopy;
  readonly #checked: CheckedCopy;
  readonly #bitmaps: CopyBitmaps;
  #failure: Error | undefined;
  #succeeded = false;
  #isDurable = false;
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
    { journal, buffer }: { journal?: JobJournal; buffer?: FleecingBuffer } = {},
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
    this.#hadUsers = device.parents.size > 0;
    creatingNode(() => {
      if (target.readOnly)
        throw new BlockError('permission', 'Block node is read-only', { node: target.name });
    });
    const size = device.lengthBytes;
    const filter = plan.discardSource ? COPY_BEFORE_WRITE_DISCARDING : COPY_BEFORE_WRITE;
    const place = creatingNode(() => new JobPlace(job, surroundings, filter, plan.filterNodeName, device));
    this.place = place;
    place.hold('main node', place.filter, 0, ALL_PERMISSIONS);
    this.#sourceBackend = place.filterChild('file', device, 0, ALL_PERMISSIONS);
    // Others may write: the source itself may be in the target's backing chain, where the guest goes on.
    const others = ALL_PERMISSIONS - Permission.resize;
    this.#targetBackend = place.filterChild('target', target, Permission.write, others);
    // Not the source: another layer or another backup may come between it and the filter.
    place.hold('target', target, 0, ALL_PERMISSIONS);
    const unit = copyUnitBytes(plan, target);
    const hashes = hashesFor(job, plan, size, unit);
    const sides = { source: this.#sourceBackend, target: this.#targetBackend };
    this.#checked = new CheckedCopy(job, plan, { hashes, ...sides });
    this.#bitmaps = job.from
      ? CopyBitmaps.from(size, unit, job.from.work.parts['copies'] ?? [])
      : newBitmaps(size, unit);
    this.#changedAfter = new DirtyBitmap(size, unit);
    this.#changedAfter.enabled = false;
    const breaks = plan.onGuestCopyError === 'break-snapshot' ? 'snapshot' : 'guest-write';
    const failed = (error: unknown): void => {
      this.#failure ??= asError(error);
      this.#giveUpMoment();
      job.pace.kick();
    };
    this.#moment = journal && new HeldMoment({ journal, breaks, failed });
    this.#copy = new BackupCopy({
      ...{ job, plan, nodes, place, hashes, breaks, failed },
      sides,
      due: this.#bitmaps.due,
      changed: this.#bitmaps.written,
      throwFailure: () => this.#throwFailure(),
      ...given({ journal, buffer }),
    });
  }

  #giveUpMoment(): void {
    this.#changedAfter.enabled = true;
    this.#moment?.giveUp();
    this.#copy.gate.giveUp();
  }

  /** The filter of a node without users asks nothing of it before the job is its user. */
  get isRefusedLate(): boolean {
    return !this.#hadUsers && this.place.filterFits;
  }

  progress(): WorkProgress {
    return this.#copy.progress();
  }

  moreProgress(): { [key: string]: Json } {
    const buffer = this.#copy.fleecing?.info(this.#plan.fleecing?.maxBytes ?? 0);
    return buffer ? { buffer } : {};
  }

  /** Its point in time is now: the caller holds a drained section. */
  async insert(): Promise<void> {
    const place = this.place;
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
    place.passThrough.gate = this.#moment?.gate(this.#copy.gate) ?? this.#copy.gate;
    if (journal) await this.#beginJournal(journal);
  }

  async #beginJournal(journal: JobJournal): Promise<void> {
    forgetAbandoned(this.#abandoned, journal.path);
    this.#source.dirtyBitmaps.push(this.#changedAfter);
    await journal.begin({
      flush: () => this.#flushFor(journal),
      flushSource: () => Promise.resolve(),
      isDirty: (offset) => this.#bitmaps.due.isDirty(offset),
      broken: (error) => this.#copy.window.launch(0, () => Promise.reject(asError(error))),
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
      this.#copy.lookForLoss();
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
    const journal = this.#journal;
    this.abort();
    try {
      await eachInTurn([
        () => this.place.removeNow(),
        () => this.#leave(),
        () => journal && forgetBitmap(this.#source, this.#changedAfter),
        () => (journal?.isResumed === true ? journal.letGo() : journal?.discard()),
      ]);
    } finally {
      this.job.withdrawn();
    }
  }

  /** Guests change nothing meanwhile. Errors: busy, when the point in time is lost already. */
  passed(): PassedWork {
    if (this.#failure) throw new BlockError('busy', `job '${this.job.id}' of type backup is ending`);
    const { held, successor } = this.#bitmap ? heldBits(this.#bitmap) : {};
    this.#copy.lookForLoss();
    const { data, parts, files } = this.#copy.passed();
    return {
      data: { ...data, records: successor?.enabled ?? false },
      parts: {
        ...{ ...parts, ...this.#checked.passed(), copies: this.#bitmaps.parts },
        ...(held && successor && { bitmap: [held, successor.bytes()] }),
      },
      ...given({ files }),
    };
  }

  #goOnFrom(work: PassedWork): void {
    const { data, parts } = work;
    const [held, recorded] = parts['bitmap'] ?? [];
    this.#copy.goOnFrom(work);
    if (this.#bitmap && held && recorded)
      holdBitmapAgain(this.#source, this.#bitmap, { held, recorded, records: data['records'] === true });
  }

  #markDue(): void {
    if (this.job.from) return this.#goOnFrom(this.job.from.work);
    const { sync } = this.#plan;
    const { due } = this.#bitmaps;
    const bitmap = this.#bitmap;
    const journal = this.#journal;
    if (journal?.isResumed) due.merge(journal.left);
    else if (!bitmap || (sync !== 'incremental' && sync !== 'bitmap')) due.setAll();
    else due.merge(bitmap);
    this.#copy.marked();
    if (journal && !journal.isResumed) {
      journal.left.resetAll();
      journal.left.merge(due);
    }
    if (bitmap) holdBitmap(this.#source, bitmap);
  }

  async run(): Promise<void> {
    const { window } = this.#copy;
    try {
      await this.job.pace.checkpoint(() => undefined);
      if (this.#plan.sync === 'none') await this.#waitForEnd();
      else await this.#copy.copyAll();
      await window.finish();
      this.#throwFailure();
      this.job.enter('flushing');
      while (await this.#copy.mover.target.flush(() => this.#copy.lookForLoss())) await this.#copyAgain();
      await this.#checked.verify();
      this.#throwFailure();
    } catch (error) {
      throw this.#failure ?? error;
    } finally {
      await window.quiet();
    }
  }

  async #copyAgain(): Promise<void> {
    await this.#copy.copyAll();
    await this.#copy.window.finish();
    this.#throwFailure();
  }

  async #waitForEnd(): Promise<never> {
    for (;;) {
      await this.job.pace.checkpoint(() => undefined);
      this.#throwFailure();
      await this.job.pace.sleep(IDLE_SLEEP_MS);
    }
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /**
   * It may still be cancelled while it waits for its end. What fails here leaves the user's bitmap as it was; drained sections
   * wait for no file.
   */
  async prepare(): Promise<void> {
    this.job.pace.rest();
    await this.#checked.writeManifest();
    this.#succeeded = true;
  }

  /** Nobody needs its point in time any more, and no guest waits for it. */
  giveUp(): void {
    this.#giveUpMoment();
    this.place.giveUpCopy();
  }

  abort(): void {
    this.#succeeded = false;
    this.#giveUpMoment();
  }

  async clean(): Promise<void> {
    if (!this.#succeeded && this.#plan.bitmap?.mode === 'always') await this.#keepCopied();
    await eachInTurn([() => this.place.remove(), () => this.#endJournal(), () => this.#leave()]);
  }

  /** A bitmap that is to forget what was copied before the backup failed forgets nothing that the target may yet lose. */
  async #keepCopied(): Promise<void> {
    const target = this.#targetBackend;
    const { clock } = this.job.host;
    const timer = clock.setTimer(LAST_FLUSH_MS, () => this.place.giveUpCopy());
    const failure = await failureOf(() => whenOpen(target, () => target.flush()));
    timer.cancel();
    this.#isDurable = !failure && !this.#copy.hasLost();
  }

  /** One that may be gone on with leaves behind what guests change from now on. */
  async #endJournal(): Promise<void> {
    const journal = this.#journal;
    if (!journal) return;
    if (this.#succeeded) forgetBitmap(this.#source, this.#changedAfter);
    else this.#abandoned.set(journal.path, { node: this.#source, dirty: this.#changedAfter });
    await journal.end(this.#succeeded ? 'completed' : 'failed', this.job.failureText);
  }

  async #leave(): Promise<void> {
    this.place.passThrough.gate = undefined;
    if (this.#bitmap) this.#settle(this.#bitmap);
    forgetBitmap(this.#source, this.#bitmaps.due);
    await eachInTurn([() => this.place.close([this.#target]), () => this.#copy.fleecing?.close()]);
  }

  #settle(bitmap: DirtyBitmap): void {
    settleBitmap(this.#source, bitmap, {
      mode: this.#plan.bitmap?.mode,
      hasSucceeded: this.#succeeded,
      isDurable: this.#isDurable,
      due: this.#bitmaps.due,
      left: this.#copy.pending(),
    });
  }
}

/** A point in time of the whole disk. */
function newBitmaps(sizeBytes: number, unitBytes: number): CopyBitmaps {
  const bitmaps = new CopyBitmaps(sizeBytes, unitBytes);
  bitmaps.access.setAll();
  return bitmaps;
}
