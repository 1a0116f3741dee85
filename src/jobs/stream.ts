import { BlockError } from '../base/error.js';
import { referenceTo } from '../block/backing-reference.js';
import type { ChainStatus } from '../block/chain-status.js';
import type { Node } from '../block/node.js';
import { COPY_ON_READ } from '../drivers/copy-on-read/copy-on-read.js';
import type { StreamArguments } from './arguments.js';
import { CopyWindow, startWriteback, ZERO_BYTES } from './block-copy.js';
import type { Job, JobDriver } from './job.js';
import {
  ALL_PERMISSIONS,
  creatingNode,
  JobPlace,
  type JobSurroundings,
  notCreated,
  Permission,
} from './job-graph.js';

/** Writeback of the node starts whenever this much was copied up. */
const WRITEBACK_BYTES = 32 * 1024 * 1024;

/** block-stream: pulls data of the backing chain up into a node, then shortens the chain. */
export class StreamJob implements JobDriver {
  readonly type = 'stream';
  readonly isAnnouncedFirst = false;
  readonly job: Job;
  readonly #arguments: StreamArguments;
  readonly #place: JobPlace;
  readonly #node: Node;
  /** The lowest node that is pulled up; what is below it stays. */
  readonly #lowest: Node;
  readonly #window: CopyWindow;
  #offset = 0;
  #sinceWriteback = 0;
  #dropped: Node[] = [];

  constructor(job: Job, args: StreamArguments, surroundings: JobSurroundings) {
    job.setDriver(this);
    this.job = job;
    this.#arguments = args;
    this.#node = args.node;
    this.#lowest = lowestOf(args);
    this.#place = creatingNode(
      () => new JobPlace(job, surroundings, COPY_ON_READ, args.filterNodeName, args.node),
    );
    this.#window = new CopyWindow(job);
  }

  get offsetBytes(): number {
    return this.#offset;
  }

  get totalBytes(): number {
    return this.#lowest === this.#node ? 0 : this.#node.lengthBytes;
  }

  async insert(): Promise<void> {
    const place = this.#place;
    const backend = place.backend(
      Permission.consistentRead + Permission.writeUnchanged,
      ALL_PERMISSIONS - Permission.resize,
    );
    const node = this.#node;
    try {
      await place.drained([node], () =>
        place.insert([[backend, node]], (transaction) => place.listWritable(transaction, node)),
      );
    } catch (error) {
      throw node.activity === 'inactive' ? notCreated(error) : error;
    }
    place.freezeChain(place.filter, this.#lowest);
    place.block(this.type, this.#involved());
  }

  #involved(): Node[] {
    const nodes: Node[] = [];
    for (const node of this.#node.chain()) {
      nodes.push(node);
      if (node === this.#lowest) break;
    }
    return nodes;
  }

  async run(): Promise<void> {
    const window = this.#window;
    try {
      const size = this.totalBytes;
      while (this.#offset < size) {
        await window.room();
        await this.#step(size);
      }
      await window.finish();
      // What was pulled up is durable before the header lets go of the backing file, and before guests are held back.
      await this.#node.io.flush();
    } finally {
      await window.quiet();
    }
  }

  /** Deals with the extent at the offset reached, or a first piece of it. */
  async #step(size: number): Promise<void> {
    const offset = this.#offset;
    const status = await this.#statusAt(offset, size - offset);
    const isLast = this.#lowest.backingNode() === undefined;
    // Without a base, what is allocated nowhere and what is zero below need no cluster.
    const isDue = status.allocated && status.depth > 0 && !(status.zero && isLast);
    if (!isDue) {
      this.#offset += status.lengthBytes;
      return;
    }
    const zero = status.zero;
    const length = Math.min(status.lengthBytes, zero ? ZERO_BYTES : this.#window.pieceBytes(4096));
    const rateBytes = zero ? 0 : length;
    if (zero || !this.#window.isDoneNow(rateBytes, () => this.#tryCopy(offset, length)))
      this.#window.launch(rateBytes, () => this.#copy(offset, length, zero));
    this.#offset += length;
  }

  async #statusAt(offset: number, lengthBytes: number): Promise<ChainStatus> {
    try {
      return await this.#node.statusThroughChain(offset, lengthBytes, this.#lowest);
    } catch (error) {
      throw this.job.ioError('read', error);
    }
  }

  #tryCopy(offset: number, length: number): boolean {
    try {
      if (!this.#node.io.tryCopyUp(offset, length)) return false;
    } catch {
      // Repeated, it fails again, and is told as it should.
      return false;
    }
    this.#copied(length);
    return true;
  }

  async #copy(offset: number, length: number, zero: boolean): Promise<void> {
    try {
      await this.#node.io.copyUp(offset, length, zero);
    } catch (error) {
      throw this.job.ioError('read', error);
    }
    if (!zero) this.#copied(length);
  }

  /** Starts writeback now and then. */
  #copied(length: number): void {
    this.#sinceWriteback += length;
    if (this.#sinceWriteback < WRITEBACK_BYTES) return;
    this.#sinceWriteback = 0;
    startWriteback(this.#node);
  }

  async prepare(): Promise<void> {
    const place = this.#place;
    const node = this.#node;
    if (!node.children.has('backing')) return;
    await place.section([node], async () => {
      const link = node.child('backing');
      const below = this.#lowest.below?.node;
      const base = below?.skipFilters();
      const reference = base ? referenceTo(base) : { filename: undefined, format: undefined };
      if (base) reference.filename = this.#arguments.backingFile ?? reference.filename;
      this.#dropped = [link.node];
      await place.withBackingReferences([node], reference, async () => {
        place.thaw();
        await place.graph.transaction((transaction) => {
          if (below) transaction.retarget(link, below);
          else transaction.detach(link);
          place.listRemoval(transaction);
        });
      });
      place.removed();
      await place.restoreReadOnly();
    });
  }

  async clean(): Promise<void> {
    await this.#place.remove();
    await this.#place.close(this.#dropped);
  }
}

/** Errors: kind invalid, in QEMU's words. */
export function checkStreamArguments({ base, bottom, backingFile }: StreamArguments): void {
  if (!base && !bottom && backingFile !== undefined)
    throw new BlockError('invalid', 'backing file specified, but streaming the entire chain');
}

function lowestOf({ node, base, bottom }: StreamArguments): Node {
  if (!node.children.has('backing') && base === undefined && bottom === undefined) return node;
  if (bottom) return bottom;
  const end = base?.skipFilters();
  let lowest = node;
  for (let at = node.backingNode(); at && at !== end; at = at.backingNode()) lowest = at;
  return lowest;
}
