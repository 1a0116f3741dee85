import { deferred, type Deferred } from '../../src/base/async.js';
import { errnoError } from '../../src/base/error.js';
import { KiB, MiB } from '../../src/base/limits.js';
import type { BlockBackend } from '../../src/block/backend.js';
import type { Node } from '../../src/block/node.js';
import { createSimulatedHost, SeededRandom, type Simulation } from '../../src/host/simulated.js';
import type { Job } from '../../src/jobs/job.js';
import { planBackup } from '../../src/jobs/plans/backup.js';
import { contents, JobBench } from './job-bench.js';
import { AT_ONCE, type MemoryBehaviour, type MemoryFile, newMemoryImage } from './memory-layer.js';
import { withDescriptors } from './passed-jobs.js';

export const CLUSTER = 64 * KiB;
export const DISK = 16 * MiB;
export const FOLDER = '/tmp';

/** Writes to it wait while it hangs, or take so long each, or fail. */
class SlowTarget {
  readonly file: MemoryFile;
  delayMs = 0;
  errno: 'EIO' | undefined;
  #hang: Deferred<void> | undefined;

  constructor(file: MemoryFile, sleep: (ms: number) => Promise<void>) {
    this.file = file;
    const write = file.write.bind(file);
    file.tryWrite = () => false;
    file.write = async (request, from, lengthBytes, offset) => {
      await this.#hang?.promise;
      if (this.delayMs > 0) await sleep(this.delayMs);
      if (this.errno !== undefined) throw errnoError(this.errno);
      await write(request, from, lengthBytes, offset);
    };
  }

  hang(): void {
    this.#hang ??= deferred();
  }

  goOn(): void {
    this.#hang?.resolve();
    this.#hang = undefined;
  }
}

/** A guest that writes to a disk, of which a backup with a buffer is made. */
export class FleecingBed {
  readonly simulation: Simulation;
  readonly random: SeededRandom;
  readonly bench: JobBench;
  source!: Node;
  guest!: BlockBackend;
  target!: SlowTarget;
  targetNode!: Node;
  /** What the guest's disk holds. */
  model!: Buffer;

  constructor(seed: number) {
    this.simulation = createSimulatedHost({ seed });
    this.random = new SeededRandom(seed);
    this.bench = new JobBench(withDescriptors(this.simulation.host));
  }

  async prepare(behaviour: MemoryBehaviour = AT_ONCE): Promise<Buffer> {
    const { bench } = this;
    const options = { lengthBytes: DISK, clusterBytes: CLUSTER, behaviour };
    const { node } = await newMemoryImage(bench.graph, 'top', options);
    const target = await newMemoryImage(bench.graph, 'target', options);
    await bench.graph.transaction((transaction) => transaction.detach(target.node.child('file')));
    await target.file.truncate(DISK);
    target.file.bytes.fill(9);
    this.source = node;
    this.targetNode = bench.graph.node('target-file');
    this.targetNode.monitorOwned = true;
    this.target = new SlowTarget(target.file, (ms) => this.simulation.host.clock.sleep(ms));
    this.guest = await bench.guest(node);
    // Units of data, of zeroes, and of both.
    for (let at = 0; at < DISK; at += 256 * KiB)
      await this.guest.write(at, Buffer.alloc(90 * KiB, 1 + (at % 251)));
    this.model = await contents(node);
    return Buffer.from(this.model);
  }

  async start(more: object = {}, request: object = {}): Promise<Job> {
    const fleecing = { folder: FOLDER, 'max-bytes': 4 * MiB, ...more };
    const plan = planBackup(this.bench.graph, {
      ...{ 'job-id': 'j', device: 'top', target: 'target-file', sync: 'full', 'x-fleecing': fleecing },
      // Little of it in memory.
      ...{ 'x-perf': { 'max-workers': 2, 'max-chunk': 256 * KiB }, 'auto-dismiss': false, ...request },
    });
    return this.bench.jobs.start(plan);
  }

  async write(offset: number, lengthBytes: number): Promise<void> {
    const bytes = Buffer.alloc(lengthBytes, 1 + this.random.below(255));
    await this.guest.write(offset, bytes);
    bytes.copy(this.model, offset);
  }

  /** All granules of a stretch of the disk's end, where the job comes last. */
  async overwrite(lengthBytes: number): Promise<void> {
    for (let at = DISK - lengthBytes; at < DISK; at += CLUSTER) await this.write(at + 512, 1024);
  }

  get names(): Promise<string[]> {
    return this.simulation.host.files.list(FOLDER);
  }

  async run(body: () => Promise<void>): Promise<void> {
    await this.simulation.run(body);
  }
}

/** What is told of the buffer. */
export function buffer(job: Job): { used: number; peak: number; max: number } {
  return job.progressInfo()['buffer'] as { used: number; peak: number; max: number };
}
