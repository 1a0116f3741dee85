import { AsyncMutex } from '../base/async.js';
import { BlockError } from '../base/error.js';
import { Node } from '../block/node.js';
import type { Opener } from '../block/open.js';
import type {
  BackupArguments,
  CommitArguments,
  CommonArguments,
  MirrorArguments,
  StreamArguments,
} from './arguments.js';
import { BackupJob, checkBackupArguments, checkBackupTarget } from './backup.js';
import { CommitJob } from './commit.js';
import { CreateJob } from './create.js';
import { checkSpeed, type EmitEvent, Job } from './job.js';
import type { JobDriver } from './job-driver.js';
import type { JobSurroundings } from './job-graph.js';
import { MirrorJob } from './mirror.js';
import { checkMirrorArguments, planOfActiveCommit, planOfMirror } from './mirror-plan.js';
import { checkJobId } from './state.js';
import { checkStreamArguments, StreamJob } from './stream.js';

interface Startable extends JobDriver {
  readonly job: Job;
  /** Users hear of it before it has its place, as of QEMU's. */
  readonly isAnnouncedFirst: boolean;
  /** Puts the job into the graph; on failure nothing of it stays. */
  insert(): Promise<void>;
}

/** All jobs of one engine. */
export class JobManager {
  readonly #surroundings: JobSurroundings;
  readonly #emit: EmitEvent;
  readonly #jobs = new Map<string, Job>();
  readonly #newListeners = new Set<(job: Job) => void>();
  #generated = 0;

  constructor(opener: Opener, emit: EmitEvent) {
    this.#surroundings = { graph: opener.graph, opener, changes: new AsyncMutex() };
    this.#emit = emit;
  }

  /** Calls `listener` with every job that is made from now on; the answer ends that. */
  onNew(listener: (job: Job) => void): () => void {
    this.#newListeners.add(listener);
    return () => void this.#newListeners.delete(listener);
  }

  /** An id that no job has. */
  newId(): string {
    for (;;) {
      const id = `job${this.#generated++}`;
      if (!this.#jobs.has(id)) return id;
    }
  }

  find(id: string): Job | undefined {
    return this.#jobs.get(id);
  }

  /** In order of creation, newest first as QEMU lists them. */
  list(): Job[] {
    return [...this.#jobs.values()].reverse();
  }

  async startStream(args: StreamArguments): Promise<Job> {
    assertChainNotBlocked(args.node, args.bottom ? args.bottom.below?.node : args.base);
    checkStreamArguments(args);
    return this.#start(args, (job) => new StreamJob(job, args, this.#surroundings));
  }

  async startCommit(args: CommitArguments): Promise<Job> {
    const isActive = args.top.skipFilters() === args.device.skipFilters();
    checkIsRoot(args.device);
    if (args.top.skipFilters() === args.base.skipFilters())
      throw new BlockError('invalid', 'cannot commit an image into itself');
    if (!args.top.isAbove(args.base))
      throw new BlockError('invalid', `'${args.base.name}' is not in this backing file chain`);
    args.device.assertNotBlocked();
    assertChainNotBlocked(args.top, args.base.below?.node);
    if (!isActive) return this.#start(args, (job) => new CommitJob(job, args, this.#surroundings));
    if (args.backingFile !== undefined)
      throw new BlockError('invalid', "'backing-file' specified, but 'top' is the active layer");
    return this.#start(args, (job) => new MirrorJob(job, planOfActiveCommit(args), this.#surroundings));
  }

  async startMirror(args: MirrorArguments): Promise<Job> {
    checkIsRoot(args.device);
    if (args.device === args.target) throw new BlockError('invalid', "Can't mirror node into itself");
    checkMirrorArguments(args);
    for (const node of [args.device, args.target]) node.assertNotBlocked();
    return this.#start(args, (job) => new MirrorJob(job, planOfMirror(args), this.#surroundings));
  }

  async startBackup(args: BackupArguments): Promise<Job> {
    checkBackup(args);
    return this.#surroundings.graph.drained([args.device, args.target], async () => {
      const backup = await this.prepareBackup(args);
      backup.begin();
      return backup.job;
    });
  }

  /**
   * A backup whose point in time is now, to begin() or to withdraw() in the drained section that the caller holds over
   * source and target.
   */
  async prepareBackup(args: BackupArguments): Promise<BackupJob> {
    checkBackup(args);
    return this.#insert(args, (job) => new BackupJob(job, args, this.#surroundings));
  }

  /** blockdev-create: runs `run`; stays until it is dismissed. */
  async startCreate(args: { jobId: string; run: () => Promise<void> }): Promise<Job> {
    const job = this.#newJob({ jobId: args.jobId, autoDismiss: false });
    new CreateJob(job, args.run);
    job.announce();
    job.start();
    return job;
  }

  /** Resolves when no job rests any more for a drained section that is over. */
  async untilAwake(): Promise<void> {
    await Promise.all([...this.#jobs.values()].map((job) => job.pace.untilAwake()));
  }

  /** Ends all jobs by force; resolves when they are over. */
  async cancelAll(): Promise<void> {
    await Promise.all([...this.#jobs.values()].map((job) => job.cancelNow()));
  }

  #newJob(args: CommonArguments): Job {
    checkJobId(args.jobId);
    if (this.#jobs.has(args.jobId)) throw new BlockError('exists', `Job ID '${args.jobId}' already in use`);
    const job = new Job(
      {
        id: args.jobId,
        speed: Math.max(0, args.speed ?? 0),
        ...(args.autoFinalize !== undefined && { autoFinalize: args.autoFinalize }),
        ...(args.autoDismiss !== undefined && { autoDismiss: args.autoDismiss }),
        ...(args.onReadError !== undefined && { onReadError: args.onReadError }),
        ...(args.onWriteError !== undefined && { onWriteError: args.onWriteError }),
      },
      this.#surroundings.graph,
      this.#emit,
      (gone) => this.#jobs.delete(gone.id),
    );
    this.#jobs.set(job.id, job);
    for (const listener of this.#newListeners) listener(job);
    return job;
  }

  async #start(args: CommonArguments, make: (job: Job) => Startable): Promise<Job> {
    const { job } = await this.#insert(args, make);
    job.start();
    return job;
  }

  async #insert<D extends Startable>(args: CommonArguments, make: (job: Job) => D): Promise<D> {
    const job = this.#newJob(args);
    try {
      const driver = make(job);
      const speed = args.speed ?? 0;
      if (driver.isAnnouncedFirst || speed < 0) job.announce();
      checkSpeed(speed);
      await driver.insert();
      job.announce();
      return driver;
    } catch (error) {
      job.abandon();
      throw error;
    }
  }
}

/** The nodes from `top` down to the one above `end` (undefined: to the base). Errors: kind busy, in QEMU's words. */
function assertChainNotBlocked(top: Node, end: Node | undefined): void {
  for (const node of top.chain()) {
    if (node === end) return;
    node.assertNotBlocked();
  }
}

function checkBackup(args: BackupArguments): void {
  checkBackupArguments(args);
  if (args.device === args.target) throw new BlockError('invalid', 'Source and target cannot be the same');
  for (const node of [args.device, args.target]) node.assertNotBlocked();
  checkBackupTarget(args);
}

/** A root is not a child of another node. Errors: kind invalid, in QEMU's words. */
function checkIsRoot(node: Node): void {
  for (const { parent } of node.parents)
    if (parent instanceof Node) throw new BlockError('invalid', 'Need a root block node');
}
