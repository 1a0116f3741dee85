import { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import { Opener } from '../../block/open.js';
import { MiB } from '../../base/limits.js';
import type { Layer } from './chain.js';
import type { PointServer } from './server.js';
import type { ActiveDoubt, Committed, Doubt, Settled } from './settle.js';

/** Of an image that may have been committed, so many pieces of data are compared at least. */
const COMPARED_PIECES = 256;
const PIECE_BYTES = MiB / 16;

/** What only the images themselves can say: they are looked into, whoever has them open. */

/** Whether an image, which is not on top, has been written to: a guest has used it. */
export async function isWritten(server: PointServer, path: string, top: Layer): Promise<boolean> {
  if (path === top.path || !(await server.host.files.stat(path))) return false;
  // One that was not made to its end cannot be opened.
  const found = await lookInto(server, { path, format: 'qcow2', noBacking: true }, async (node) => {
    for await (const _ of stretchesOf(node)) return true;
    return false;
  });
  return found === true;
}

/** What is gone from the chain and has gone down: the image below shows all that it holds. Undefined: nothing has. */
export async function committedOf(
  server: PointServer,
  { points, activeDoubt }: Settled,
): Promise<Committed | undefined> {
  const found = new Set<string>();
  for (const { doubt } of points) if (doubt && (await isShownBelow(server, doubt))) found.add(doubt.id);
  const isActive = activeDoubt !== undefined && (await isActiveCommitted(server, activeDoubt));
  return found.size > 0 || isActive ? { points: found, isActive } : undefined;
}

/**
 * What its guest has written since may have taken the place of some of it. Where it holds nothing, either way the disk shows the
 * same: then it is there for the points.
 */
async function isActiveCommitted(
  server: PointServer,
  { path, below, isExplained }: ActiveDoubt,
): Promise<boolean> {
  const active = await server.host.files.stat(path);
  // Who has committed it does not write to it any more, and is about to do so below. A file system's clock may stand still between.
  if (!active || (!isExplained && Number(below.modified) > active.modifiedMs)) return true;
  const shown = await comparedBelow(server, { path, below });
  return shown !== undefined && shown.pieces > 0 && shown.alike * 2 >= shown.pieces;
}

async function isShownBelow(server: PointServer, doubt: Doubt): Promise<boolean> {
  if (!(await server.host.files.stat(doubt.path))) return false;
  const shown = await comparedBelow(server, doubt);
  return shown !== undefined && shown.alike === shown.pieces;
}

/** How many pieces of what an image holds the one below shows. Undefined where one of them cannot be read. */
function comparedBelow(
  server: PointServer,
  { path, below }: Pick<Doubt, 'path' | 'below'>,
): Promise<{ pieces: number; alike: number } | undefined> {
  const shown = { path: below.path, format: below.image.driver, noBacking: false };
  return lookInto(server, { path, format: 'qcow2', noBacking: true }, (gone) =>
    lookInto(server, shown, async (node) => {
      const sample = await sampleOf(gone);
      let alike = 0;
      for (const stretch of sample) if (await isAlike(gone, node, stretch)) alike++;
      return { pieces: sample.length, alike };
    }),
  );
}

async function isAlike(a: Node, b: Node, { offset, lengthBytes }: Stretch): Promise<boolean> {
  const [first, second] = [Buffer.alloc(lengthBytes), Buffer.alloc(lengthBytes)];
  await a.io.readBuffer(offset, first);
  await b.io.readBuffer(offset, second);
  return first.equals(second);
}

interface Stretch {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** All that an image holds where that is little, else pieces from all over it. */
async function sampleOf(node: Node): Promise<Stretch[]> {
  const all: Stretch[] = [];
  for await (const stretch of stretchesOf(node)) all.push(stretch);
  const heldBytes = all.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
  const stepBytes = heldBytes / COMPARED_PIECES;
  const sample: Stretch[] = [];
  let [before, next] = [0, 0];
  for (const { offset, lengthBytes: whole } of all) {
    while (next < before + whole) {
      const into = Math.floor(next - before);
      const lengthBytes = Math.min(PIECE_BYTES, whole - into);
      sample.push({ offset: offset + into, lengthBytes });
      next = before + into + Math.max(lengthBytes, stepBytes <= PIECE_BYTES ? 0 : stepBytes);
    }
    before += whole;
  }
  return sample;
}

/** Of what the image itself holds, its backing files left out. */
async function* stretchesOf(node: Node): AsyncGenerator<Stretch> {
  for (let at = 0; at < node.lengthBytes;) {
    const { lengthBytes, allocated } = await node.io.status(at, node.lengthBytes - at);
    if (allocated) yield { offset: at, lengthBytes };
    at += lengthBytes;
  }
}

interface Look {
  readonly path: string;
  readonly format: string;
  readonly noBacking: boolean;
}

/** Undefined where it cannot be opened or read. */
async function lookInto<T>(
  { host, opener }: PointServer,
  { path, format, noBacking }: Look,
  look: (node: Node) => Promise<T>,
): Promise<T | undefined> {
  const looker = new Opener(new Graph(host), opener.drivers);
  try {
    const node = await looker.openImage(path, format, { readOnly: true, forceShare: true, noBacking });
    try {
      return await look(node);
    } finally {
      await looker.graph.release([node]);
    }
  } catch {
    return undefined;
  }
}
