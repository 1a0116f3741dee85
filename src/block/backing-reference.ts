import { BlockError } from '../base/error.js';
import type { Graph } from './graph.js';
import { isJobFilter } from './full-filename.js';
import type { Node } from './node.js';

/** What an image says its backing file is. */
export interface BackingReference {
  filename: string | undefined;
  format: string | undefined;
}

/** Refusals, before anything was written; after any other error the image may name the old file or the new one. */
const REFUSALS: ReadonlySet<string> = new Set(['invalid', 'unsupported']);

export function backingReferenceOf(node: Node): BackingReference {
  return { filename: node.backingFilename, format: node.backingFormat };
}

/** How an image names `node` as its backing file: so that the two, opened again, show what they show now. */
export function referenceTo(node: Node): BackingReference {
  let shown = node;
  while (isJobFilter(shown) && shown.filtered) shown = shown.filtered.node;
  return { filename: shown.filename, format: shown.driver.name };
}

/**
 * Makes an image name another backing file; durable on return. A read-only node is reopened for it. Errors:
 * permission when another process has the image; those of the driver, and then the image names the old file again then, or if that cannot be made sure of, its reference is uncertain
 * from then on.
 */
export async function changeBackingReference(
  graph: Graph,
  node: Node,
  reference: BackingReference,
): Promise<void> {
  if (node.activity === 'inactive')
    throw new BlockError('permission', 'Block node is read-only', { node: node.name, errno: 'EPERM' });
  const wasReadOnly = node.readOnly;
  if (wasReadOnly) await graph.transaction((transaction) => transaction.setReadOnly(node, false));
  try {
    await changeOrUndo(node, reference);
  } finally {
    if (wasReadOnly) await graph.transaction((transaction) => transaction.setReadOnly(node, true));
  }
}

async function changeOrUndo(node: Node, reference: BackingReference): Promise<void> {
  const { instance } = node;
  try {
    await instance.changeBacking?.(reference.filename, reference.format);
  } catch (error) {
    if (error instanceof BlockError && REFUSALS.has(error.kind)) throw error;
    node.backingIsUncertain = true;
    const former = backingReferenceOf(node);
    await instance.changeBacking?.(former.filename, former.format).then(
      () => (node.backingIsUncertain = false),
      () => undefined,
    );
    throw error;
  }
  node.backingFilename = reference.filename;
  node.backingFormat = reference.format;
  node.automaticBacking = reference.filename;
  node.backingIsUncertain = false;
}

/**
 * Before data of upper layers goes down into `base`: an image that skips some of them on disk would show other content
 * after a crash. Errors: io.
 */
export function assertBackingCertainAbove(graph: Graph, base: Node): void {
  for (const node of graph.nodes.values()) {
    if (!node.backingIsUncertain || !node.isAbove(base)) continue;
    const text = `Node '${node.name}' may name another backing file on disk than it has: a change of its header failed`;
    throw new BlockError('io', text, { errno: 'EIO', node: node.name });
  }
}
