import { BlockError } from '../base/error.js';
import type { Node } from './node.js';
import type { Opener } from './open.js';

/** Which file of the host a name means; undefined when there is none. */
export async function fileIdentity(
  { drivers, graph }: Opener,
  filename: string,
): Promise<string | undefined> {
  if (filename === '' || filename.startsWith('json:')) return undefined;
  const { filename: path } = drivers.parseFilename(filename);
  if (typeof path !== 'string') return undefined;
  return (await graph.host.files.stat(path).catch(() => undefined))?.identity;
}

/** Whether an image that is open here, apart from some nodes, reads the file that a name means, by this name or another. */
export async function isOpenHere(
  opener: Opener,
  filename: string,
  apart: ReadonlySet<Node> = new Set(),
): Promise<boolean> {
  const wanted = await fileIdentity(opener, filename);
  if (wanted === undefined) return false;
  for (const node of opener.graph.nodes.values()) {
    if (node.driver.kind !== 'protocol' || apart.has(node)) continue;
    if ((await fileIdentity(opener, node.filename)) === wanted) return true;
  }
  return false;
}

/** Where readers hold no locks (-U), nothing else keeps a file of theirs from being emptied. Errors: busy. */
export async function checkUnused(opener: Opener, filename: string): Promise<void> {
  if (await isOpenHere(opener, filename)) throw inUse(filename);
}

/** As the locks tell it. */
export function inUse(filename: string): BlockError {
  return new BlockError('busy', 'Failed to get "write" lock', {
    path: filename,
    errno: 'EAGAIN',
    hint: `Is another process using the image [${filename}]?`,
  });
}
