import { AsyncMutex } from '../base/async.js';
import { CancelSignal } from '../base/cancel-signal.js';
import { BlockError } from '../base/error.js';
import type { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import type { Opener } from '../block/open.js';
import { BackupJob } from './backup.js';
import { CommitJob } from './commit.js';
import { CreateJob } from './create.js';
import { checkSpeed, type EmitEvent, Job, type JobProperties } from './job.js';
import type { JobGroup } from './job-group.js';
import type { JobDriver, StepType } from './job-driver.js';
import { creatingNode, JobPlace, type JobSurroundings } from './job-graph.js';
import { MirrorJob } from './mirror.js';
import { backupNodes, type BackupPlan, copyUnitBytes } from './plans/backup.js';
import { commitNodes, type CommitPlan } from './plans/commit.js';
import type { CreatePlan } from './plans/create.js';
import { mirrorNodes, type MirrorPlan } from './plans/mirror.js';
import type { BlockJobPlan, JobPlan } from './plans/plan.js';
import { streamNodes, type StreamPlan } from './plans/stream.js';
import type { JobJournal } from './persisted/job-journal.js';
import type { PersistedPlan } from './persisted/images.js';
import { newJournal, reopenJournal, type Resumption, type ResumeRequest } from './persisted/resume.js';
import { checkJobId } from './state.js';
import { checkNoManifest } from './verified/manifest.js';
import { StepJob } from './step.js';
import { StreamJob } from './stream.js';

interface Startable extends JobDriver {
  readonly job: Job;
  /** Users hear of it before it has its place, as of QEMU's. */
  readonly isAnnouncedFirst: boolean;
  /** Puts the job into the graph; on failure nothing of it stays. */
  insert(): Promise<void>;
}

/** How a job has ended: one of two ways. A type alias: an answer of JSON. */
export type JobEnd = { id: string; type: string; state: 'completed' | 'failed'; error?: string };

/** Ends of jobs that are kept. */
const MAX_REMEMBERED = 1000;

/** All jobs of one engine. */
export class JobManager {
  readonly #surroundings: JobSurroundings;
  readonly #emit: EmitEvent;
  readonly #jobs = new Map<string, Job>();
  readonly #newListeners = new Set<(job: Job) => void>();
  #generated = 0;
  readonly #ended: JobEnd[] = [];

  constructor(opener: Opener, emit: EmitEvent) {
    this.#surroundings = {
      graph: opener.graph,
      opener,
      changes: new AsyncMutex(),
      abandoned: new Map(),
    };
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

  /** Those that work on a node, or put the filter there that it is. */
  at(node: Node): Job[] {
    const owners = [
      node.filterOwner,
      ...[...node.parents].map(({ parent }) => 'owner' in parent && parent.owner),
    ];
    return this.list().filter((job) =>
      owners.some((owner) => owner instanceof JobPlace && owner.job === job),
    );
  }

  /** In order of creation, newest first as QEMU lists them. */
  list(): Job[] {
    return [...this.#jobs.values()].reverse();
  }

  /**
   * Starts what a plan says; it may be one that was kept. Errors, in QEMU's words: those of the plan, where it is not
   * true any more; exists or invalid for names that cannot be had; those of the change of the graph.
   */
  async start(plan: JobPlan): Promise<Job> {
    if (plan.kind === 'create') return this.#startCreate(plan);
    return this.#start(plan, await newJournal(this.#surroundings.graph, plan));
  }

  async #start(plan: PersistedPlan, journal: JobJournal | undefined): Promise<Job> {
    try {
      if (plan.kind === 'backup') return await this.#startBackup(plan, journal);
      const { job } = await this.#insert(plan, this.#maker(plan, journal));
      job.start();
      return job;
    } catch (error) {
      // One that never was leaves no journal.
      if (journal?.isResumed === true) await journal.letGo();
      else await journal?.discard();
      throw error;
    }
  }

  /**
   * Goes on with a job that was cut off, by its journal; answers its id, and how much is left. Errors: those of
   * reopenJournal and start().
   */
  async resume(request: ResumeRequest): Promise<{ id: string; left: number } & Pick<Resumption, 'point'>> {
    const { journal, plan, point } = await reopenJournal(this.#surroundings, request);
    const left = journal.left.dirtyBytes;
    const { id } = await this.#start(plan, journal);
    return { id, left, ...(point && { point }) };
  }

  /** How jobs on disks have ended, the last one first. */
  history(): readonly JobEnd[] {
    return [...this.#ended].reverse();
  }

  #maker(plan: StreamPlan | CommitPlan | MirrorPlan, journal?: JobJournal): (job: Job) => Startable {
    const surroundings = this.#surroundings;
    const { graph } = surroundings;
    if (plan.kind === 'stream') {
      const nodes = streamNodes(graph, plan);
      return (job) => new StreamJob(job, plan, nodes, surroundings, journal);
    }
    if (plan.kind === 'commit') {
      const nodes = commitNodes(graph, plan);
      return (job) => new CommitJob(job, plan, nodes, surroundings, journal);
    }
    const nodes = mirrorNodes(graph, plan);
    return (job) => new MirrorJob(job, plan, nodes, surroundings, journal);
  }

  async #startBackup(plan: BackupPlan, journal: JobJournal | undefined): Promise<Job> {
    const { graph } = this.#surroundings;
    const { device, target } = backupNodes(graph, plan);
    return graph.drained([device, target], async () => {
      const backup = await this.#insertBackup(plan, undefined, journal);
      backup.begin();
      return backup.job;
    });
  }

  /**
   * A backup whose point in time is now, to begin() or to withdraw() in the drained section that the caller holds over
   * source and target.
   */
  async prepareBackup(plan: BackupPlan, group?: JobGroup): Promise<BackupJob> {
    const journal = await newJournal(this.#surroundings.graph, plan);
    try {
      return await this.#insertBackup(plan, group, journal);
    } catch (error) {
      await journal?.discard();
      throw error;
    }
  }

  async #insertBackup(
    plan: BackupPlan,
    group: JobGroup | undefined,
    journal: JobJournal | undefined,
  ): Promise<BackupJob> {
    const nodes = backupNodes(this.#surroundings.graph, plan);
    const make = (job: Job): BackupJob => {
      group?.add(job);
      return new BackupJob(job, plan, nodes, this.#surroundings, journal);
    };
    return this.#insert(plan, make, () => copyUnitBytes(plan, nodes.target));
  }

  /** Stays until it is dismissed. */
  #startCreate(plan: CreatePlan): Job {
    const job = this.#newJob({ id: plan.jobId, autoDismiss: false });
    new CreateJob(job, plan, this.#surroundings.opener);
    job.announce();
    job.start();
    return job;
  }

  /** A job of one step of work; stays until it is dismissed. Errors: exists or invalid for the id. */
  startStep(type: StepType, id: string, work: () => Promise<void>): void {
    const job = this.#newJob({ id, autoDismiss: false });
    new StepJob(job, type, work);
    job.announce();
    job.start();
  }

  /** Resolves when no job rests any more for a drained section that is over. */
  async untilAwake(): Promise<void> {
    await Promise.all([...this.#jobs.values()].map((job) => job.pace.untilAwake()));
  }

  /** Ends all jobs by force; resolves when they are over. */
  async cancelAll(): Promise<void> {
    const { graph } = this.#surroundings;
    const signal = new CancelSignal();
    // What waits for the pace of a throttled node goes on in a drained section.
    graph.drained(graph.nodesInUse(), () => undefined, undefined, signal).catch(() => undefined);
    await Promise.all([...this.#jobs.values()].map((job) => job.cancelNow()));
    signal.cancel();
  }

  /** The same, and none waits for somebody to dismiss it. */
  async endAll(): Promise<void> {
    await this.cancelAll();
    for (const job of [...this.#jobs.values()]) job.dismiss();
  }

  /** What is wrong with a job's names and speed, now. Errors: as of start(). */
  check(plan: Pick<BlockJobPlan, 'kind' | 'jobId' | 'speed' | 'filterNodeName'>): void {
    checkFilterName(this.#surroundings.graph, plan);
    this.#checkId(plan.jobId);
    checkSpeed(plan.speed);
  }

  #remember(job: Job): void {
    const { id, type, end, error } = job;
    if (!end) return;
    this.#ended.push({ id, type, state: end, ...(error !== undefined && { error }) });
    if (this.#ended.length > MAX_REMEMBERED) this.#ended.shift();
  }

  #checkId(id: string): void {
    checkJobId(id);
    if (this.#jobs.has(id)) throw new BlockError('exists', `Job ID '${id}' already in use`);
  }

  #newJob(properties: JobProperties): Job {
    const { id } = properties;
    this.#checkId(id);
    const { graph } = this.#surroundings;
    const job = new Job(properties, graph, this.#emit, (gone) => this.#jobs.delete(gone.id));
    this.#jobs.set(job.id, job);
    for (const listener of this.#newListeners) listener(job);
    return job;
  }

  /** In QEMU's order: the filter's name, what the filter needs, the job's id, its speed, its place in the graph. */
  async #insert<D extends Startable>(
    plan: BlockJobPlan,
    make: (job: Job) => D,
    checkFilter: () => unknown = () => undefined,
  ): Promise<D> {
    checkFilterName(this.#surroundings.graph, plan);
    checkFilter();
    if ('manifest' in plan && plan.manifest !== undefined)
      await checkNoManifest(this.#surroundings.graph.host, plan.manifest);
    const { jobId: id, speed, autoFinalize, autoDismiss, onReadError, onWriteError } = plan;
    const policies = { onReadError, onWriteError };
    const job = this.#newJob({ id, speed: speed < 0 ? 0 : speed, autoFinalize, autoDismiss, ...policies });
    try {
      // QEMU makes a commit's filter last of all.
      if (plan.kind === 'commit') {
        job.announce();
        checkSpeed(speed);
      }
      const driver = make(job);
      if (driver.isAnnouncedFirst || speed < 0) job.announce();
      checkSpeed(speed);
      await driver.insert();
      if ('persist' in plan) job.journal = plan.persist;
      job.announce();
      void job.concluded.then(() => this.#remember(job));
      return driver;
    } catch (error) {
      job.abandon();
      throw error;
    }
  }
}

/** Errors: exists, invalid; some filters are made as other nodes are, and QEMU says so. */
function checkFilterName(
  graph: Graph,
  { kind, filterNodeName }: Pick<BlockJobPlan, 'kind' | 'filterNodeName'>,
): void {
  if (filterNodeName === undefined || kind === 'commit') return;
  const check = (): void => graph.checkNewName(filterNodeName);
  if (kind === 'stream' || kind === 'backup') creatingNode(check);
  else check();
}
