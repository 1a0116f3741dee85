import { eachInTurn } from '../base/async.js';
import { errnoError, errnoOf } from '../base/error.js';
import type { BlockBackend } from '../block/backend.js';
import { type BackingReference, referenceAs, settleBackingAbove } from '../block/backing-reference.js';
import type { ChainStatus } from '../block/chain-status.js';
import { isInheritedFrom } from '../block/inheritance.js';
import { Node } from '../block/node.js';
import { COMMIT_TOP } from '../drivers/commit-top/commit-top.js';
import { Mover, ZERO_BYTES } from './block-copy.js';
import { RangeLock } from '../block/range-lock.js';
import { areOpen, takeTurn, whenOpen } from '../block/copy-turn.js';
import { COPY_PIECE_BYTES, CopyWindow, journaledWindow } from './copy-window.js';
import type { PassedWork } from './passed/passed-job.js';
import { type PassedReach, passedReach } from './passed/passed-reach.js';
import { FailedPieces } from './failed-pieces.js';
import type { Job } from './job.js';
import type { JobDriver } from './job-driver.js';
import { asError } from './job-errors.js';
import type { Tally, WorkProgress } from './job-progress.js';
import { ALL_PERMISSIONS, JobPlace, type JobSurroundings, Permission } from './job-graph.js';
import type { JobJournal } from './persisted/job-journal.js';
import { ReachedGranules } from './persisted/reached-granules.js';
import { forgetAbandoned } from './persisted/resume.js';
import type { CommitNodes, CommitPlan } from './plans/commit.js';
import { layerAbove } from './plans/nodes.js';
import { statusOrData } from './source-status.js';

/** block-commit of layers below the active one: their data goes down into the base, and they leave the chain. */
export class CommitJob implements JobDriver {
  readonly type = 'commit';
  readonly isAnnouncedFirst = true;
  readonly job: Job;
  readonly #plan: CommitPlan;
  readonly place: JobPlace;
  readonly #top: Node;
  readonly #base: Node;
  /** The lowest layer whose data is committed: the one above base. */
  readonly #lowest: Node;
  readonly #topBackend: BlockBackend;
  readonly #baseBackend: BlockBackend;
  readonly #window: CopyWindow;
  readonly #mover: Mover;
  readonly #copying = new RangeLock();
  readonly #pieceBytes: number;
  #offset = 0;
  /** What was copied is copied again. */
  #isAgain = false;
  /** From here on the base's server may have lost something. */
  #lostFrom: number | undefined;
  readonly #failed = new FailedPieces();
  readonly #tally: Tally = { zeroBytes: 0, skippedBytes: 0 };
  readonly #journal: JobJournal | undefined;
  readonly #reached: ReachedGranules | undefined;
  readonly #abandoned: JobSurroundings['abandoned'];
  #succeeded = false;

