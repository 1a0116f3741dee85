import { resolve } from 'node:path';
import { BlockError } from '../base/error.js';
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
  const found = graph.nodes.get(nodeName ?? '');
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
  for (const { parent, role } of node.parents) {
    if (role !== 'backing' || !(parent instanceof Node)) continue;
    const reason = `node is used as backing hd of '${parent.label}'`;
    throw new BlockError('busy', `Node '${node.label}' is busy: ${reason}`, { node: node.name });
  }
}

/** The image in the chain below `top` that a file name means: as the node has it, or as its overlay's header does. */
export function findBackingImage(top: Node, filename: string): Node | undefined {
  const names = new NodeNames();
  for (let overlay = top.skipFilters(), at = overlay.backingNode(); at; overlay = at, at = at.backingNode()) {
    const name = names.of(at);
    if (name === filename) return at;
    const isPath = !hasProtocol(filename) && !hasProtocol(name);
    if (isPath && resolve(name) === resolve(filename)) return at;
    // Where another backing file was chosen, what the header says means nothing.
    if (names.isBackingOverridden(overlay)) continue;
    if (overlay.backingFilename === filename) return at;
    if (isPath && resolve(name) === resolve(folderOf(names.of(overlay)) + filename)) return at;
  }
  return undefined;
}
