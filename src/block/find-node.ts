import { BlockError } from '../base/error.js';
import type { DirtyBitmap } from './dirty-bitmap.js';
import type { Graph } from './graph.js';
import { folderOf, hasProtocol } from './filename.js';
import { NodeNames } from './full-filename.js';
import { Node } from './node.js';

/**
 * By the two names that commands take: a drive's id, which stands for its medium, or a node's name.
 * Errors: not-found, in QEMU's words.
 */
export function findNode(graph: Graph, device: string | undefined, nodeName: string | undefined): Node {
  const drive = device === undefined ? undefined : graph.drives.get(device);
  if (drive?.root) return drive.node;
  if (drive) throw new BlockError('not-found', `Device '${device ?? ''}' has no medium`);
  const found = graph.find(nodeName ?? '');
  if (found) return found;
  const names = `device='${device ?? ''}' nor node-name='${nodeName ?? ''}'`;
  throw new BlockError('not-found', `Cannot find ${names}`);
}

/** By an argument that takes either. */
export function findDevice(graph: Graph, device: string): Node {
  return findNode(graph, device, device);
}

/** The same, which must not be a child of another node, nor a job's. Errors: not-found, invalid. */
export function findRoot(graph: Graph, device: string): Node {
  const node = findDevice(graph, device);
  if (node.isBlocked || [...node.parents].some(({ parent }) => parent instanceof Node))
    throw new BlockError('invalid', 'Need a root block node');
  return node;
}

/** Refuses what a running job or an overlay on the node would suffer from. Errors: busy, in QEMU's words. */
export function checkNotBlocked(node: Node): void {
  node.assertNotBlocked();
  // The one that came last is told, as by QEMU.
  for (const { parent, role } of [...node.parents].reverse()) {
    if (role !== 'backing' || !(parent instanceof Node)) continue;
    const reason = `node is used as backing hd of '${parent.label}'`;
    throw new BlockError('busy', `Node '${node.label}' is busy: ${reason}`, { node: node.name });
  }
}

/** What a drive of that name shows, else the node of that name; undefined: there is neither. */
export function nodeNamed(graph: Graph, name: string): Node | undefined {
  return graph.drives.get(name)?.root?.node ?? graph.find(name);
}

/** A dirty bitmap and its node, by the names of that (or its drive) and of its own. Errors: not-found, in QEMU's words. */
export function findBitmapOf(
  graph: Graph,
  nodeName: string,
  name: string,
): { node: Node; bitmap: DirtyBitmap } {
  const node = nodeNamed(graph, nodeName);
  if (!node) throw new BlockError('not-found', `Node '${nodeName}' not found`);
  const bitmap = node.findBitmap(name);
  if (bitmap) return { node, bitmap };
  throw new BlockError('not-found', `Dirty bitmap '${name}' not found`);
}

/** The same, of which the node is not wanted. */
export function findBitmap(graph: Graph, nodeName: string, name: string): DirtyBitmap {
  return findBitmapOf(graph, nodeName, name).bitmap;
}

/** The files at paths, by what HostStat calls their identity. */
export type FilesAtPaths = ReadonlyMap<string, string>;

/**
 * The image in the chain below `top` that a file name means: seen from an overlay's folder it is the file that the
 * overlay's header names, or (unless `asShown` is false) it is the very name that queries show.
 */
export function findBackingImage(
  top: Node,
  filename: string,
  files: FilesAtPaths,
  { asShown = true } = {},
): Node | undefined {
  const names = new NodeNames();
  for (const [overlay, below] of overlaysFrom(top)) {
    // Where another backing file was chosen, what the header says means nothing.
    if (names.isBackingOverridden(overlay)) continue;
    const { backingFilename = '' } = overlay;
    const [asked, named] = [filename, backingFilename].map((name) => pathFrom(names.of(overlay), name));
    if (filename === backingFilename || (asked !== undefined && asked === named)) return below;
    const file = files.get(asked ?? '');
    if (file !== undefined && file === files.get(named ?? '')) return below;
  }
  if (!asShown) return undefined;
  return [...overlaysFrom(top)].find(([, below]) => names.of(below) === filename)?.[1];
}

/** What findBackingImage compares by, in the chain of a node or drive that may not be there. */
export async function filesBelow(
  graph: Graph,
  device: string,
  filenames: ReadonlyArray<string | undefined>,
): Promise<FilesAtPaths> {
  const top = nodeNamed(graph, device);
  const asked = filenames.filter((name) => name !== undefined);
  const found = new Map<string, string>();
  if (!top || asked.length === 0) return found;
  const names = new NodeNames();
  const paths = [...overlaysFrom(top)].flatMap(([overlay]) =>
    [...asked, overlay.backingFilename ?? ''].map((name) => pathFrom(names.of(overlay), name)),
  );
  for (const path of new Set(paths)) {
    const stat = path === undefined ? undefined : await graph.host.files.stat(path).catch(() => undefined);
    if (path !== undefined && stat) found.set(path, stat.identity);
  }
  return found;
}

function* overlaysFrom(top: Node): Generator<readonly [Node, Node]> {
  for (let overlay = top.skipFilters(), at = overlay.backingNode(); at; overlay = at, at = at.backingNode())
    yield [overlay, at];
}

/** A path as an image called `imageName` sees it; undefined: it is none. */
function pathFrom(imageName: string, filename: string): string | undefined {
  if (filename === '' || hasProtocol(filename)) return undefined;
  if (filename.startsWith('/')) return filename;
  return hasProtocol(imageName) ? undefined : folderOf(imageName) + filename;
}
