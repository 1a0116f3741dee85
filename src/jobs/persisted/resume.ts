import { BlockError } from '../../base/error.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import type { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import type { Host } from '../../host/host.js';
import { JOURNALLED_PLANS } from '../../schema/persisted-jobs.js';
import type { JsonObject } from '../../schema/types.js';
import type { JobSurroundings } from '../job-graph.js';
import { lastingIdentity } from '../../host/file-identity.js';
import { identityOf, type ImageIdentity } from './image-identity.js';
import {
  checkPersists,
  imagesInHead,
  imagesOf,
  isChainShortened,
  type PersistedImages,
  type PersistedPlan,
  renameNodes,
} from './images.js';
import { HEARTBEAT_MS, JobJournal } from './job-journal.js';
import { idIn, type JournalHead, speedInPlan, wallMs } from './journal-head.js';

/** What is done where the source may have been changed since its journal was kept. */
export type IfChanged = 'refuse' | 'compare' | 'ignore';

export interface ResumeRequest {
  journal: string;
  jobId?: string;
  ifChanged: IfChanged;
  /** A durable one of the source, from before the job and never cleared since. */
  bitmap?: string;
}

/** A job that is to go on. */
export interface Resumption {
  journal: JobJournal;
  plan: PersistedPlan;
  /** Of a backup: that of before, or one that is fixed when the job begins. */
  point?: 'kept' | 'new';
}

/** A file's time may be behind the clock by so much. */
const COARSE_TIME_MS = 50;

/** A journal for a job that begins. Errors: exists; those of files; invalid. */
export async function newJournal(graph: Graph, plan: PersistedPlan): Promise<JobJournal | undefined> {
  const { persist } = plan;
  if (persist === undefined) return undefined;
  checkPersists(graph, plan);
  const images = await imagesInHead(graph.host, imagesOf(graph, plan));
  return JobJournal.create(graph.host, persist, { plan: planAsJson(plan), ...images });
}

/** Whether newJournal() may make one, without doing it. Errors: its. */
export async function checkNoJournal(graph: Graph, plan: PersistedPlan): Promise<void> {
  const { persist } = plan;
  if (persist === undefined) return;
  checkPersists(graph, plan);
  await imagesInHead(graph.host, imagesOf(graph, plan));
  if (await graph.host.files.stat(persist))
    throw new BlockError('exists', `Could not create '${persist}': File exists`);
}

function planAsJson(plan: PersistedPlan): JsonObject {
  return { ...plan, speed: speedInPlan(plan.speed) } as unknown as JsonObject;
}

/**
 * What a journal says, made fit to go on with now. Errors: corrupt, busy and those of files; invalid, when the job has
 * ended, its images are others, or its source may have been changed and `ifChanged` is not to put up with that.
 */
export async function reopenJournal(
  surroundings: Pick<JobSurroundings, 'graph' | 'abandoned'>,
  request: ResumeRequest,
): Promise<Resumption> {
  const { graph, abandoned } = surroundings;
  const { journal: path, jobId } = request;
  const journal = await JobJournal.open(graph.host, path);
  const known = abandoned.get(path);
  try {
    const plan = planOf(journal.head, path);
    assertUnfinished(journal.head, plan);
    if (jobId !== undefined) plan.jobId = jobId;
    renameNodes(graph, plan);
    const images = await imagesNow(graph, journal, plan);
    const { source } = images;
    if (!source) return { journal, plan };
    return await settleChanges(surroundings, request, { journal, plan, source });
  } catch (error) {
    if (abandoned.get(path) !== known) forgetAbandoned(abandoned, path);
    await journal.letGo();
    throw error;
  }
}

/** Errors: invalid, when they are others, or the job has ended. */
async function imagesNow(graph: Graph, journal: JobJournal, plan: PersistedPlan): Promise<PersistedImages> {
  const { host } = graph;
  const { head } = journal;
  if (head.state === 'ending' && isChainShortened(graph, plan)) {
    // The power went between the last change of a header and the journal's last word.
    await journal.end('completed');
    throw new BlockError('invalid', `Job '${plan.jobId}' has completed`);
  }
  const images = imagesOf(graph, plan);
  const { source, target } = images;
  if (images.diskBytes !== head.diskBytes)
    throw new BlockError(
      'invalid',
      `Node '${(source ?? target).name}' has another size than when the job began`,
    );
  if (source) await assertSame(host, source, head.source);
  await assertSame(host, target, head.target);
  return images;
}

interface Copied {
  journal: JobJournal;
  plan: PersistedPlan;
  source: Node;
}

/** Finds out what of the source has changed since the journal was kept, and what becomes of the job then. */
async function settleChanges(
  { graph, abandoned }: Pick<JobSurroundings, 'graph' | 'abandoned'>,
  { journal: path, ifChanged, bitmap }: ResumeRequest,
  { journal, plan, source }: Copied,
): Promise<Resumption> {
  const { head, left } = journal;
  const tracked = bitmap === undefined ? undefined : trackedBy(source, bitmap, head);
  const known = abandoned.get(path);
  const isKnown = known?.node === source;
  if (!isKnown) {
    // What guests write from here on is seen, until the job has its place.
    const dirty = new DirtyBitmap(head.diskBytes, head.granularityBytes);
    source.dirtyBitmaps.push(dirty);
    abandoned.set(path, { node: source, dirty });
  }
  const isTold = isKnown || tracked !== undefined || ifChanged === 'ignore';
  const why = isTold ? undefined : await changeOf(graph.host, head);
  if (plan.kind === 'backup') {
    const changes = [isKnown ? known.dirty : undefined, tracked].filter((one) => one !== undefined);
    const lost = changes.some((one) => overlap(left, one));
    if (why === undefined && !lost) return { journal, plan, point: 'kept' };
    if (ifChanged !== 'compare')
      throw why === undefined ? lostPoint(source) : changed(source, why, POINT_HINT);
    head.begunMs = wallMs(graph.host);
    journal.isOfNewMoment = true;
    if (tracked) left.merge(tracked);
    else compareAll(journal, plan);
    return { journal, plan, point: 'new' };
  }
  if (tracked) left.merge(tracked);
  if (why !== undefined && ifChanged === 'refuse') throw changed(source, why, COMPARE_HINT);
  if (why !== undefined) compareAll(journal, plan);
  return { journal, plan };
}

