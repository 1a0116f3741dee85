import { posix } from 'node:path';
import { BlockError } from '../../base/error.js';
import { type Image, imageOf, type View } from '../../view/model.js';
import { wayDown } from '../../view/plan/change.js';
import { findPointFile, type Layer, layersOf } from './chain.js';
import { type PointFile, type PointFileContent, seenFrom, SUFFIX, writePointFile } from './point-file.js';
import { look, type PointServer } from './server.js';
import { type PointState, settle, type Settled } from './settle.js';

/** A disk with its points, as they are now. */
export interface PointDisk {
  /** The node of its active image. */
  readonly node: string;
  readonly top: Layer;
  readonly layers: readonly Layer[];
  readonly settled: Settled;
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
  const view = await look(server);
  const disks: PointDisk[] = [];
  for (const node of names?.map((name) => topNamed(view, name)) ?? topsOf(view)) {
    try {
      disks.push(await loadDisk(server, view, node));
    } catch (error) {
      const isNone = error instanceof BlockError && ['unsupported', 'not-found'].includes(error.kind);
      if (names || !isNone) throw error;
    }
  }
  return { view, disks };
}

async function loadDisk(server: PointServer, view: View, node: string): Promise<PointDisk> {
  const { host } = server;
  const layers = await layersOf(server, view, node);
  const [top] = layers;
  if (!top) throw new BlockError('unsupported', `'${node}' is no image in a file`);
  const damaged: string[] = [];
  const found = await findPointFile(host, layers, ({ message }) => damaged.push(message));
  const file = found ?? (await newPointFile(host, top));
  const isUsed = view.users.some(({ imageId }) => imageBelow(view, imageId)?.id === node);
  return { node, top, layers, settled: settle(file, layers), isUsed, damaged };
}

/** Whole paths of all images that the server has open. */
export async function openFiles(server: PointServer): Promise<Set<string>> {
  const { images } = await look(server);
  return new Set(images.map(({ filename }) => posix.resolve(server.folder ?? '/', filename)));
}

/** Not there until it is written. */
async function newPointFile(host: PointServer['host'], top: Layer): Promise<PointFile> {
  const stem = posix.basename(top.path).replace(/\.[A-Za-z0-9]{1,8}$/, '');
  const folder = posix.dirname(top.path);
  for (let number = 1; ; number++) {
    const disk = number === 1 ? stem : `${stem}-${number}`;
    const path = posix.join(folder, `${disk}${SUFFIX}`);
    if (await host.files.stat(path)) continue;
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

/** Errors: not-found. */
function topNamed(view: View, name: string): string {
  const user = view.users.find(({ label, deviceName }) => label === name || deviceName === name);
  const image = imageBelow(view, imageOf(view, name)?.id ?? user?.imageId);
  if (image) return image.id;
  throw new BlockError('not-found', `there is no disk '${name}'`);
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

/** Makes a disk's points file say something else; durable on return. */
export function keep(
  server: PointServer,
  { settled }: PointDisk,
  change: (content: PointFileContent) => PointFileContent,
): Promise<PointFile> {
  return writePointFile(server.host, { ...settled.file, content: change(settled.file.content) });
}

/** The same disk as it is now, by its points file. Errors: not-found. */
export async function reload(server: PointServer, path: string): Promise<{ view: View; disk: PointDisk }> {
  const { view, disks } = await loadDisks(server);
  const disk = disks.find(({ settled }) => settled.file.path === path);
  if (!disk) throw new BlockError('not-found', `the disk of '${path}' is not open any more`);
  return { view, disk };
}
