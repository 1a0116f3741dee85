import { BlockError, toBlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import type { Opener } from '../../block/open.js';
import type { Job } from '../../jobs/job.js';
import type { JobManager } from '../../jobs/manager.js';
import { planMirror } from '../../jobs/plans/mirror.js';
import type { XMove } from '../../schema/move.js';
import type { GuestDevice } from '../device.js';

type Storage = NonNullable<XMove['storage']>;

/** How long a request waits for a link that is made anew, unless the user says otherwise. */
const RECONNECT_SECONDS = 10;

/** What a disk's copy needs of the engine. */
export interface CopyParts {
  readonly graph: Graph;
  readonly opener: Opener;
  readonly jobs: JobManager;
}

/** A disk of the guest that goes to an export of the destination. */
export class MovedDisk {
  readonly device: string;
  readonly exportName: string;
  readonly source: Node;
  readonly #parts: CopyParts;
  readonly #target: Node;
  #job: Job | undefined;

  private constructor(parts: CopyParts, device: string, exportName: string, source: Node, target: Node) {
    this.#parts = parts;
    this.device = device;
    this.exportName = exportName;
    this.source = source;
    this.#target = target;
  }

  /**
   * Connects to its export; nothing changes there. Errors: those of connecting; permission for an export that is
   * read-only; invalid where it is of another size.
   */
  static async open(
    parts: CopyParts,
    { device, exportName, source }: Pick<MovedDisk, 'device' | 'exportName' | 'source'>,
    storage: Storage,
  ): Promise<MovedDisk> {
    const { opener, graph } = parts;
    const options = {
      driver: 'nbd',
      server: storage.server,
      export: exportName,
      'reconnect-delay': storage['reconnect-delay'] ?? RECONNECT_SECONDS,
      ...(storage['tls-creds'] !== undefined && { 'tls-creds': storage['tls-creds'] }),
      ...(storage['tls-hostname'] !== undefined && { 'tls-hostname': storage['tls-hostname'] }),
    };
    const plan = opener.drivers.gate.plan(options);
    const target = await opener
      .openPlan(plan, { readOnly: false, discard: 'unmap' })
      .catch((error: unknown) => {
        const { kind, message, errno } = toBlockError(error);
        const text = `Disk '${device}' goes to the export '${exportName}': ${message}`;
        throw new BlockError(kind, text, { ...given({ errno }), cause: error });
      });
    if (target.lengthBytes === source.lengthBytes)
      return new MovedDisk(parts, device, exportName, source, target);
    await graph.release([target]);
    throw new BlockError(
      'invalid',
      `Disk '${device}' is ${source.lengthBytes} bytes long here and its export '${exportName}' ${target.lengthBytes}`,
    );
  }

  /** What of it is to be copied, by its block status. */
  async dataBytes(): Promise<number> {
    const { source } = this;
    let bytes = 0;
    for (let at = 0; at < source.lengthBytes;) {
      const { zero, lengthBytes } = await source.statusThroughChain(at, source.lengthBytes - at);
      if (!zero) bytes += lengthBytes;
      at += lengthBytes;
    }
    return bytes;
  }

  /** How long the other end takes to make what it has durable, in ms. Errors: those of the flush. */
  async flushMs(): Promise<number> {
    const { clock } = this.#parts.graph.host;
    const startMs = clock.nowMs();
    await this.#target.io.flush();
    return clock.nowMs() - startMs;
  }

  /** Copies it, and then keeps both alike. Errors: those of a mirror that cannot begin. */
  async copy(speed: number): Promise<void> {
    const { graph, jobs } = this.#parts;
    // A device without an id has a path.
    const jobId = `x-move-${this.device.replaceAll(/[^\w.-]/g, '_')}`;
    const request = { 'job-id': jobId, device: this.source.name, target: this.#target.name };
    const isNew = await this.#isZero();
    this.#job = await jobs.start(planMirror(graph, { ...request, sync: 'full', speed }, { isNew }));
  }

  async #isZero(): Promise<boolean> {
    const { lengthBytes } = this.#target;
    const status = await this.#target.statusThroughChain(0, lengthBytes);
    return status.zero && status.lengthBytes === lengthBytes;
  }

  /** Both are alike but for what the guest has just written. Errors: of a copy that has failed. */
  async isInStep(): Promise<boolean> {
    await this.#assertGoesOn();
    return this.#job?.isReady === true;
  }

  /** Who ends a copy by himself has one of that moment, and not of what the guest writes after it. */
  async #assertGoesOn(): Promise<void> {
    const job = this.#job;
    if (job?.isEnding !== true) return;
    if (job.isOver || job.failureText !== undefined) await job.result();
    throw new BlockError('cancelled', `The copy of disk '${this.device}' was ended`);
  }

  progress(): { doneBytes: number; leftBytes: number; bytesPerSecond: number } {
    const progress = this.#job?.progress();
    return {
      doneBytes: progress?.doneBytes ?? 0,
      leftBytes: progress?.remainingBytes ?? this.source.lengthBytes,
      bytesPerSecond: progress?.bytesPerSecond ?? 0,
    };
  }

  /** The guest rests: the copy becomes what it wrote last, is durable there, and the connection ends. Errors: the copy's. */
  async finish(): Promise<void> {
    const job = this.#job;
    if (!job) return;
    await this.#assertGoesOn();
    await job.cancel({ force: false, softOnReady: true });
    await job.result();
    await this.close();
  }

  /** The copy ends soon, and is worth nothing. */
  giveUp(): void {
    this.#job?.cancelNow().catch(() => undefined);
  }

  /** Nothing of it is left here. */
  async close(): Promise<void> {
    if (this.#job && !this.#job.isOver) await this.#job.cancelNow();
    await this.#parts.graph.release([this.#target]);
  }
}

/** Which disks go, and to which exports. Errors: not-found; invalid where one cannot go. */
export function disksToMove(
  devices: ReadonlyMap<string, GuestDevice>,
  asked: Storage['disks'],
): Array<Pick<MovedDisk, 'device' | 'exportName' | 'source'>> {
  if (asked)
    return asked.map(({ device: name, export: exportName }) => {
      const device = devices.get(name);
      if (!device) throw new BlockError('not-found', `Device '${name}' not found`);
      const source = device.backend.root?.node;
      if (!source) throw new BlockError('invalid', `Device '${name}' has no medium`);
      return { device: name, exportName: exportName ?? usualExport(name, device), source };
    });
  return [...devices].flatMap(([name, device]) => {
    const { backend } = device;
    const source = backend.root?.node;
    // What nobody writes is the same file everywhere: an installation medium.
    return source && backend.isWritable
      ? [{ device: name, exportName: usualExport(name, device), source }]
      : [];
  });
}

/** As of an endpoint: the device's id, else its drive's, else its place in the machine. */
function usualExport(name: string, { id, backend }: GuestDevice): string {
  return id ?? (backend.name === '' ? name : backend.name);
}
