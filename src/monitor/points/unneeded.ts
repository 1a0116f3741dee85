import { posix } from 'node:path';
import { Graph } from '../../block/graph.js';
import { Opener } from '../../block/open.js';
import { KiB } from '../../base/limits.js';
import { given } from '../../base/given.js';
import { Permission } from '../../block/permissions.js';
import { useNode } from '../../block/with-backend.js';
import { imagesOn, readHeader } from '../../block/shared-bases.js';
import type { Image } from '../../view/model.js';
import { factsOf, fileNamed, isSameFile, type Layer } from './chain.js';
import { absoluteFrom, type PointFile, type PointFileContent, type UnneededFile } from './point-file.js';
import { look, type PointServer } from './server.js';

/** How nodes are called that are made for points where their user gives no name: with `-`, and which disk's. */
export const NODE_PREFIX = 'pt-';
const OWN_NODE = new RegExp(`^${NODE_PREFIX}[0-9a-f]{8}-\\d+$`);

/** Whether a node has been opened for points, by its name. */
export function isOwnNode(id: string): boolean {
  return OWN_NODE.test(id);
}

const CLOSING_TRIES = 10;
/** An image whose making was cut short is no longer. */
const MOST_CUT_SHORT_BYTES = 512 * KiB;

/** A points file's content without what is to be removed and is not there any more, or is another file by now. */
export async function withoutRemoved(
  server: PointServer,
  path: string,
  { unneeded = [], ...content }: PointFileContent,
): Promise<PointFileContent> {
  const there = new Map<string, UnneededFile>();
  for (const one of unneeded) {
    const known = await knownFile(server, path, one);
    if (known) there.set(one.file, known);
  }
  return { ...content, ...(there.size > 0 && { unneeded: [...there.values()] }) };
}

/** The file that is meant, if it is there. */
async function knownFile(
  server: PointServer,
  path: string,
  one: UnneededFile,
): Promise<UnneededFile | undefined> {
  const file = absoluteFrom(path, one.file);
  const stat = await server.host.files.stat(file);
  if (!stat) return undefined;
  const { identity, born, sizeBytes } = factsOf(stat);
  if (one.identity !== undefined) return isSameFile(one, { identity, ...given({ born }) }) ? one : undefined;
  const header = await readHeader(server.opener, file);
  const isOurs = header
    ? header.backing.some((name) => name === absoluteFrom(path, one.on ?? ''))
    : sizeBytes <= MOST_CUT_SHORT_BYTES;
  return isOurs ? { file: one.file, identity, ...given({ born }) } : undefined;
}

/**
 * Removes files that were made for points and that nobody needs; those that cannot be removed now stay for a next time.
 * Answers whether some are gone.
 */
export async function removeUnneeded(
  server: PointServer,
  pointFile: PointFile,
  layers: readonly Layer[],
): Promise<boolean> {
  const { content } = pointFile;
  const { unneeded = [], points, left = [], pending } = content;
  const named = [content.active, ...left, ...points.map(({ image }) => image)];
  const needed = new Set([...named, pending?.overlay ?? '', pending?.image ?? '']);
  const all = unneeded.filter(({ file }) => !needed.has(file));
  let waiting = all;
  // One may stand on another.
  for (let before = Infinity; waiting.length < before;) {
    before = waiting.length;
    const kept: UnneededFile[] = [];
    for (const one of waiting) {
      const isGone = await removeFile(server, pointFile, one, layers).catch(() => false);
      if (!isGone) kept.push(one);
    }
    waiting = kept;
  }
  return waiting.length < all.length;
}

