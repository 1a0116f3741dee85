import { posix } from 'node:path';
import { BlockError } from '../../base/error.js';
import { imagesOn } from '../../block/shared-bases.js';
import type { View } from '../../view/model.js';
import { type DeletionWay, planDeletion, withoutJobs } from '../../view/plan/points.js';
import { userText } from '../../view/words.js';
import type { Layer } from './chain.js';
import { checkActive } from './create.js';
import { findPoint, type FoundPoint, keep, loadDisks, openFiles, reload } from './disks.js';
import { planInfo, type PlanInfo } from './plan-info.js';
import { absoluteFrom } from './point-file.js';
import { JobWatch, type PointServer } from './server.js';

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

function filesOf({ disk }: FoundPoint, ids: readonly string[]): string[] {
  return ids.flatMap((id) => disk.layers.find(({ image }) => image.id === id)?.path ?? []);
}

/** The cheapest way that harms nobody. */
async function wayOf(
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
    if (cheapest.kind === 'commit') await checkAlone(server, disk.layers, [image, overlay]);
    return { way: cheapest, users: told };
  }
  const others = await sharersOf(server, disk.layers, [image, overlay]);
  return { way: others.length > 0 ? stream : cheapest, users: [...told, ...others] };
}

async function checkAlone(
  server: PointServer,
  layers: readonly Layer[],
  changed: readonly Layer[],
): Promise<void> {
  const others = await sharersOf(server, layers, changed);
  if (others.length > 0)
    throw new BlockError('busy', `other images stand on what would change: ${others.join(', ')}`);
}

/** Files of images that are not of the chain and name one of `changed` as backing file. */
async function sharersOf(
  server: PointServer,
  layers: readonly Layer[],
  changed: readonly Layer[],
): Promise<string[]> {
  const bases = new Map(changed.map(({ identity, path }) => [identity, path]));
  const own = new Set(layers.map(({ identity }) => identity));
  const folders = new Set(layers.map(({ path }) => posix.dirname(path)));
  const found: string[] = [];
  for (const folder of folders)
    for (const { image } of await imagesOn(server.opener, folder, bases, own)) found.push(image);
  return found;
}

/** It is no point any more from here on, whatever becomes of the copying; durable on return. */
export async function markDeleting(server: PointServer, { steps }: PlannedDeletion): Promise<void> {
  for (const { found, way } of steps) {
    const { id } = found.point.record;
    await keep(server, found.disk, (content) => ({
      ...content,
      points: content.points.flatMap((record) => {
        if (record.id !== id) return [record];
        return way ? [{ ...record, deleting: way.kind }] : [];
      }),
    }));
  }
}

/**
 * Does the copying of a point that is being deleted, disk after disk, from wherever it was left. Jobs of others on the
 * disks are waited for. Errors: those of the jobs; asked again it goes on.
 */
export async function finishDeletion(server: PointServer, { steps, id }: PlannedDeletion): Promise<void> {
  using watch = new JobWatch(server);
  for (const [i, { found, way }] of steps.entries())
    if (way) await finishDisk(server, watch, found.disk.settled.file.path, { id, job: `point-${id}-${i}` });
}

async function finishDisk(
  server: PointServer,
  watch: JobWatch,
  path: string,
  { id, job }: { id: string; job: string },
): Promise<void> {
  // A manager that asked before us may have gone while its job did not.
  if (await watch.find(job)) await endJob(server, watch, job);
  const { view, found } = await readyDisk(server, watch, path, id);
  const { way } = found ? await wayOf(server, view, found) : { way: undefined };
  if (way) await runWay(server, watch, way, job);
  await server.alone(async (here) => {
    await keep(here, (await reload(here, path)).disk, (content) => ({
      ...content,
      points: content.points.filter((record) => record.id !== id),
    }));
  });
  if (found && way) await removeFiles(server, found, way.ends);
}

/** Of images that were made for points and that nobody needs any more. One that cannot be removed is left. */
async function removeFiles(
  server: PointServer,
  { disk: { layers, settled } }: FoundPoint,
  ends: readonly string[],
): Promise<void> {
  const { path, content } = settled.file;
  const made = new Set(content.images.filter(({ ours }) => ours).map(({ file }) => absoluteFrom(path, file)));
  const gone = layers.filter(({ image, path: file }) => ends.includes(image.id) && made.has(file));
  const open = await openFiles(server);
  const staying = layers.filter((layer) => !gone.includes(layer));
  for (const layer of gone) {
    if (open.has(layer.path) || (await sharersOf(server, staying, [layer])).length > 0) continue;
    await server.host.files.unlink(layer.path).catch(() => undefined);
  }
}

/** The disk once no job works on what is to change. */
async function readyDisk(
  server: PointServer,
  watch: JobWatch,
  path: string,
  id: string,
): Promise<{ view: View; found: FoundPoint | undefined }> {
  let ready: Awaited<ReturnType<typeof readyDisk>> | undefined;
  await watch.untilDue(async () => {
    const { view, disk } = await reload(server, path);
    const point = disk.settled.points.find(({ record }) => record.id === id);
    const found = point?.image && point.overlay ? { disk, point } : undefined;
    const ids = new Set(disk.layers.map(({ image }) => image.id));
    ready = { view, found };
    return !view.jobs.some(({ from, to }) => [...from, to ?? ''].some((one) => ids.has(one)));
  });
  if (!ready) throw new BlockError('not-found', `the disk of '${path}' is not open any more`);
  return ready;
}

async function runWay(server: PointServer, watch: JobWatch, way: DeletionWay, job: string): Promise<void> {
  for (const { execute, arguments: args, afterReady } of way.plan.commands) {
    if (afterReady === true) continue;
    await server.execute(execute, { ...args, 'job-id': job, 'auto-dismiss': false });
  }
  await endJob(server, watch, job);
}

/** A commit of the active image waits to be completed. */
async function endJob(server: PointServer, watch: JobWatch, job: string): Promise<void> {
  const reached = await watch.until(job, ['ready', 'concluded']);
  if (reached?.status === 'ready') await server.execute('job-complete', { id: job });
  await watch.finish(job);
}
