import { eachInTurn } from '../base/async.js';
import { assert } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { BlockBackend } from '../block/backend.js';
import type { Json } from '../block/driver.js';
import { settleBackingAbove } from '../block/backing-reference.js';
import type { ChangeGate } from '../block/change-gate.js';
import { AWAITED_BYTES, whenOpen } from '../block/copy-turn.js';
import { GRACE_MS } from '../block/graph.js';
import type { Node } from '../block/node.js';
import { FinishBy, type PassedFinishBy } from './finish-by/finish-by.js';
import { growBase } from './commit.js';
import { asError } from './job-errors.js';
import { forgetAbandoned } from './persisted/resume.js';
import type { JobJournal } from './persisted/job-journal.js';
import { isRetried } from './copy-window.js';
import type { Job } from './job.js';
import type { CopyMode, JobDriver } from './job-driver.js';
import type { WorkProgress } from './job-progress.js';
import { isInChain, JobPlace, type JobSurroundings } from './job-graph.js';
import type { PassedWork } from './passed/passed-job.js';
import { MirrorCopy } from './mirror-copy.js';
import { MirrorHold } from './mirror-hold.js';
import { takePlace } from './mirror-pivot.js';
import { holdSides } from './mirror-sides.js';
import type { MirrorNodes, MirrorPlan } from './plans/mirror.js';
import { MIRROR_TOP, MIRROR_TOP_ABOVE_BASE } from '../drivers/mirror-top/mirror-top.js';
import { CheckedCopy } from './verified/checked-copy.js';
import { WriteToBoth } from './write-to-both.js';

/** How often a READY mirror looks for what the guest wrote. */
const READY_SLEEP_MS = 100;
/** While a guest that has stopped waits for what is left. */
const SETTLE_SLEEP_MS = 5;
/** A guest that writes faster than the mirror copies: after so many rounds what it writes goes to both sides at once. */
const ROUNDS_BEFORE_BLOCKING = 4;

type MirrorPhase = 'track' | 'freezing' | 'frozen' | 'complete';

/** What another process is told, beside what is said of the copy. A type alias: it is JSON. */
type PassedMirror = {
  phase: MirrorPhase;
  copyMode: CopyMode;
  isAskedForBoth: boolean;
  isMarked: boolean;
  writesToBoth: boolean;
  flushesBoth: boolean;
  finishBy?: PassedFinishBy;
};

/** drive-mirror, blockdev-mirror and the commit of the active layer. */
export class MirrorJob implements JobDriver {
  readonly type: 'mirror' | 'commit';
  readonly tellsEachError = true;
  readonly isAnnouncedFirst: boolean;
  readonly job: Job;
  readonly #plan: MirrorPlan;
  readonly #nodes: MirrorNodes;
  readonly place: JobPlace;
  readonly #source: Node;
  readonly #target: Node;
  readonly #sourceBackend: BlockBackend;
  readonly #targetBackend: BlockBackend;
  readonly #copy: MirrorCopy;
  readonly #both: WriteToBoth;
  readonly #checked: CheckedCopy;
  #succeeded = false;
  readonly #journal: JobJournal | undefined;
  readonly #abandoned: JobSurroundings['abandoned'];
  /** What stands before the source's changes, the journal apart. */
  #guard: ChangeGate | undefined;
  #phase: MirrorPhase = 'track';
  #hold: MirrorHold | undefined;
  /** When it was READY last, and no point in time was fixed. */
  #wasInStep = false;
  #pivoted = false;
  #copyMode: CopyMode;
  /** The user wants guests' changes to go to both sides, which they do, as with QEMU, also while the job rests. */
  #isAskedForBoth: boolean;
  readonly #finishBy: FinishBy | undefined;

