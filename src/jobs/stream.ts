import { eachInTurn } from '../base/async.js';
import { BlockError, errnoError, errnoOf } from '../base/error.js';
import { given } from '../base/given.js';
import { MiB } from '../base/limits.js';
import { type BackingReference, referenceAs } from '../block/backing-reference.js';
import type { BlockBackend } from '../block/backend.js';
import type { ChainStatus } from '../block/chain-status.js';
import { isInheritedFrom } from '../block/inheritance.js';
import { hasLostWrites } from '../block/lost-writes.js';
import type { Node } from '../block/node.js';
import { COPY_ON_READ } from '../drivers/copy-on-read/copy-on-read.js';
import { ZERO_BYTES } from './block-copy.js';
import { startWriteback } from './copy-target.js';
import { areOpen, whenOpen } from '../block/copy-turn.js';
import { COPY_PIECE_BYTES, CopyWindow, journaledWindow } from './copy-window.js';
import type { PassedWork } from './passed/passed-job.js';
import { passedReach } from './passed/passed-reach.js';
import { FailedPieces } from './failed-pieces.js';
import type { Job } from './job.js';
import type { JobDriver } from './job-driver.js';
import type { Tally, WorkProgress } from './job-progress.js';
import { asError, JobIoError } from './job-errors.js';
import type { JobJournal } from './persisted/job-journal.js';
import { ReachedGranules } from './persisted/reached-granules.js';
import type { StreamNodes, StreamPlan } from './plans/stream.js';
import { AS_NODE, creatingNode, JobPlace, type JobSurroundings, Permission } from './job-graph.js';
import { statusOrData } from './source-status.js';

/** Writeback of the node starts whenever this much was copied up. */
const WRITEBACK_BYTES = 32 * MiB;

/** Most that is copied up in one go, zeroes too: drained sections wait for it. */
const COPY_UP_BYTES = 16 * MiB;

/** What another process is told. A type alias: it is JSON. */
type PassedStream = { offset: number; tally: Tally; ignored?: { errno: string } };

/** block-stream: pulls data of the backing chain up into a node, then shortens the chain. */
export class StreamJob implements JobDriver {
  readonly type = 'stream';
  readonly isAnnouncedFirst = false;
  readonly job: Job;
  readonly #plan: StreamPlan;
  readonly #nodes: StreamNodes;
  readonly place: JobPlace;
  readonly #node: Node;
  /** The layer that is filled: what the node shows, where that is a filter. */
  readonly #layer: Node;
  /** The lowest node that is pulled up; what is below it stays. */
  readonly #lowest: Node;
  readonly #window: CopyWindow;
  readonly #backend: BlockBackend;
  readonly #pieceBytes: number;
  #offset = 0;
  readonly #failed = new FailedPieces();
  readonly #tally: Tally = { zeroBytes: 0, skippedBytes: 0 };
  /** The first error that was ignored: the job goes on to the end of the disk, and fails there. */
  #ignored: Error | undefined;
  #sinceWriteback = 0;
  #dropped: Node[] = [];
  /** Of what is left it is told only: the node itself knows what it has. */
  readonly #journal: JobJournal | undefined;
  readonly #reached: ReachedGranules | undefined;
  #succeeded = false;

  constructor(
    job: Job,
    plan: StreamPlan,
    nodes: StreamNodes,
    surroundings: JobSurroundings,
    journal?: JobJournal,
  ) {
    this.#journal = journal;
    this.#reached = journal && new ReachedGranules(journal);
    job.setDriver(this);
    this.job = job;
    this.#plan = plan;
    this.#nodes = nodes;
    this.#node = nodes.node;
    this.#layer = nodes.node.skipFilters();
    this.#lowest = lowestOf(nodes);
    this.place = creatingNode(
      () => new JobPlace(job, surroundings, COPY_ON_READ, plan.filterNodeName, nodes.node),
    );
    this.#backend = this.#hold();
    this.#pieceBytes = Math.min(COPY_PIECE_BYTES, journaledWindow(journal).pieceBytes ?? Infinity);
    this.#window = new CopyWindow(job, journaledWindow(journal));
    if (job.from) this.#goOnFrom(job.from.work.data as PassedStream);
  }