function compareAll({ left }: JobJournal, plan: PersistedPlan): void {
  if (plan.kind !== 'stream') plan.compares = true;
  left.setAll();
}

/** A bitmap that says what of the source has changed since the job began. Errors: not-found, invalid. */
function trackedBy(source: Node, name: string, { begunMs }: JournalHead): DirtyBitmap {
  const bitmap = source.findBitmap(name);
  if (!bitmap) throw new BlockError('not-found', `Bitmap '${name}' could not be found`);
  const { durable, inconsistent } = bitmap;
  const refused = (why: string): BlockError =>
    new BlockError('invalid', `Bitmap '${name}' does not say what has changed since the job began: ${why}`);
  if (!durable) throw refused('it is not durable');
  if (inconsistent || durable.lost !== undefined) throw refused('it is inconsistent');
  if (durable.wasElsewhere === true) throw refused('another program had the image');
  if (durable.sinceMs > begunMs) throw refused('it is younger');
  if (!bitmap.isRecording) throw refused('it does not record');
  return bitmap;
}

/** Whether both say something of the same bytes. */
export function overlap(one: DirtyBitmap, other: DirtyBitmap): boolean {
  for (let at = one.nextDirty(0); at;) {
    const end = at.offset + at.lengthBytes;
    if (other.nextDirty(at.offset, end)) return true;
    at = end < one.sizeBytes ? one.nextDirty(end) : undefined;
  }
  return false;
}

/** Nothing is left to be known of it. */
export function forgetAbandoned(abandoned: JobSurroundings['abandoned'], path: string): void {
  const known = abandoned.get(path);
  abandoned.delete(path);
  const index = known?.node.dirtyBitmaps.indexOf(known.dirty) ?? -1;
  if (index >= 0) known?.node.dirtyBitmaps.splice(index, 1);
}

function assertUnfinished({ state, plan }: JournalHead, { kind }: PersistedPlan): void {
  const id = idIn(plan);
  if (state === 'completed') throw new BlockError('invalid', `Job '${id}' has completed`);
  // What a commit or a stream changes at its end, it may change again.
  if (state !== 'ending' || kind === 'commit' || kind === 'stream') return;
  const text = `Job '${id}' had copied all and was switching over: guests may have written to the target since`;
  throw new BlockError('invalid', text);
}

/** Errors: corrupt. */
function planOf({ plan, granularityBytes }: JournalHead, path: string): PersistedPlan {
  const broken = (cause?: unknown): BlockError =>
    new BlockError('corrupt', `The journal '${path}' does not say what its job is`, { cause });
  const { kind } = plan;
  if (typeof kind !== 'string' || !Object.hasOwn(JOURNALLED_PLANS, kind)) throw broken();
  try {
    const type = JOURNALLED_PLANS[kind as keyof typeof JOURNALLED_PLANS];
    const parsed = { ...type.parse(plan, '', 'qmp'), persist: path } as PersistedPlan;
    // The user's own bitmap has bits too many then, and is not cleared.
    if (parsed.kind === 'backup') delete parsed.bitmap;
    if (!('granularityBytes' in parsed) || parsed.granularityBytes === granularityBytes) return parsed;
  } catch (error) {
    throw broken(error);
  }
  throw broken();
}

async function assertSame(host: Host, node: Node, was: ImageIdentity | undefined): Promise<void> {
  const now = await identityOf(host, node);
  if (was?.identity === now?.identity) return;
  throw new BlockError('invalid', `Node '${node.name}' is not the image that the job is for`);
}

/** Why the source may be another than what the journal knows; undefined: it is not. */
async function changeOf(host: Host, head: JournalHead): Promise<string | undefined> {
  const { source, layers = [], aliveMs, state } = head;
  // What guests change while the job lives is in the journal; after a failure it is not.
  const latestMs = state === 'failed' ? aliveMs - COARSE_TIME_MS : aliveMs + HEARTBEAT_MS;
  if (!source) return 'nobody can tell';
  for (const { path, identity } of [source, ...layers]) {
    const stat = await host.files.stat(path);
    if (!stat || stat.isBlockDevice) return 'nobody can tell';
    if (stat.modifiedMs > latestMs || lastingIdentity(stat) !== identity) return 'its file was';
  }
  return undefined;
}

const COMPARE_HINT = 'Try if-changed=compare: what is alike is not sent again';
const POINT_HINT =
  'Try if-changed=compare: the backup is of the moment of the resume then, and what is alike is not sent again';

function changed({ name }: Node, why: string, hint: string): BlockError {
  const text = `Node '${name}' may have been changed since the job was cut off: ${why}`;
  return new BlockError('invalid', text, { hint });
}

/** A backup's moment is neither in the source nor in the target. */
export function lostPoint({ name }: Node): BlockError {
  const text = `The backup's point in time is lost: node '${name}' was changed since where the target does not have it yet`;
  return new BlockError('invalid', text, { hint: POINT_HINT });
}
