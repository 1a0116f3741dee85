import { posix } from 'node:path';
import { BlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import { imagesLeftOpen, leftOpenAbove } from '../../view/left-open.js';
import { type Image, imageOf, type View } from '../../view/model.js';
import { wayDown } from '../../view/plan/change.js';
import { isJobFilter, withoutLeftOpen } from '../../view/plan/points.js';
import { fileNamed, findPointFile, type Layer, layersOf } from './chain.js';
import { committedOf, isWritten } from './looked-into.js';
import {
  absoluteFrom,
  isVerbRunning,
  type PointFile,
  type PointFileContent,
  PointsChangedError,
  seenFrom,
  SUFFIX,
  writePointFile,
} from './point-file.js';
import { look, type PointServer } from './server.js';
import { signpost } from './signpost.js';
import { isOwnNode, removeUnneeded, withoutRemoved } from './unneeded.js';
import { type ChainJob, type PointState, settle, type Settled, type SettleLook } from './settle.js';

/** Of changing points that other programs change at the same time. */
const MOST_TRIES = 20;

/** A disk with its points, as they are now. */
export interface PointDisk {
  /** The node of its active image. */
  readonly node: string;
  readonly top: Layer;
  readonly layers: readonly Layer[];
  /** Images that it has left and that are open above it, top first: in the way of what makes another one active. */
  readonly leftOpen: readonly Image[];
  /** Those of them that others have opened, and that the disk has not left by what was done to its points. */
  readonly openedByOthers: readonly Image[];
  readonly settled: Settled;
  /** Its points file says that this was about to be. */
  readonly isNewlyActive: boolean;
  /** A new active image would not stay open without a user. */
  readonly isUsed: boolean;
  /** Points files beside it that cannot be read. */
  readonly damaged: readonly string[];
}

export interface PointDisks {
  readonly view: View;
  readonly disks: readonly PointDisk[];
}

/** Those named, or all that have their images in files. Errors: of those named, not-found, invalid, unsupported. */
export async function loadDisks(server: PointServer, names?: readonly string[]): Promise<PointDisks> {
  const found = await loadOnce(server, names);
  // A job may have begun, or ended, between the look at the jobs and that at the files.
  const isDoubtful = found.disks.some(({ settled }) => settled.points.some((point) => point.isUndermined));
  return isDoubtful ? loadOnce(server, names) : found;
}

async function loadOnce(server: PointServer, names?: readonly string[]): Promise<PointDisks> {
  const whole = await look(server);
  const left = imagesLeftOpen(whole);
  const view = withoutLeftOpen(whole);
  const disks: PointDisk[] = [];
  const newPaths = new Set<string>();
  for (const node of names ? await topsNamed(server, view, names) : topsOf(view)) {
    try {
      const disk = await loadDisk(server, view, node, newPaths);
      const leftOpen = leftOpenAbove(whole, node, left);
      disks.push({ ...disk, leftOpen, openedByOthers: openedByOthers(server, disk.settled.file, leftOpen) });
    } catch (error) {
      const isNone = error instanceof BlockError && ['unsupported', 'not-found'].includes(error.kind);
      if (names || !isNone) throw error;
    }
  }
  // An image that the disk has left may be open still.
  const isLeft = ({ settled }: PointDisk): boolean =>
    settled.activeElsewhere !== undefined &&
    disks.some((other) => other.settled.file.path === settled.file.path && !other.settled.activeElsewhere);
  return { view, disks: names ? disks : disks.filter((disk) => !isLeft(disk)) };
}

/** An overlay that is to come, say, or one that they have committed. */
function openedByOthers(
  { folder }: PointServer,
  { path, content: { left = [], unneeded = [] } }: PointFile,
  leftOpen: readonly Image[],
): Image[] {
  const names = [...left, ...unneeded.map(({ file }) => file)];
  const known = new Set(names.map((name) => absoluteFrom(path, name)));
  return leftOpen.filter(({ id, isImplicit, filename }) => {
    const name = fileNamed(filename);
    const isKnown = name !== undefined && known.has(posix.resolve(folder ?? '/', name));
    return !isImplicit && !isOwnNode(id) && !isKnown;
  });
}

/** `newPaths`: of points files that are not there yet, of other disks too. */
async function loadDisk(
  server: PointServer,
  view: View,
  node: string,
  newPaths: Set<string>,
): Promise<Omit<PointDisk, 'leftOpen' | 'openedByOthers'>> {
  const { host } = server;
  const layers = await layersOf(server, view, node);
  const [top] = layers;
  if (!top) throw new BlockError('unsupported', `'${node}' is no image in a file`);
  const damaged: string[] = [];
  const found = await findPointFile(host, layers, ({ message }) => damaged.push(message));
  const file = found ?? (await newPointFile(host, top, newPaths));
  const isUsed = isUsedNow(view, node);
  const { pending } = file.content;
  const known: SettleLook = {
    isOverlayWritten:
      pending !== undefined && (await isWritten(server, absoluteFrom(file.path, pending.overlay), top)),
    isVerbRunning: pending !== undefined && (await isVerbRunning(host, file.path)),
    jobs: jobsIn(view, layers),
  };
  const first = settle(file, layers, known);
  const committed = await committedOf(server, first);
  const settled = committed ? settle(file, layers, known, committed) : first;
  const isNewlyActive = pending !== undefined && absoluteFrom(file.path, pending.overlay) === top.path;
  return { node, top, layers, settled, isNewlyActive, isUsed, damaged };
}

/**
 * Where a job works in its chain, no query tells who uses a disk: jobs hold its active image too, and images between. One may
 * have begun since the jobs were asked for.
 */
function isUsedNow(view: View, node: string): boolean {
  const worked = new Set(
    view.jobs.flatMap(({ type, from, to }) => (type === 'stream' ? [...from, to ?? ''] : from)),
  );
  const isWorkedOn = view.chains.some(
    ({ images }) =>
      images.includes(node) && images.some((id) => worked.has(id) || isJobFilter(imageOf(view, id))),
  );
  return isWorkedOn || view.users.some(({ imageId }) => imageBelow(view, imageId)?.id === node);
}

function jobsIn(view: View, layers: readonly Layer[]): ChainJob[] {
  return view.jobs.flatMap(({ to: id, from: ids }) => {
    const to = layers.find(({ image }) => image.id === id);
    return to ? [{ to, from: layers.filter(({ image }) => ids.includes(image.id)) }] : [];
  });
}

/** Not there until it is written. */
async function newPointFile(
  host: PointServer['host'],
  top: Layer,
  newPaths: Set<string>,
): Promise<PointFile> {
  const stem = posix.basename(top.path).replace(/\.[A-Za-z0-9]{1,8}$/, '');
  const folder = posix.dirname(top.path);
  for (let number = 1; ; number++) {
    const disk = number === 1 ? stem : `${stem}-${number}`;
    const path = posix.join(folder, `${disk}${SUFFIX}`);
    if (newPaths.has(path) || (await host.files.stat(path))) continue;
    newPaths.add(path);
    const content: PointFileContent = { disk, active: seenFrom(path, top.path), images: [], points: [] };
    return { path, content, sequence: 0 };
  }
}

/** The active images of all disks. */
function topsOf(view: View): string[] {
  const tops = view.chains.flatMap(({ images }) => imageBelow(view, images.at(-1))?.id ?? []);
  return [...new Set(tops)];
}

function imageBelow(view: View, id: string | undefined): Image | undefined {
  return id === undefined ? undefined : wayDown(view, id).find(({ kind }) => kind === 'image');
}

/** Errors: not-found; invalid, where several disks are called so. */
async function topsNamed(server: PointServer, view: View, names: readonly string[]): Promise<string[]> {
  const tops: string[] = [];
  for (const name of names) tops.push(topNamed(view, name) ?? (await topCalled(server, view, name)));
  return tops;
}

function topNamed(view: View, name: string): string | undefined {
  const user = view.users.find(({ label, deviceName }) => label === name || deviceName === name);
  return imageBelow(view, imageOf(view, name)?.id ?? user?.imageId)?.id;
}

/** By what a disk is called where its points are listed: one that was opened without names has no other. */
async function topCalled(server: PointServer, view: View, name: string): Promise<string> {
  const newPaths = new Set<string>();
  const found: string[] = [];
  for (const node of topsOf(view)) {
    const disk = await loadDisk(server, view, node, newPaths).catch(() => undefined);
    if (disk?.settled.file.content.disk === name) found.push(node);
  }
  const [node, ...more] = found;
  if (node === undefined) throw new BlockError('not-found', `there is no disk '${name}'`);
  if (more.length > 0)
    throw new BlockError('invalid', `several disks are called '${name}': ${found.join(', ')}`);
  return node;
}

/** A point of one disk. */
export interface FoundPoint {
  readonly disk: PointDisk;
  readonly point: PointState;
}

/**
 * A point, of all disks that it is of. Errors: not-found; invalid where some of its disks are not among these, unless
 * `isPart` says that this is known.
 */
export function findPoint(disks: readonly PointDisk[], name: string, isPart: boolean): FoundPoint[] {
  const found: FoundPoint[] = disks.flatMap((disk) => {
    const point = disk.settled.points.find(({ record }) => record.name === name);
    return point ? [{ disk, point }] : [];
  });
  const [first] = found;
  if (!first) throw new BlockError('not-found', `there is no point '${name}'`);
  const others = new Set(found.map(({ point }) => point.record.id)).size > 1;
  if (others && !isPart)
    throw new BlockError('invalid', `several points are called '${name}', of different disks: say of which`);
  const { disks: count } = first.point.record;
  if (!isPart && found.length < count)
    throw new BlockError(
      'invalid',
      `point '${name}' is of ${count} disks, and ${found.length} of them are here: say of which disks`,
    );
  return found;
}

/** A QEMU that makes an image makes neither its name nor its tables durable. */
export async function makeDurable({ files }: Host, path: string): Promise<void> {
  const file = await files.open(path, { write: false });
  try {
    await file.flush();
  } finally {
    await file.close();
  }
  await files.syncDirectory(posix.dirname(path));
}

/**
 * Makes a disk's points file say something else; durable on return. Then files that nobody needs any more are removed.
 * Errors: PointsChangedError, and those of writing.
 */
export async function keep(
  server: PointServer,
  { settled, layers, top, isNewlyActive }: PointDisk,
  change: (content: PointFileContent) => PointFileContent,
): Promise<void> {
  // Another program has just given the disk a new active image, and has not come as far as this.
  if (isNewlyActive) await makeDurable(server.host, top.path);
  const content = await withoutRemoved(server, settled.file.path, change(settled.file.content));
  const file = await writePointFile(server.host, { ...settled.file, content });
  for (const folder of foldersToShow(settled, layers)) await signpost(server.host, file, folder);
  if (!(await removeUnneeded(server, file, layers))) return;
  try {
    // What has their names from here on is somebody's.
    const rest = await withoutRemoved(server, file.path, file.content);
    await writePointFile(server.host, { ...file, content: rest });
  } catch (error) {
    // Who has changed it has left them out.
    if (!(error instanceof PointsChangedError)) throw error;
  }
}

/** Folders of images that came after the first point, one of which may be all that is left of the chain. */
function foldersToShow({ points }: Settled, layers: readonly Layer[]): Set<string> {
  const lowest = Math.max(0, ...points.map(({ image }) => (image ? layers.indexOf(image) - 1 : 0)));
  return new Set(layers.slice(0, lowest + 1).map(({ path }) => posix.dirname(path)));
}

/** Again, while another program changes the same points at the same time. Errors: those of the last try. */
export async function whileChanged<T>(body: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++)
    try {
      return await body();
    } catch (error) {
      if (!(error instanceof PointsChangedError) || tries === MOST_TRIES) throw error;
    }
}

/** The same disk as it is now, by its points file. Errors: not-found. */
export async function reload(server: PointServer, path: string): Promise<{ view: View; disk: PointDisk }> {
  const { view, disks } = await loadDisks(server);
  const disk = disks.find(({ settled }) => settled.file.path === path);
  if (!disk) throw new BlockError('not-found', `the disk of '${path}' is not open any more`);
  return { view, disk };
}