  constructor(
    job: Job,
    plan: MirrorPlan,
    nodes: MirrorNodes,
    surroundings: JobSurroundings,
    journal?: JobJournal,
  ) {
    this.#journal = journal;
    this.#abandoned = surroundings.abandoned;
    const { source, target } = nodes;
    const targetIsBase = plan.kind === 'active-commit';
    this.type = targetIsBase ? 'commit' : 'mirror';
    // Of an active commit, only what is wrong with the images is told before.
    this.isAnnouncedFirst = !targetIsBase || source.activity === 'inactive';
    job.setDriver(this);
    this.job = job;
    this.#plan = plan;
    this.#copyMode = plan.copyMode;
    this.#isAskedForBoth = plan.copyMode === 'write-blocking';
    this.#nodes = nodes;
    this.#source = source;
    this.#target = target;
    const filter = targetIsBase ? MIRROR_TOP_ABOVE_BASE : MIRROR_TOP;
    this.place = new JobPlace(job, surroundings, filter, plan.filterNodeName, source);
    const sides = holdSides(this.place, nodes, targetIsBase);
    this.#sourceBackend = sides.source;
    this.#targetBackend = sides.target;
    this.#finishBy = plan.finishBySeconds === undefined ? undefined : this.#newFinishBy(plan.finishBySeconds);
    this.#copy = new MirrorCopy({
      job,
      plan,
      nodes,
      ...sides,
      mustStop: () => this.#mustStop() || this.#isToSwitch(),
      journal,
      finishBy: this.#finishBy,
    });
    this.#checked = new CheckedCopy(job, plan, { hashes: this.#copy.hashes, ...sides });
    this.#both = new WriteToBoth({
      ...sides,
      dirty: this.#copy.dirty,
      locks: this.#copy.locks,
      mover: this.#copy.mover,
      unitBytes: this.#copy.unitBytes,
      copiesUnits: this.#copy.hashes !== undefined,
      fillsUnits: plan.targetBacking !== 'leave',
      failed: (error) => this.#targetFailed(this.job.ioError('write', error)),
      written: (bytes) => this.#copy.addDone(bytes),
      flushes: () => this.#copy.flushes(),
      copyLeft: (stretch) => this.#copy.copyLeft(stretch, () => this.#rests()),
      rests: () => this.#rests(),
    });
    if (job.from) this.#goOnFrom(job.from.work.data as PassedMirror);
  }

  #goOnFrom({ phase, copyMode, isAskedForBoth, isMarked, flushesBoth, finishBy }: PassedMirror): void {
    this.#phase = phase;
    this.#copyMode = copyMode;
    this.#isAskedForBoth = isAskedForBoth;
    this.#both.isMarked = isMarked;
    this.#both.flushesBoth = flushesBoth;
    // Its point in time is in the target, all of it.
    if (phase === 'frozen') this.#copy.dirty.enabled = false;
    if (finishBy) this.#finishBy?.goOnFrom(finishBy);
  }

  passed(): PassedWork {
    this.#copy.markDoubtful();
    const isFrozen = this.#phase === 'frozen';
    const { data, parts } = this.#copy.passed(isFrozen);
    const mine: PassedMirror = {
      phase: this.#phase,
      copyMode: this.#copyMode,
      isAskedForBoth: this.#isAskedForBoth,
      isMarked: this.#both.isMarked,
      writesToBoth: this.#guard === this.#both,
      flushesBoth: this.#both.flushesBoth,
      ...given({ finishBy: this.#finishBy?.passed() }),
    };
    return { data: { ...data, ...mine }, parts: { ...parts, ...this.#checked.passed() } };
  }

  #rests(): boolean {
    return this.job.pace.isUserPaused && !this.#isAskedForBoth;
  }

  #newFinishBy(seconds: number): FinishBy {
    const { granularityBytes } = this.#plan;
    const { clock } = this.job.host;
    return new FinishBy({ clock, seconds, granularityBytes, progress: () => this.#copy });
  }

  /** A change that a guest made is in the source only. */
  #targetFailed(error: Error): void {
    this.#copy.isToFlush = true;
    if (isRetried(error)) this.#copy.hasFailed = true;
    else this.#copy.window.launch(0, () => Promise.reject(error));
    this.job.pace.kick();
  }

  progress(): WorkProgress {
    const { doneBytes, remainingBytes, tally, zeroing } = this.#copy;
    const following = this.#guard === this.#both ? 'writes-to-both' : 'copies';
    return { doneBytes, ...tally, remainingBytes, zeroing, ...(this.#phase !== 'frozen' && { following }) };
  }

  /**
   * What is in the way of more than its filter is met when the job is there already, as in QEMU; a commit's base is made
   * writable before that.
   */
  get isRefusedLate(): boolean {
    const { filterFits, jobFits } = this.place;
    return filterFits && !(this.type === 'commit' && jobFits);
  }

  async insert(): Promise<void> {
    const place = this.place;
    const targetIsBase = this.type === 'commit';
    const source = this.#source;
    const target = this.#target;
    await place.drained([source, target], async () => {
      if (targetIsBase && !place.isRehearsal) await settleBackingAbove(place.graph, target);
      await place.insert({
        before: (transaction) => {
          if (targetIsBase) place.listWritable(transaction, target);
        },
        keep: (edge) => isInChain(edge.parent, target),
      });
      source.dirtyBitmaps.push(this.#copy.dirty);
      this.#finishBy?.begin(source);
      if (this.#journal) this.#takeOver(this.#journal);
      const before = this.job.from?.work.data as PassedMirror | undefined;
      if (before?.writesToBoth === true) this.#guardSource(this.#both);
    });
    await this.#journal?.begin({
      flush: async () => {
        await whenOpen(this.#targetBackend, () => this.#targetBackend.flush());
        this.#lookForLoss();
      },
      flushSource: () => whenOpen(this.#sourceBackend, () => this.#sourceBackend.flush()),
      isDirty: (offset) => this.#copy.dirty.isDirty(offset),
      broken: (error) => this.#copy.window.launch(0, () => Promise.reject(asError(error))),
    });
    if (!targetIsBase) place.copiesTo(this.#targetBackend);
    place.freezeChain(place.filter, targetIsBase ? target : source);
  }

  /** From this moment on the journal's gate sees what guests write. */
  #takeOver(journal: JobJournal): void {
    const known = this.#abandoned.get(journal.path);
    if (known?.node === this.#source) journal.left.merge(known.dirty);
    forgetAbandoned(this.#abandoned, journal.path);
    this.#guardSource(undefined);
  }

  #guardSource(gate: ChangeGate | undefined): void {
    this.#guard = gate;
    const journal = this.#journal;
    const finishBy = this.#finishBy;
    if (finishBy && gate === this.#both) return this.place.guardSource(finishBy.gate(gate));
    this.place.guardSource(journal ? journal.gate(() => this.#copy.dirty, gate, gate === this.#both) : gate);
  }

  // ---- the loop

  async run(): Promise<void> {
    const { window } = this.#copy;
    try {
      if (!this.#both.isMarked) await this.#mark();
      if (!this.job.isReady) await this.#catchUp();
      await this.#followGuest();
      await window.finish();
      if (this.#phase !== 'complete') {
        await this.#flush();
        await this.#checked.verify();
      }
    } finally {
      if (this.job.isReady && !this.#hold) this.#wasInStep = this.#isInStep();
      await window.quiet();
    }
  }

  async #mark(): Promise<void> {
    if (this.type === 'commit') await growBase(this.#targetBackend, this.#source.lengthBytes, this.#journal);
    else if (this.#source.lengthBytes !== this.#target.lengthBytes)
      throw new BlockError('invalid', 'Source and target image have different sizes');
    if (this.#copyMode === 'write-blocking') await this.#writeToBoth(true);
    this.job.enter('scanning');
    await this.#copy.mark();
    this.#both.isMarked = true;
    this.#finishBy?.marked();
  }

  /** Copies until nothing is dirty, and durable: READY. */
  async #catchUp(): Promise<void> {
    this.job.enter('copying');
    await this.#copyUntilDurable();
    this.#finishBy?.letGo();
    this.job.enter('following');
    this.job.becomeReady();
    if (this.#copyMode === 'background') await this.#writeToBoth(false);
  }

  /** What the target's server has lost by then is copied again, however often that is. */
  async #copyUntilDurable(): Promise<void> {
    const copy = this.#copy;
    do {
      await this.#copyUntilClean();
      if (this.#mustStop()) return;
      if (this.job.isReady) this.job.enter('flushing');
    } while (await copy.mover.target.flush(() => copy.takeDoubtful()));
  }

  #lookForLoss(): void {
    if (this.#hold) this.#hold.lookForLoss();
    else this.#copy.markDoubtful();
  }

  /** A guest may keep ahead: then what is dirty is kept from becoming more. */
  async #copyUntilClean(): Promise<void> {
    const copy = this.#copy;
    for (let round = 0; ; round++) {
      await copy.round();
      await copy.window.finish();
      if (this.#mustStop()) return;
      if (this.#finishBy?.isToSwitch() === true) this.#copyMode = 'write-blocking';
      if (this.#isToSwitch()) await this.#writeToBoth(true);
      if (copy.dirty.isClean) return;
      if (round >= ROUNDS_BEFORE_BLOCKING) await this.#writeToBoth(true);
    }
  }

  /** The user wants guests' changes to go to both sides, and they do not yet. */
  #isToSwitch(): boolean {
    return this.#copyMode === 'write-blocking' && !this.#hold && this.#guard !== this.#both;
  }

  changeCopyMode(mode: CopyMode): void {
    if (this.type === 'commit') throw new BlockError('invalid', 'Job type does not support change');
    if (mode === this.#copyMode) return;
    if (mode === 'background')
      throw new BlockError('invalid', `Change to copy mode '${mode}' is not implemented`);
    this.#copyMode = mode;
    this.#isAskedForBoth = true;
  }

  restChanged(isToRest: boolean): void {
    this.#finishBy?.restChanged(isToRest);
  }

  /** Of one that works in the background there is nothing to say: it is never in step. */
  details(): { [key: string]: Json } {
    if (this.#copyMode === 'background') return {};
    return { 'actively-synced': this.job.isReady && !this.#hold ? this.#isInStep() : this.#wasInStep };
  }

  #isInStep(): boolean {
    return this.#guard === this.#both && this.#copy.dirty.isClean;
  }

  moreProgress(): { [key: string]: Json } {
    const finish = this.#finishBy?.info();
    return finish && Object.keys(finish).length > 0 ? { finish } : {};
  }

  /** Switches whether guests' changes go to both sides, while none of them is under way. Nothing is being copied. */
  async #writeToBoth(on: boolean): Promise<void> {
    const gate = on ? this.#both : undefined;
    if (this.#guard === gate) return;
    await this.place.section([this.#source], async () => {
      // Meanwhile a point in time may have been fixed.
      if (!this.#hold) this.#guardSource(gate);
      if (on) this.#finishBy?.switched();
    });
  }

  /** What the target has lost of the point in time meanwhile is copied again. */
  async #flush(): Promise<void> {
    const hold = this.#hold;
    this.job.enter('flushing');
    while (await this.#copy.mover.target.flush(() => hold?.lookForLoss() ?? false)) await hold?.copyAll();
  }

  #mustStop(): boolean {
    return this.#phase === 'freezing' || this.#phase === 'frozen';
  }

  /** READY: copies what the guest writes until the job is told how to end. */
  async #followGuest(): Promise<void> {
    const job = this.job;
    const copy = this.#copy;
    for (;;) {
      await job.pace.checkpoint(
        () => copy.window.quiet(),
        () => this.#phase !== 'track',
      );
      if (this.#phase === 'freezing') {
        await job.pace.sleep(READY_SLEEP_MS);
      } else if (this.#phase === 'frozen') {
        this.job.enter('finishing');
        assert(this.#hold, 'a frozen mirror holds its point in time');
        await this.#hold.copyAll();
        return;
      } else if (this.#phase === 'complete') {
        this.job.enter('finishing');
        await this.#copyUntilClean();
        // From here on the target has what the source has, durably if the guest flushed it: the pivot waits for nothing.
        this.#both.flushesBoth = true;
        await this.#writeToBoth(true);
        await this.#copyUntilDurable();
        await this.#verify();
        return;
      } else {
        if (this.#isToSwitch()) await this.#writeToBoth(true);
        if (!copy.dirty.isClean) await copy.round();
        await copy.window.finish();
        if (this.#phase === 'track') await job.pace.sleep(READY_SLEEP_MS);
      }
    }
  }

  /** Guests go on, and what they write is to be read back too: the last of it when they are held. */
  async #verify(): Promise<void> {
    for (let round = 0; round < ROUNDS_BEFORE_BLOCKING && this.#checked.isDue; round++)
      await this.#checked.verify((stretch, body) => this.#copy.withStill(stretch, body));
  }

  // ---- ends

  complete(): void {
    const { replaces } = this.#nodes;
    if (replaces && this.place.graph.find(replaces.name) !== replaces)
      throw new BlockError('not-found', `Node name '${replaces.name}' not found`);
    this.#phase = 'complete';
  }

  /**
   * A soft cancel: the target is to hold this moment. No piece begins, and when those in flight have landed guests are
   * held back for a moment; from then on what is still dirty is copied before the guest changes it, so that the end does
   * not depend on the guest. Resolves when that is so, or after a second: pieces may be in flight to a target that hangs.
   */
  async freeze(): Promise<void> {
    this.#phase = 'freezing';
    const { clock } = this.place.graph.host;
    await new Promise<void>((resolve, reject) => {
      const timer = clock.setTimer(GRACE_MS, resolve);
      this.#freeze()
        .then(resolve, reject)
        .finally(() => timer.cancel());
    });
  }

  async settle(): Promise<Node | undefined> {
    const { job } = this;
    const { clock } = this.place.graph.host;
    const isLeft = (): boolean => job.isReady && !job.isEnding && !job.pace.isUserPaused;
    do {
      while (isLeft() && this.#copy.remainingBytes > 0) {
        job.pace.kick();
        await clock.sleep(SETTLE_SLEEP_MS);
      }
      if (this.#copy.remainingBytes > 0 || !job.isReady || job.isEnding) return undefined;
      await this.#targetBackend.flush();
      this.#copy.markDoubtful();
    } while (this.#copy.remainingBytes > 0);
    return this.#target;
  }

  async #freeze(): Promise<void> {
    await this.#copy.window.quiet();
    await this.place.drained([this.#source], async () => {
      if (this.job.isCancelled || !this.job.isReady) return;
      // From now on the guest's changes make what may be lost later unknown here.
      this.#copy.markDoubtful();
      this.#wasInStep = this.#isInStep();
      this.#hold = new MirrorHold(this.job, this.#nodes, this.#copy);
      this.#guardSource(this.#hold.gate);
      this.#phase = 'frozen';
    });
    this.job.pace.kick();
  }

  async prepare(): Promise<void> {
    this.#succeeded = true;
    if (this.#phase !== 'complete') return;
    const { replaces } = this.#nodes;
    const moved = [this.#source, this.#target, ...(replaces ? [replaces] : [])];
    // What a guest's change has left is not copied while guests are held, if it is more than they may wait for.
    for (let round = 0; !this.#pivoted; round++) {
      const mostBytes = round < ROUNDS_BEFORE_BLOCKING ? AWAITED_BYTES : Infinity;
      await this.#copy.copyRest({ isHeld: false });
      await this.place.section(moved, async () => {
        await this.#copy.window.finish();
        this.#copy.markDoubtful();
        if (this.#copy.remainingBytes <= mostBytes) await this.#pivot();
      });
    }
  }

  /** Guests are held. */
  async #pivot(): Promise<void> {
    await this.#copy.copyRest({ isHeld: true });
    await this.#checked.verifyHeld();
    await this.#journal?.ending();
    await takePlace(this.place, this.#plan, this.#nodes);
    this.#pivoted = true;
  }

  giveUp(): void {
    this.place.giveUpCopy();
  }

  abort(): void {
    this.#succeeded = false;
    this.#hold?.gate.giveUp();
  }

  async clean(): Promise<void> {
    const { source, replaces = source } = this.#nodes;
    this.#finishBy?.end();
    // From here on guests' changes are not in the journal.
    const abandon = (): Promise<void> | void => {
      if (!this.#succeeded) return this.#journal?.abandon();
    };
    await eachInTurn([
      abandon,
      () => this.place.remove(),
      () => this.#endJournal(),
      // Where the source had no users, nobody uses the target after the pivot.
      () => this.place.close(this.#pivoted ? [source, replaces, this.#target] : [this.#target]),
    ]);
    if (this.#succeeded) await this.#checked.writeManifest();
  }

  /** A job that may be gone on with leaves behind what it knows, for as long as the engine lives. */
  async #endJournal(): Promise<void> {
    const { dirtyBitmaps } = this.#source;
    const { dirty } = this.#copy;
    const journal = this.#journal;
    const index = dirtyBitmaps.indexOf(dirty);
    const isKept = journal && !this.#succeeded && !this.#hold;
    if (isKept) this.#abandoned.set(journal.path, { node: this.#source, dirty });
    else if (index >= 0) dirtyBitmaps.splice(index, 1);
    await journal?.end(this.#succeeded ? 'completed' : 'failed', this.job.failureText);
  }
}