/** Answers whether it is gone. */
async function removeFile(
  server: PointServer,
  pointFile: PointFile,
  one: UnneededFile,
  layers: readonly Layer[],
): Promise<boolean> {
  const path = absoluteFrom(pointFile.path, one.file);
  const stat = await server.host.files.stat(path);
  if (!stat || !isSameFile(one, factsOf(stat))) return true;
  if (layers.some((layer) => isSameFile(layer, one))) return false;
  if ((await sharersOf(server, pointFile, layers, [{ path, identity: stat.identity }])).length > 0)
    return false;
  for (const { id } of await openImages(server, stat.identity))
    // By plain QMP what has been opened stays open until it is closed.
    if (isOwnNode(id)) await server.execute('blockdev-del', { 'node-name': id }).catch(() => undefined);
  return !(await staysOpen(server, stat.identity)) && unlinkUnused(server, path);
}

/** Removes a file unless somebody has it open, to write or to read; nobody opens it meanwhile. Answers whether it is gone. */
export async function unlinkUnused({ host, opener }: PointServer, path: string): Promise<boolean> {
  const graph = new Graph(host);
  const looker = new Opener(graph, opener.drivers);
  try {
    const node = await looker.openImage(path, 'raw', { readOnly: false });
    const alone = { description: 'who removes a file', perm: Permission.write, shared: 0 };
    const { root } = await useNode(graph, node, alone);
    try {
      await host.files.unlink(path);
      return true;
    } finally {
      if (root) await graph.transaction((transaction) => transaction.detach(root));
      await graph.release([node]);
    }
  } catch {
    return false;
  }
}

/** What a job has just left may be closing yet. */
async function staysOpen(server: PointServer, identity: string): Promise<boolean> {
  for (let tries = 0; tries < CLOSING_TRIES; tries++) {
    const images = await openImages(server, identity);
    if (images.length === 0) return false;
    if (images.some(({ id }) => !id.startsWith('#'))) return true;
    await server.host.clock.sleep(10);
  }
  return true;
}

async function openImages(server: PointServer, identity: string): Promise<Image[]> {
  const found: Image[] = [];
  for (const image of (await look(server)).images)
    if ((await identityOf(server, image)) === identity) found.push(image);
  return found;
}

/** Which files the server has open as images, by what HostStat calls their identity. */
export async function openFiles(server: PointServer): Promise<Set<string>> {
  const found = new Set<string>();
  for (const image of (await look(server)).images) {
    const identity = await identityOf(server, image);
    if (identity !== undefined) found.add(identity);
  }
  return found;
}

async function identityOf({ host, folder }: PointServer, { filename }: Image): Promise<string | undefined> {
  const name = fileNamed(filename);
  return name && (await host.files.stat(posix.resolve(folder ?? '/', name)))?.identity;
}

/**
 * Files of images that are not of the chain and name one of `changed` as backing file, or may: it cannot be read. They are
 * looked for in the folders of all that the disk has or had, and of what that stands on.
 */
export async function sharersOf(
  server: PointServer,
  { path: pointsPath, content }: Pick<PointFile, 'path' | 'content'>,
  layers: readonly Layer[],
  changed: ReadonlyArray<Pick<Layer, 'identity' | 'path'>>,
): Promise<string[]> {
  const bases = new Map(changed.map(({ identity, path }) => [identity, path]));
  const { active, images, points, left = [], unneeded = [] } = content;
  const names = [
    ...[active, ...left, ...points.map(({ image }) => image)],
    ...[...images, ...unneeded].map(({ file }) => file),
  ];
  const own = [...layers, ...changed];
  const ownPaths = new Set(own.map(({ path }) => path));
  const paths = new Set([...ownPaths, ...names.map((name) => absoluteFrom(pointsPath, name))]);
  // Others may have made layers of what was left.
  for (const path of paths)
    if (!ownPaths.has(path))
      for (const below of (await readHeader(server.opener, path))?.backing ?? []) paths.add(below);
  const found: string[] = [];
  const except = new Set(own.map(({ identity }) => identity));
  for (const folder of new Set([...paths].map((path) => posix.dirname(path)))) {
    if (!(await server.host.files.stat(folder))) continue;
    for (const { image } of await imagesOn(server.opener, folder, bases, except, 'counts')) found.push(image);
  }
  return found;
}
