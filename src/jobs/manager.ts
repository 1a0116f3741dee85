import { AsyncMutex, deferred } from '../base/async.js';
import { given } from '../base/given.js';
import { CancelSignal } from '../base/cancel-signal.js';
import { BlockError } from '../base/error.js';
import { GRACE_MS, type Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import type { Opener } from '../block/open.js';
import { BackupJob } from './backup.js';
import { CommitJob } from './commit.js';
import { CreateJob } from './create.js';
import { type EmitEvent, Job, type JobProperties } from './job.js';
import { fleecingBufferFor } from './fleecing/fleecing-buffer.js';
import { JobGroup } from './job-group.js';
import { EndedWork } from './passed/ended-work.js';
import { type EndedJob, type PassedJob, speedOfText } from './passed/passed-job.js';
import type { JobDriver, StepType } from './job-driver.js';
import { creatingNode, JobPlace, type JobSurroundings, Rehearsed } from './job-graph.js';
import { MirrorJob } from './mirror.js';
import { backupNodes, type BackupPlan, copyUnitBytes } from './plans/backup.js';
import { commitNodes } from './plans/commit.js';
import type { CreatePlan } from './plans/create.js';
import { mirrorNodes } from './plans/mirror.js';
import type { BlockJobPlan, JobPlan } from './plans/plan.js';
import { streamNodes } from './plans/stream.js';
import type { JobJournal } from './persisted/job-journal.js';
import type { PersistedPlan } from './persisted/images.js';
import {
  checkNoJournal,
  newJournal,
  reopenJournal,
  type Resumption,
  type ResumeRequest,
} from './persisted/resume.js';
import { restJobs } from './passed/rest-jobs.js';
import { checkSpeed } from './rate-limit.js';
import { checkJobId } from './state.js';
import { checkNoManifest } from './verified/manifest.js';
import { StepJob } from './step.js';
import { StreamJob } from './stream.js';

interface Startable extends JobDriver {
  readonly job: Job;
  /** Users hear of it before it has its place, as of QEMU's. */
  readonly isAnnouncedFirst: boolean;
  /** After insert() has failed: its filter had found its place, so users hear of it. */
  readonly isRefusedLate?: boolean;
  /** Puts the job into the graph; on failure nothing of it stays. */
  insert(): Promise<void>;
}

/** How a job has ended: one of two ways. A type alias: an answer of JSON. */
export type JobEnd = { id: string; type: string; state: 'completed' | 'failed'; error?: string };

/** Most that jobs have to come to rest before they are cancelled at the end. */
const REST_MS = 100;
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
    const places = placesAt(node);
    return this.list().filter((job) => places.some((place) => place.job === job));
  }

  /** By whom a job uses a node: its requests go on in a drained section of this owner's. */
  placeOf(job: Job, node: Node): object | undefined {
    return placesAt(node).find((place) => place.job === job);
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
      const { job } = await this.#insert(plan, this.#maker(plan, journal), journal);
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

  // ---- another process that goes on with them

  /** See restJobs(). */
  rest(timeoutMs: number): Promise<() => void> {
    return restJobs(() => this.list(), this.#surroundings.graph.host.clock, timeoutMs);
  }

  /**
   * Jobs of another process, the first one first, in their places: guests' changes pass their gates, and they rest until
   * goOn(). Errors: as of start(); then the engine is of no use.
   */
  async restorePassed(jobs: ReadonlyArray<PassedJob | EndedJob>): Promise<void> {
    const groups = new Map<number, JobGroup>();
    for (const passed of jobs) {
      if (!('plan' in passed)) {
        this.#restoreEnded(passed);
        continue;
      }
      const job = this.#newJob({ ...propertiesOf(passed.plan), speed: passed.speed, from: passed });
      if (passed.group !== undefined) {
        const group = groups.get(passed.group) ?? new JobGroup();
        groups.set(passed.group, group);
        group.add(job);
      }
      await this.#restore(job, passed.plan);
    }
  }

  async #restore(job: Job, plan: JobPlan): Promise<void> {
    if (plan.kind === 'create') {
      new CreateJob(job, plan, this.#surroundings.opener);
      return;
    }
    if (plan.kind === 'backup') await this.#restoreBackup(job, plan);
    else await this.#maker(plan)(job).insert();
    void job.concluded.then(() => this.#remember(job));
  }

  async #restoreBackup(job: Job, plan: BackupPlan): Promise<void> {
    const { graph } = this.#surroundings;
    const nodes = backupNodes(graph, plan);
    const buffer = await fleecingBufferFor(graph.host, plan, nodes, job.from?.work);
    const backup = new BackupJob(job, plan, nodes, this.#surroundings, given({ buffer }));
    await graph.drained([nodes.device, nodes.target], () => backup.insert());
  }

  #restoreEnded(ended: EndedJob): void {
    const { id, autoFinalize, autoDismiss, speed, heldNode } = ended;
    const job = this.#newJob({ id, autoFinalize, autoDismiss, speed: speedOfText(speed) });
    job.setDriver(
      new EndedWork(ended, heldNode === undefined ? undefined : this.#surroundings.graph.node(heldNode)),
    );
    job.endedElsewhere(ended);
  }

  /** Those of restorePassed() go on. */
  goOn(): void {
    for (const job of [...this.#jobs.values()]) if (job.from && !job.isOver) job.goOn();
  }

  // ---- how they end

  /** How jobs on disks have ended, the last one first. */
  history(): readonly JobEnd[] {
    return [...this.#ended].reverse();
  }

  /** That of a process that was taken over from; the last one first. */
  restoreHistory(ends: readonly JobEnd[]): void {
    this.#ended.unshift(...[...ends].reverse());
  }

  /** Whether start() would take it, now: nothing is changed, nobody hears of it. Errors: its. */
  async rehearse(plan: BlockJobPlan): Promise<void> {
    const surroundings: JobSurroundings = { ...this.#surroundings, isRehearsal: true };
    await checkNoJournal(surroundings.graph, plan);
    checkFilterName(surroundings.graph, plan);
    if (plan.kind === 'backup') copyUnitBytes(plan, backupNodes(surroundings.graph, plan).target);
    if ('manifest' in plan && plan.manifest !== undefined)
      await checkNoManifest(surroundings.graph.host, plan.manifest);
    this.#checkId(plan.jobId);
    checkSpeed(plan.speed);
    const nobody = (): void => undefined;
    const job = new Job({ id: plan.jobId }, surroundings.graph, nobody, nobody);
    try {
      await this.#maker(plan, undefined, surroundings)(job).insert();
    } catch (error) {
      if (!(error instanceof Rehearsed)) throw error;
    }
  }

  #maker(
    plan: BlockJobPlan,
    journal?: JobJournal,
    surroundings = this.#surroundings,
  ): (job: Job) => Startable {
    const { graph } = surroundings;
    if (plan.kind === 'backup') {
      const nodes = backupNodes(graph, plan);
      return (job) => new BackupJob(job, plan, nodes, surroundings, given({ journal }));
    }
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
    const { graph } = this.#surroundings;
    const nodes = backupNodes(graph, plan);
    const buffer = await fleecingBufferFor(graph.host, plan, nodes);
    const make = (job: Job): BackupJob => {
      group?.add(job);
      return new BackupJob(job, plan, nodes, this.#surroundings, given({ journal, buffer }));
    };
    try {
      return await this.#insert(plan, make, journal, () => copyUnitBytes(plan, nodes.target));
    } catch (error) {
      await buffer?.close();
      throw error;
    }
  }

  /** Stays until it is dismissed. */
  #startCreate(plan: CreatePlan): Job {
    const job = this.#newJob(propertiesOf(plan));
    new CreateJob(job, plan, this.#surroundings.opener);
    job.announce();
    job.start();
    return job;
  }

  /**
   * A job of one step of work; stays until it is dismissed, and so does `heldNode`. Errors: exists or invalid for the id.
   */
  startStep(type: StepType, id: string, work: () => Promise<void>, heldNode?: Node): void {
    const job = this.#newJob({ id, autoDismiss: false });
    new StepJob(job, type, work, heldNode);
    job.announce();
    job.start();
  }

  /** Resolves when no job rests any more for a drained section that is over. */
  async untilAwake(): Promise<void> {
    await Promise.all([...this.#jobs.values()].map((job) => job.pace.untilAwake()));
  }

  /**
   * Ends all jobs by force; resolves when they are over. They come to rest first, as in QEMU: once for a guest that ran and
   * stops (`afterGuest`), and then for the end itself. What hangs is not waited for.
   */
  async cancelAll({ afterGuest = false } = {}): Promise<void> {
    if (this.#jobs.size === 0) return;
    if (afterGuest) await this.#restOnce();
    const { graph } = this.#surroundings;
    const signal = new CancelSignal();
    const begun = deferred();
    const timer = graph.host.clock.setTimer(REST_MS, () => begun.resolve());
    // What waits for the pace of a throttled node goes on in a drained section.
    graph.drained(graph.nodesInUse(), () => begun.resolve(), undefined, signal).catch(() => undefined);
    await begun.promise;
    timer.cancel();
    await Promise.all(this.list().map((job) => job.cancelNow()));
    signal.cancel();
  }

  async #restOnce(): Promise<void> {
    const { graph } = this.#surroundings;
    const signal = new CancelSignal();
    const timer = graph.host.clock.setTimer(GRACE_MS, () => signal.cancel());
    await graph.drained(graph.nodes.values(), () => undefined, undefined, signal).catch(() => undefined);
    timer.cancel();
    if (!signal.isCancelled) await this.untilAwake();
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
    journal: JobJournal | undefined,
    checkFilter: () => unknown = () => undefined,
  ): Promise<D> {
    checkFilterName(this.#surroundings.graph, plan);
    checkFilter();
    if ('manifest' in plan && plan.manifest !== undefined)
      await checkNoManifest(this.#surroundings.graph.host, plan.manifest);
    const { speed } = plan;
    const job = this.#newJob({ ...propertiesOf(plan), speed: speed < 0 ? 0 : speed });
    try {
      // QEMU makes a commit's filter last of all.
      if (plan.kind === 'commit') {
        job.announce();
        checkSpeed(speed);
      }
      const driver = make(job);
      if (driver.isAnnouncedFirst || speed < 0) job.announce();
      checkSpeed(speed);
      await insertOrTell(driver);
      job.kept = journal;
      job.announce();
      void job.concluded.then(() => this.#remember(job));
      return driver;
    } catch (error) {
      job.abandon();
      throw error;
    }
  }
}

/** Of jobs that work on a node, or put the filter there that it is. */
function placesAt(node: Node): JobPlace[] {
  const owners = [
    node.filterOwner,
    ...[...node.parents].map(({ parent }) => ('owner' in parent ? parent.owner : undefined)),
  ];
  return owners.filter((owner) => owner instanceof JobPlace);
}

async function insertOrTell(driver: Startable): Promise<void> {
  try {
    await driver.insert();
  } catch (error) {
    if (driver.isRefusedLate === true) driver.job.announce();
    throw error;
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

/** But for the speed, which is looked at later. A job that makes an image stays until it is dismissed. */
function propertiesOf(plan: JobPlan): JobProperties {
  if (plan.kind === 'create') return { plan, id: plan.jobId, autoDismiss: false };
  const { jobId: id, autoFinalize, autoDismiss, onReadError, onWriteError } = plan;
  return { plan, id, autoFinalize, autoDismiss, onReadError, onWriteError };
}