  constructor(
    job: Job,
    plan: CommitPlan,
    nodes: CommitNodes,
    surroundings: JobSurroundings,
    journal?: JobJournal,
  ) {
    this.#journal = journal;
    this.#reached = journal && new ReachedGranules(journal);
    this.#abandoned = surroundings.abandoned;
    this.job = job;
    job.setDriver(this);
    const { device, top, base } = nodes;
    this.#plan = plan;
    this.#top = top;
    this.#base = base;
    this.#lowest = layerAbove(top, base);
    const place = new JobPlace(job, surroundings, COMMIT_TOP, plan.filterNodeName, top);
    this.place = place;
    place.hold('main node', device, 0, ALL_PERMISSIONS);
    holdIntermediate(place, top, base);
    place.hold('base', base, 0, ALL_PERMISSIONS);
    const isToGrow = base.lengthBytes < top.lengthBytes;
    this.#baseBackend = place.backend(
      base,
      Permission.consistentRead | Permission.write | (isToGrow ? Permission.resize : 0),
      Permission.consistentRead | Permission.writeUnchanged,
    );
    this.#topBackend = place.backend(top, 0, ALL_PERMISSIONS);
    this.#window = new CopyWindow(job, journaledWindow(journal));
    this.#pieceBytes = Math.min(COPY_PIECE_BYTES, journaledWindow(journal).pieceBytes ?? Infinity);
    this.#mover = new Mover({
      job,
      source: this.#topBackend,
      target: this.#baseBackend,
      unmap: true,
      compares: plan.compares,
      skipKnownZeroes: true,
    });
    if (job.from) this.#goOnFrom(job.from.work.data as PassedReach);
  }

  #goOnFrom({ offset, tally }: PassedReach): void {
    this.#offset = offset;
    Object.assign(this.#tally, tally);
  }

  passed(): PassedWork {
    this.#lookForLoss();
    const offset = Math.min(this.#offset, this.#lostFrom ?? Infinity);
    return { data: passedReach(offset, this.#failed, this.#tally), parts: {} };
  }

  progress(): WorkProgress {
    const doneBytes = this.#failed.reached(this.#offset);
    const remainingBytes = this.#top.lengthBytes - doneBytes;
    return { doneBytes, ...this.#tally, remainingBytes };
  }

  async insert(): Promise<void> {
    const place = this.place;
    const base = this.#base;
    await place.drained([this.#top, base], async () => {
      if (!place.isRehearsal) await settleBackingAbove(place.graph, base);
      await place.insert({ before: (transaction) => place.listWritable(transaction, base) });
    });
    await this.#beginJournal();
    place.freezeChain(place.filter, base);
  }

  async #beginJournal(): Promise<void> {
    const journal = this.#journal;
    if (!journal) return;
    forgetAbandoned(this.#abandoned, journal.path);
    const base = this.#baseBackend;
    await journal.begin({
      flush: async () => {
        await whenOpen(base, () => base.flush());
        this.#lookForLoss();
      },
      flushSource: () => Promise.resolve(),
      isDirty: (offset) => this.#reached?.isLost(offset) === true,
      broken: (error) => this.#window.launch(0, () => Promise.reject(asError(error))),
    });
  }

  async run(): Promise<void> {
    const window = this.#window;
    try {
      await growBase(this.#baseBackend, this.#top.lengthBytes, this.#journal);
      do {
        await this.#copyAll();
        this.job.enter('flushing');
        // Durable before overlays name the base, and before guests are held back.
      } while (await this.#mover.target.flush(() => this.#beginAgain()));
    } finally {
      await window.quiet();
    }
  }

  async #copyAll(): Promise<void> {
    const window = this.#window;
    const size = this.#top.lengthBytes;
    while (this.#offset < size) {
      await window.room();
      const left = this.#leftOf(size);
      if (left) await this.#step(left);
      this.#reached?.reach(this.#offset);
    }
    // Beyond the end of top its overlays read zeroes, whatever a longer base has there.
    const rest = this.#base.lengthBytes - size;
    if (rest > 0) window.launch(0, () => this.#mover.target.zero(size, rest));
    await window.finish();
  }

  /** From where the base's server may have lost something all is copied again. Answers whether it has. */
  #beginAgain(): boolean {
    this.#lookForLoss();
    if (this.#lostFrom === undefined) return false;
    this.#offset = Math.min(this.#offset, this.#lostFrom);
    this.#lostFrom = undefined;
    this.#isAgain = true;
    return true;
  }

  /** The journal takes none of that for copied from now on. */
  #lookForLoss(): void {
    const [first] = this.#base.instance.takeDoubtful?.() ?? [];
    if (!first) return;
    this.#lostFrom = Math.min(first.offset, this.#lostFrom ?? Infinity);
    this.#reached?.lost(this.#lostFrom);
  }

  /** Up to where it is to be copied; undefined: all of what follows is in the base already. */
  #leftOf(size: number): number | undefined {
    const journal = this.#journal;
    if (!journal?.isResumed || this.#isAgain) return size;
    const left = journal.left.nextDirty(this.#offset, size);
    const next = left?.offset ?? size;
    if (left && next <= this.#offset) return left.offset + left.lengthBytes;
    this.#tally.skippedBytes += next - this.#offset;
    this.#offset = next;
    return undefined;
  }

  async #step(size: number): Promise<void> {
    const offset = this.#offset;
    // A drained section has begun: the job rests first.
    const backends = [this.#topBackend, this.#baseBackend];
    if (!areOpen(backends)) return;
    const status = await whenOpen(this.#topBackend, () =>
      statusOrData(this.#top, offset, size - offset, this.#lowest),
    );
    if (!areOpen(backends)) return;
    if (!status.allocated) {
      this.#tally.skippedBytes += status.lengthBytes;
      this.#offset += status.lengthBytes;
      return;
    }
    const zero = status.zero;
    const isAtOnce = zero && !this.job.limit.isLimited;
    const length = Math.min(status.lengthBytes, isAtOnce ? ZERO_BYTES : this.#pieceBytes);
    if (zero) this.job.limit.spend(length);
    const rateBytes = zero ? 0 : length;
    const copy = (): Promise<void> =>
      zero ? this.#mover.target.zero(offset, length) : this.#copyData(offset, length, status);
    const mayTry = !zero && this.#plan.compares !== true;
    if (!mayTry || !this.#window.isDoneNow(rateBytes, () => this.#mover.tryCopyData(offset, length)))
      this.#launch(rateBytes, offset, copy);
    if (zero) this.#tally.zeroBytes += length;
    this.#offset += length;
  }

  #launch(rateBytes: number, offset: number, copy: () => Promise<void>): void {
    const work = (): Promise<void> => this.#failed.during(offset, copy);
    const reached = this.#reached;
    this.#window.launch(rateBytes, reached ? () => reached.during(offset, work) : work);
  }

  async #copyData(offset: number, lengthBytes: number, data: ChainStatus): Promise<void> {
    const sides = { source: this.#topBackend, target: this.#baseBackend };
    for (let done = 0; done < lengthBytes;) {
      const rest = { offset: offset + done, lengthBytes: lengthBytes - done };
      const turn = await takeTurn(this.#copying, rest, sides, false);
      try {
        done += await this.#mover.copyFirst(turn, rest, { unit: 1, data });
      } finally {
        turn.end();
      }
    }
  }

  async prepare(): Promise<void> {
    const place = this.place;
    await place.section([this.#top, this.#base], async () => {
      await this.#journal?.ending();
      const referenceOf = (overlay: Node): BackingReference =>
        referenceAs(this.#plan.backing, overlay, this.#base);
      await place.withBackingReferences(overlaysOf(place.filter), referenceOf, async () => {
        place.thaw();
        await place.graph.transaction((transaction) => place.listRemoval(transaction, this.#base));
      });
      // As to blockdev-reopen, the base comes in the place of the layers that go.
      if (isInheritedFrom(this.#base, this.#top)) this.#base.inheritsFrom = this.#top.inheritsFrom;
      place.removed();
      await place.restoreReadOnly();
    });
    this.#succeeded = true;
  }

  async clean(): Promise<void> {
    await eachInTurn([
      () => this.place.remove(),
      () => this.#journal?.end(this.#succeeded ? 'completed' : 'failed', this.job.failureText),
      () => this.place.close([this.#top]),
    ]);
  }
}

/** The nodes from top down to base, filters included. */
export function between(top: Node, base: Node): Node[] {
  const nodes: Node[] = [];
  for (const node of top.chain()) {
    nodes.push(node);
    if (node === base) break;
  }
  return nodes;
}

/**
 * The nodes from `top` down to the one above `base`: they leave the chain with the job. Meanwhile they show a mix of
 * old and new, except filters of the base. That they let others write is for the base below them.
 */
export function holdIntermediate(place: JobPlace, top: Node, base: Node): void {
  for (const node of between(top, base)) {
    if (node === base) return;
    const isConsistent = node.skipFilters() === base.skipFilters();
    const shared = Permission.writeUnchanged | Permission.write;
    place.hold('intermediate node', node, 0, shared + (isConsistent ? Permission.consistentRead : 0));
  }
}

/** Makes a base as long as what is committed into it; the new part reads as zeroes. `journal`: of a job that may go on. */
export async function growBase(base: BlockBackend, lengthBytes: number, journal?: JobJournal): Promise<void> {
  const old = Math.min(base.lengthBytes, journal?.head.targetBytes ?? Infinity);
  if (old >= lengthBytes) return;
  if (base.lengthBytes < lengthBytes) await whenOpen(base, () => grow(base, lengthBytes));
  // What a longer backing file of the base holds there must not appear.
  const below = Math.min(base.node.backingNode()?.lengthBytes ?? 0, lengthBytes);
  for (let at = old; at < below;) {
    const left = journal ? journal.left.nextDirty(at, below) : { offset: at, lengthBytes: below - at };
    if (!left) return;
    const start = Math.max(at, left.offset);
    at = Math.min(left.offset + left.lengthBytes, below);
    await whenOpen(base, () => base.writeZeroes(start, at - start));
  }
}

/** Errors: those of the base, of which a job tells the errno's text, as of any other request. */
async function grow(base: BlockBackend, lengthBytes: number): Promise<void> {
  try {
    await base.truncate(lengthBytes);
  } catch (error) {
    throw errnoError(errnoOf(error), undefined, { cause: error });
  }
}

/** The images whose backing file a node is, seen through filters. */
function overlaysOf(node: Node): Node[] {
  const overlays: Node[] = [];
  for (const { parent, role } of node.parents) {
    if (!(parent instanceof Node)) continue;
    if (parent.isFilter) overlays.push(...overlaysOf(parent));
    else if (role === 'backing') overlays.push(parent);
  }
  return overlays;
}
