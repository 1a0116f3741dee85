import { isDeepStrictEqual } from 'node:util';
import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { View } from '../../view/model.js';
import { withClosing } from '../../view/plan/closing.js';
import { type DeletionWay, planDeletion, withoutJobs } from '../../view/plan/points.js';
import type { PlannedCommand } from '../../view/plan/types.js';
import { userText } from '../../view/words.js';
import { findLayer, type Layer } from './chain.js';
import { checkActive } from './create.js';
import {
  findPoint,
  type FoundPoint,
  keep,
  loadDisks,
  type PointDisk,
  reload,
  whileChanged,
} from './disks.js';
import { planInfo, type PlanInfo } from './plan-info.js';
import {
  MAX_LEFT_IMAGES,
  MAX_UNNEEDED_FILES,
  type PointFileContent,
  seenFrom,
  type UnneededFile,
} from './point-file.js';
import { SentCommands } from './left-open.js';
import { JobWatch, type PointServer } from './server.js';
import type { PointState } from './settle.js';
import { sharersOf } from './unneeded.js';

/** A point that is to go, of one disk. */
interface Step {
  readonly found: FoundPoint;
  /** None: nothing is to be copied. */
  readonly way: DeletionWay | undefined;
  readonly users: readonly string[];
}

/** What deleting a point will do. */
export interface PlannedDeletion {
  readonly name: string;
  readonly id: string;
  readonly plan: PlanInfo;
  readonly steps: readonly Step[];
}

/** Errors: not-found, invalid, busy: why it cannot be. */
export async function planPointDeletion(
  server: PointServer,
  name: string,
  nodes?: readonly string[],
): Promise<PlannedDeletion> {
  const { view, disks } = await loadDisks(server, nodes);
  const found = findPoint(disks, name, nodes !== undefined);
  const steps: Step[] = [];
  for (const one of found) {
    checkActive(one.disk);
    steps.push({ found: one, ...(await wayOf(server, view, one)) });
  }
  const ways = steps.flatMap(({ way }) => way ?? []);
  const lost = steps.flatMap(({ found: { point } }) => (point.state === 'lost' ? [point.record.name] : []));
  return {
    ...{ name, id: found[0]?.point.record.id ?? '', steps },
    plan: planInfo({
      words: [
        ...ways.flatMap(({ plan }) => plan.words),
        ...lost.map((one) => `Point '${one}' is lost already; its name is forgotten.`),
      ],
      bytesAtMost: ways.reduce((sum, { plan }) => sum + plan.bytesAtMost, 0),
      ends: steps.flatMap(({ found: one, way }) => filesOf(one, way?.ends ?? [])),
      invalid: ways.flatMap(({ invalid }) => invalid.map(({ id, why }) => `${id} ${why}`)),
      users: steps.flatMap(({ users }) => users),
    }),
  };
}

/** No disk, of those of `nodes`, has a point of that name any more; or one is being deleted, where `howFar` is `marked`. */
export async function isDeletedOn(
  server: PointServer,
  name: string,
  nodes: readonly string[] | undefined,
  howFar: 'marked' | 'copied' = 'marked',
): Promise<boolean> {
  const { disks } = await loadDisks(server, nodes);
  const isGone = ({ record, state }: PointState): boolean =>
    record.name !== name || (state === 'deleting' && howFar === 'marked');
  return disks.every(({ settled }) => settled.points.every(isGone));
}

function filesOf({ disk }: FoundPoint, ids: readonly string[]): string[] {
  return ids.flatMap((id) => disk.layers.find(({ image }) => image.id === id)?.path ?? []);
}

/** The cheapest way that harms nobody. */
async function wayOf(server: PointServer, view: View, found: FoundPoint): Promise<Omit<Step, 'found'>> {
  const { way, users } = await harmlessWay(server, view, found);
  const { leftOpen } = found.disk;
  return { way: way && { ...way, plan: withClosing(leftOpen, way.plan) }, users };
}

async function harmlessWay(
  server: PointServer,
  view: View,
  { disk, point }: FoundPoint,
): Promise<Omit<Step, 'found'>> {
  const { image, overlay } = point;
  if (!image || !overlay) return { way: undefined, users: [] };
  const { ways, refused, users } = planDeletion(withoutJobs(view), image.image.id);
  const stream = ways.find(({ kind }) => kind === 'stream');
  const [cheapest] = ways;
  if (!cheapest) throw new BlockError('invalid', refused[0]?.why ?? 'there is no way');
  const told = users.map(userText);
  if (cheapest.kind === 'stream' || !stream) {
    if (cheapest.kind === 'commit') await checkAlone(server, disk, [image, overlay]);
    return { way: cheapest, users: told };
  }
  const others = await othersOn(server, disk, [image, overlay]);
  return { way: others.length > 0 ? stream : cheapest, users: [...told, ...others] };
}

async function checkAlone(server: PointServer, disk: PointDisk, changed: readonly Layer[]): Promise<void> {
  const others = await othersOn(server, disk, changed);
  if (others.length > 0)
    throw new BlockError('busy', `other images stand on what would change: ${others.join(', ')}`);
}

/** Images that something else would become of, or that are in the way, and that are not of the disk. */
async function othersOn(server: PointServer, disk: PointDisk, changed: readonly Layer[]): Promise<string[]> {
  const open = disk.openedByOthers.map(({ id }) => `node '${id}'`);
  return [...open, ...(await sharersOf(server, disk.settled.file, disk.layers, changed))];
}

/** It is no point any more from here on, whatever becomes of the copying; durable on return. */
export async function markDeleting(server: PointServer, { steps }: PlannedDeletion): Promise<void> {
  for (const { found, way } of steps) await markAs(server, found, way);
}

