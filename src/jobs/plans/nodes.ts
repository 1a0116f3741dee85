import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { ReferenceWishes } from '../../block/backing-reference.js';
import type { Graph } from '../../block/graph.js';
import { Node } from '../../block/node.js';

/** A node, and the image that it is. */
export interface NodeReference {
  name: string;
  driver: string;
  /** Filename of the storage below, if it has one. */
  storage?: string;
}

export function referTo(node: Node): NodeReference {
  return given({ name: node.name, driver: node.driver.name, storage: storageOf(node) });
}

function storageOf(node: Node): string | undefined {
  const { filename } = node.storage;
  return filename === '' ? undefined : filename;
}

/** Errors: not-found; invalid when another image has the name now. */
export function nodeOf(graph: Graph, { name, driver, storage }: NodeReference): Node {
  const node = graph.node(name);
  if (node.driver.name === driver && storageOf(node) === storage) return node;
  const was = storage === undefined ? driver : `${driver} '${storage}'`;
  throw new BlockError('invalid', `Node '${name}' is not the image that the job is for: ${was}`);
}

/** The same of one that may be missing. */
export function optionalNodeOf(graph: Graph, reference: NodeReference | undefined): Node | undefined {
  return reference && nodeOf(graph, reference);
}

/** The nodes from `top` down to the one above `end` (undefined: to the base). Errors: kind busy, in QEMU's words. */
export function assertChainNotBlocked(top: Node, end: Node | undefined): void {
  for (const node of top.chain()) {
    if (node === end) return;
    node.assertNotBlocked();
  }
}

/** A root is not a child of another node. Errors: kind invalid, in QEMU's words. */
export function assertIsRoot(node: Node): void {
  for (const { parent } of node.parents)
    if (parent instanceof Node) throw new BlockError('invalid', 'Need a root block node');
}

/** The lowest layer of a chain. */
export function lowestLayer(node: Node): Node {
  let at = node.skipFilters();
  for (let below = at.backingNode(); below; below = below.backingNode()) at = below;
  return at;
}

/** The layer of top's chain whose backing file is `base`. Errors: invalid. */
export function layerAbove(top: Node, base: Node): Node {
  for (let at: Node | undefined = top.skipFilters(); at; at = at.backingNode())
    if (at.backingNode() === base.skipFilters()) return at;
  throw notInChain(base);
}

export function notInChain(node: Node): BlockError {
  return new BlockError('invalid', `'${node.name}' is not in this backing file chain`);
}

export function backingWishes(request: {
  'backing-file'?: string;
  'backing-mask-protocol'?: boolean;
}): ReferenceWishes {
  return given({ filename: request['backing-file'], masksProtocol: request['backing-mask-protocol'] });
}

export function refuseBoth(request: object, one: string, other: string, text: string): void {
  if (one in request && other in request) throw new BlockError('invalid', text);
}