  #goOnFrom({ offset, tally, ignored }: PassedStream): void {
    this.#offset = offset;
    Object.assign(this.#tally, tally);
    if (ignored) this.#ignored = new JobIoError('read', errnoError(ignored.errno), 'ignore');
  }

  passed(): PassedWork {
    const ignored = this.#ignored && { errno: errnoOf(this.#ignored.cause) };
    const { offset, tally } = passedReach(this.#offset, this.#failed, this.#tally);
    const data: PassedStream = { offset, tally, ...given({ ignored }) };
    return { data, parts: {} };
  }

  progress(): WorkProgress {
    const doneBytes = this.#failed.reached(this.#offset);
    return { doneBytes, ...this.#tally, remainingBytes: this.#sizeBytes() - doneBytes };
  }

  #sizeBytes(): number {
    return this.#lowest === this.#layer ? 0 : this.#layer.lengthBytes;
  }

  async insert(): Promise<void> {
    const place = this.place;
    try {
      await place.drained([this.#node], () =>
        place.insert({
          before: (transaction) => {
            for (const node of new Set([this.#layer, this.#node])) place.listWritable(transaction, node);
          },
          wording: AS_NODE,
        }),
      );
    } catch (error) {
      // What is in the way of its hold on the layers below is met when the job is there already, as in QEMU.
      if (error instanceof BlockError && error.message.includes("'intermediate node' child"))
        this.job.announce();
      throw error;
    }
    await this.#journal?.begin({
      flush: () => whenOpen(this.#backend, () => this.#layer.io.flush()),
      flushSource: () => Promise.resolve(),
      isDirty: () => false,
      broken: (error) => this.#window.launch(0, () => Promise.reject(asError(error))),
    });
    place.freezeChain(place.filter, this.#lowest);
  }

  /** Its size was looked at once; what is below is read once. Answers the user that copies up. */
  #hold(): BlockBackend {
    const place = this.place;
    const { consistentRead, writeUnchanged, write } = Permission;
    const unchanged = consistentRead + writeUnchanged;
    place.hold('main node', place.filter, consistentRead, unchanged + write);
    const backend = place.backend(place.filter, consistentRead, unchanged + write);
    place.hold('active node', this.#node, 0, unchanged + write);
    const { base, bottom } = this.#nodes;
    const end = base ?? bottom?.below?.node;
    for (let at = this.#node.below?.node; at && at !== end; at = at.below?.node)
      place.hold('intermediate node', at, 0, unchanged);
    return backend;
  }

  async run(): Promise<void> {
    const window = this.#window;
    try {
      const size = this.#sizeBytes();
      while (this.#offset < size) {
        await window.room();
        await this.#step(size);
        this.#reached?.reach(this.#offset);
      }
      await window.finish();
      if (this.#ignored) throw this.#ignored;
      // What was pulled up is durable before the header lets go of the backing file, and before guests are held back.
      if (size > 0) await this.#flush();
    } finally {
      await window.quiet();
    }
  }

  async #flush(): Promise<void> {
    this.job.enter('flushing');
    for (;;) {
      try {
        return await whenOpen(this.#backend, () => this.#layer.io.flush());
      } catch (cause) {
        // What is gone does not come back with the next flush.
        const fate = hasLostWrites(this.#layer) ? 'lost' : 'policy';
        const error = this.job.ioError('read', cause, fate);
        if (!(error instanceof JobIoError) || error.action !== 'stop') throw error;
        await this.job.pace.checkpoint(() => undefined);
      }
    }
  }

  /** Deals with the extent at the offset reached, or a first piece of it. */
  async #step(size: number): Promise<void> {
    const offset = this.#offset;
    // A drained section has begun: the job rests first.
    if (!areOpen([this.#backend])) return;
    const status = await this.#statusAt(offset, size - offset);
    if (!areOpen([this.#backend])) return;
    const isLast = this.#lowest.backingNode() === undefined;
    // Without a base, what is allocated nowhere and what is zero below need no cluster.
    const isDue = status.allocated && status.depth > 0 && !(status.zero && isLast);
    if (!isDue) {
      if (status.zero) this.#tally.zeroBytes += status.lengthBytes;
      else this.#tally.skippedBytes += status.lengthBytes;
      this.#offset += status.lengthBytes;
      return;
    }
    const zero = status.zero;
    const isAtOnce = zero && !this.job.limit.isLimited;
    const length = Math.min(status.lengthBytes, isAtOnce ? ZERO_BYTES : this.#pieceBytes);
    if (zero) this.job.limit.spend(length);
    const rateBytes = zero ? 0 : length;
    const copy = (): Promise<void> => this.#failed.during(offset, () => this.#copy(offset, length, zero));
    const reached = this.#reached;
    if (zero || !this.#window.isDoneNow(rateBytes, () => this.#tryCopy(offset, length)))
      this.#window.launch(rateBytes, reached ? () => reached.during(offset, copy) : copy);
    if (zero) this.#tally.zeroBytes += length;
    this.#offset += length;
  }

  #statusAt(offset: number, lengthBytes: number): Promise<ChainStatus> {
    return whenOpen(this.#backend, () => statusOrData(this.#layer, offset, lengthBytes, this.#lowest));
  }

  #tryCopy(offset: number, length: number): boolean {
    try {
      if (!areOpen([this.#backend])) return false;
      if (!this.#layer.io.tryCopyUp(offset, length)) return false;
    } catch {
      // Repeated, it fails again, and is told as it should.
      return false;
    }
    this.#copied(length);
    return true;
  }

  async #copy(offset: number, length: number, zero: boolean): Promise<void> {
    try {
      for (let done = 0; done < length; done += COPY_UP_BYTES) {
        const part = Math.min(length - done, COPY_UP_BYTES);
        await whenOpen(this.#backend, () => this.#layer.io.copyUp(offset + done, part, zero));
      }
    } catch (cause) {
      const error = this.job.ioError('read', cause);
      if (!(error instanceof JobIoError) || error.action !== 'ignore') throw error;
      this.#ignored ??= error;
      return;
    }
    if (!zero) this.#copied(length);
  }

  /** Starts writeback now and then. */
  #copied(length: number): void {
    this.#sinceWriteback += length;
    if (this.#sinceWriteback < WRITEBACK_BYTES) return;
    this.#sinceWriteback = 0;
    startWriteback(this.#layer);
  }

  async prepare(): Promise<void> {
    if (this.#layer.children.has('backing')) await this.#shorten();
    this.#succeeded = true;
  }

  async #shorten(): Promise<void> {
    const place = this.place;
    const layer = this.#layer;
    await place.section([this.#node], async () => {
      await this.#journal?.ending();
      const link = layer.child('backing');
      const below = this.#lowest.below?.node;
      const base = below?.skipFilters();
      this.#dropped = [link.node];
      const isInherited = below !== undefined && isInheritedFrom(below, layer);
      const reference = (): BackingReference => referenceAs(this.#plan.backing, layer, base);
      await place.withBackingReferences([layer], reference, async () => {
        place.thaw();
        await place.graph.transaction((transaction) => {
          if (below) transaction.retarget(link, below);
          else transaction.detach(link);
          place.listRemoval(transaction);
        });
      });
      // What came with the layers that go is the node's own child from now on, as to blockdev-reopen.
      if (isInherited) below.inheritsFrom = layer;
      place.removed();
      await place.restoreReadOnly();
    });
  }

  async clean(): Promise<void> {
    await eachInTurn([
      () => this.place.remove(),
      () => this.#journal?.end(this.#succeeded ? 'completed' : 'failed', this.job.failureText),
      () => this.place.close(this.#dropped),
    ]);
  }
}

function lowestOf({ node, base, bottom }: StreamNodes): Node {
  if (bottom) return bottom;
  const end = base?.skipFilters();
  let lowest = node.skipFilters();
  for (let at = lowest.backingNode(); at && at !== end; at = at.backingNode()) lowest = at;
  return lowest;
}