async function markAs(
  server: PointServer,
  { disk, point: { record } }: FoundPoint,
  way: DeletionWay | undefined,
): Promise<void> {
  if (!way) return keep(server, disk, (content) => withoutPoint(disk, content, record.id));
  const ends = endsOf(disk, way);
  if (record.deleting === way.kind && isDeepStrictEqual(ends, record.ends)) return;
  const marked = { ...record, deleting: way.kind, ends };
  await keep(server, disk, (content) => ({
    ...content,
    points: content.points.map((one) => (one.id === record.id ? marked : one)),
  }));
}

/** Of the images that the disk does without afterwards those that were made for points. */
function endsOf({ layers, settled: { file } }: PointDisk, { ends }: DeletionWay): UnneededFile[] {
  const names = layers
    .filter(({ image }) => ends.includes(image.id))
    .map(({ path }) => seenFrom(file.path, path));
  return file.content.images
    .filter(({ ours, file: name }) => ours && names.includes(name))
    .map(({ file: name, identity, born }) => ({ file: name, identity, ...given({ born }) }));
}

/** What was made for it is to be removed; another image that has gone down into it is one that the disk has left. */
function withoutPoint(
  { layers, settled: { file } }: PointDisk,
  content: PointFileContent,
  id: string,
): PointFileContent {
  const { points, unneeded = [], left = [] } = content;
  const record = points.find((one) => one.id === id);
  const ends = record?.ends ?? [];
  const isLeft =
    record?.deleting === 'commit' &&
    !ends.some((one) => one.file === record.overlay) &&
    !findLayer(layers, file, record.overlay);
  return {
    ...content,
    points: points.filter((one) => one.id !== id),
    unneeded: [...unneeded, ...ends].slice(-MAX_UNNEEDED_FILES),
    ...(isLeft && { left: [...left, record.overlay].slice(-MAX_LEFT_IMAGES) }),
  };
}

/**
 * Does the copying of a point that is being deleted, disk after disk, from wherever it was left. Jobs of others on the
 * disks are waited for. Errors: those of the jobs; asked again it goes on.
 */
export async function finishDeletion(server: PointServer, { steps, id }: PlannedDeletion): Promise<void> {
  using watch = new JobWatch(server);
  for (const [i, { found, way }] of steps.entries())
    if (way) await finishDisk(server, watch, found.disk.settled.file.path, { id, job: jobOf(id, i) });
}

async function finishDisk(
  server: PointServer,
  watch: JobWatch,
  path: string,
  { id, job }: { id: string; job: string },
): Promise<void> {
  // A manager that asked before us may have gone while its job did not.
  if (await watch.find(job)) await endJob(server, watch, job);
  const sent = new SentCommands();
  await sent.during(async () => {
    if (await startCopying(server, watch, path, { id, job, sent })) await endJob(server, watch, job);
  });
  await server.alone((here) =>
    whileChanged(async () => {
      const { disk } = await reload(here, path);
      await keep(here, disk, (content) => withoutPoint(disk, content, id));
    }),
  );
}

/** Once no job works on what is to change. Answers false where there is nothing to be copied, or no more. */
async function startCopying(
  server: PointServer,
  watch: JobWatch,
  path: string,
  { id, job, sent }: { id: string; job: string; sent: SentCommands },
): Promise<boolean> {
  let way: DeletionWay | undefined;
  // Nobody changes the chain between the look at it and the start.
  await watch.untilDue(() =>
    server.alone(async (here) => {
      const { isDue, way: found } = await whileChanged(() => wayNow(here, path, id));
      way = found;
      if (!found) return isDue;
      const commands = wayCommands(found, job);
      await sent.send(
        here,
        commands.filter(({ afterReady }) => afterReady !== true),
      );
      return true;
    }),
  );
  return way !== undefined;
}

/** How a point that is being deleted goes, as its disk is now; written down. It is not due while somebody's job works there. */
async function wayNow(
  server: PointServer,
  path: string,
  id: string,
): Promise<{ isDue: boolean; way?: DeletionWay | undefined }> {
  const { view, disk } = await reload(server, path);
  checkActive(disk);
  const ids = new Set(disk.layers.map(({ image }) => image.id));
  if (view.jobs.some(({ from, to }) => [...from, to ?? ''].some((one) => ids.has(one))))
    return { isDue: false };
  const point = disk.settled.points.find(({ record }) => record.id === id);
  if (!point?.image || !point.overlay) return { isDue: true };
  const { way } = await wayOf(server, view, { disk, point });
  if (way) await markAs(server, { disk, point }, way);
  return { isDue: true, way };
}

/** What is sent for the copying, one disk after the other; the jobs are dismissed at their ends. */
export function deletionCommands({ steps, id }: PlannedDeletion): PlannedCommand[] {
  return steps.flatMap(({ way }, i) => (way ? wayCommands(way, jobOf(id, i)) : []));
}

function wayCommands({ plan }: DeletionWay, job: string): PlannedCommand[] {
  return plan.commands.map((command) => {
    if (command.mayBeGone === true) return command;
    return command.afterReady === true
      ? { ...command, arguments: { id: job } }
      : { ...command, arguments: { ...command.arguments, 'job-id': job, 'auto-dismiss': false } };
  });
}

function jobOf(id: string, index: number): string {
  return `point-${id}-${index}`;
}

/** A commit of the active image waits to be completed. */
async function endJob(server: PointServer, watch: JobWatch, job: string): Promise<void> {
  const reached = await watch.until(job, ['ready', 'concluded']);
  if (reached?.status === 'ready') await server.execute('job-complete', { id: job });
  await watch.finish(job);
}
