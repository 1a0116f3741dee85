import { BlockError } from '../../base/error.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import type { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import type { Host } from '../../host/host.js';
import { JournalledMirror } from '../../schema/persisted-jobs.js';
import type { JsonObject } from '../../schema/types.js';
import type { JobSurroundings } from '../job-graph.js';
import { type MirrorPlan, mirrorNodes } from '../plans/mirror.js';
import { HEARTBEAT_MS, idIn, JobJournal, type JournalHead } from './job-journal.js';

/** What is done where the source may have been changed since its journal was kept. */
export type IfChanged = 'refuse' | 'compare' | 'ignore';

export interface ResumeRequest {
  journal: string;
  jobId?: string;
  ifChanged: IfChanged;
}

/** A journal for a job that begins. Errors: exists; those of files. */
export async function newJournal(graph: Graph, plan: MirrorPlan): Promise<JobJournal | undefined> {
  const { persist } = plan;
  if (persist === undefined) return undefined;
  const { host } = graph;
  const { source, target } = mirrorNodes(graph, plan);
  return JobJournal.create(host, persist, {
    plan: planAsJson(plan),
    diskBytes: source.lengthBytes,
    granularityBytes: plan.granularityBytes,
    ...(await withImage(host, 'source', source)),
    ...(await withImage(host, 'target', target)),
  });
}

/** Numbers beyond what JSON has are as good as no limit. */
function planAsJson(plan: MirrorPlan): JsonObject {
  const speed = plan.speed > Number.MAX_SAFE_INTEGER ? 0 : Number(plan.speed);
  return { ...plan, speed } as unknown as JsonObject;
}

type Image = NonNullable<JournalHead['source']>;

async function imageOf(host: Host, node: Node): Promise<Image | undefined> {
  const path = node.storage.filename;
  if (path === '') return undefined;
  const stat = await host.files.stat(path).catch(() => undefined);
  return stat && { path, identity: stat.identity };
}

async function withImage(host: Host, role: 'source' | 'target', node: Node): Promise<Partial<JournalHead>> {
  const image = await imageOf(host, node);
  return image ? { [role]: image } : {};
}

/**
 * What a journal says, made fit to go on with now. Errors: corrupt, busy and those of files; invalid, when the job has
 * ended, its images are others, or its source may have been changed and `ifChanged` is not to put up with that.
 */
export async function reopenJournal(
  { graph, abandoned }: Pick<JobSurroundings, 'graph' | 'abandoned'>,
  { journal: path, jobId, ifChanged }: ResumeRequest,
): Promise<{ journal: JobJournal; plan: MirrorPlan }> {
  const { host } = graph;
  const journal = await JobJournal.open(host, path);
  const known = abandoned.get(path);
  try {
    const { head } = journal;
    assertUnfinished(head);
    const plan = planOf(head, path);
    if (jobId !== undefined) plan.jobId = jobId;
    const { source, target } = mirrorNodes(graph, plan);
    if (source.lengthBytes !== head.diskBytes)
      throw new BlockError('invalid', `Node '${source.name}' has another size than when the job began`);
    await assertSame(host, source, head.source);
    await assertSame(host, target, head.target);
    if (known?.node === source) return { journal, plan };
    // What guests write from here on is seen, until the job has its place.
    const dirty = new DirtyBitmap(head.diskBytes, head.granularityBytes);
    source.dirtyBitmaps.push(dirty);
    abandoned.set(path, { node: source, dirty });
    const why = ifChanged === 'ignore' ? undefined : await changeOf(host, head);
    if (why !== undefined && ifChanged === 'refuse') throw changed(source, why);
    if (why !== undefined) {
      plan.compares = true;
      journal.left.setAll();
    }
    return { journal, plan };
  } catch (error) {
    if (abandoned.get(path) !== known) forgetAbandoned(abandoned, path);
    await journal.letGo();
    throw error;
  }
}

/** Nothing is left to be known of it. */
export function forgetAbandoned(abandoned: JobSurroundings['abandoned'], path: string): void {
  const known = abandoned.get(path);
  abandoned.delete(path);
  const index = known?.node.dirtyBitmaps.indexOf(known.dirty) ?? -1;
  if (index >= 0) known?.node.dirtyBitmaps.splice(index, 1);
}

function assertUnfinished({ state, plan }: JournalHead): void {
  const id = idIn(plan);
  if (state === 'completed') throw new BlockError('invalid', `Job '${id}' has completed`);
  if (state !== 'ending') return;
  const text = `Job '${id}' had copied all and was switching over: guests may have written to the target since`;
  throw new BlockError('invalid', text);
}

/** Errors: corrupt. */
function planOf({ plan, granularityBytes }: JournalHead, path: string): MirrorPlan {
  try {
    const parsed = JournalledMirror.parse(plan, '', 'qmp') as MirrorPlan;
    if (parsed.granularityBytes === granularityBytes) return { ...parsed, persist: path };
  } catch (error) {
    throw new BlockError('corrupt', `The journal '${path}' does not say what its job is`, { cause: error });
  }
  throw new BlockError('corrupt', `The journal '${path}' does not say what its job is`);
}

async function assertSame(host: Host, node: Node, was: Image | undefined): Promise<void> {
  const now = await imageOf(host, node);
  if (was?.identity === now?.identity) return;
  throw new BlockError('invalid', `Node '${node.name}' is not the image that the job is for`);
}

/** Why the source may be another than what the journal knows; undefined: it is not. */
async function changeOf(host: Host, { source, aliveMs }: JournalHead): Promise<string | undefined> {
  if (!source) return 'nobody can tell';
  const stat = await host.files.stat(source.path);
  if (!stat || stat.isBlockDevice) return 'nobody can tell';
  return stat.modifiedMs > aliveMs + HEARTBEAT_MS ? 'its file was' : undefined;
}

function changed({ name }: Node, why: string): BlockError {
  const text = `Node '${name}' may have been changed since the job was cut off: ${why}`;
  return new BlockError('invalid', text, { hint: 'Try if-changed=compare: what is alike is not sent again' });
}
