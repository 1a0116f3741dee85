import { BlockError } from '../base/error.js';
import type { Graph } from './graph.js';
import { beganWritable, endWritable, isMeantReadOnly } from './lent-writable.js';
import { nameSeenFrom } from './filename.js';
import { isJobFilter } from './full-filename.js';
import type { Node } from './node.js';

/** What an image says its backing file is. */
export interface BackingReference {
  filename: string | undefined;
  format: string | undefined;
  /** How queries name what it means, where that is another spelling. */
  shown?: string;
}

/** Refusals, before anything was written; after any other error the image may name the old file or the new one. */
const REFUSALS: ReadonlySet<string> = new Set(['invalid', 'unsupported']);

export function backingReferenceOf(node: Node): BackingReference {
  const { backingFilename: filename, backingFormat: format, automaticBacking: shown } = node;
  return { filename, format, ...(shown !== undefined && { shown }) };
}

/**
 * How the image `imageFilename` names `node` as its backing file: so that the two, opened again, show what they show now.
 */
export function referenceTo(node: Node, imageFilename: string): BackingReference {
  let layer = node;
  while (isJobFilter(layer) && layer.filtered) layer = layer.filtered.node;
  const { filename: shown, driver } = layer;
  return { filename: nameSeenFrom(imageFilename, shown), format: driver.name, shown };
}

/** What the user wants an image to say of its backing file. */
export interface ReferenceWishes {
  /** Instead of its name. */
  filename?: string | undefined;
  /** A protocol is called raw, which shows the same. */
  masksProtocol?: boolean | undefined;
}

/** The same of an image that is open. No node: no backing file. */
export function referenceAs(
  wishes: ReferenceWishes,
  overlay: Node,
  node: Node | undefined,
): BackingReference {
  if (!node) return { filename: undefined, format: undefined };
  const { filename, masksProtocol = false } = wishes;
  const named = referenceTo(node, overlay.storage.filename);
  const isMasked = masksProtocol && node.skipFilters().driver.kind === 'protocol';
  const reference = isMasked ? { ...named, format: 'raw' } : named;
  return filename === undefined ? reference : { filename, format: reference.format };
}

/**
 * Makes an image name another backing file; durable on return. A read-only node is reopened for it. Errors:
 * permission when another process has the image; those of the driver, and then the image names the old file again, or if
 * that cannot be made sure of, its reference is uncertain until settleBackingAbove.
 */
export async function changeBackingReference(
  graph: Graph,
  node: Node,
  reference: BackingReference,
): Promise<void> {
  if (node.activity === 'inactive')
    throw new BlockError('permission', 'Block node is read-only', { node: node.name, errno: 'EPERM' });
  await whileWritable(graph, node, () => changeOrUndo(node, reference));
}

async function whileWritable(graph: Graph, node: Node, body: () => Promise<void>): Promise<void> {
  const isReadOnly = isMeantReadOnly(node);
  if (isReadOnly) await graph.transaction((transaction) => transaction.setReadOnly(node, false));
  beganWritable(node);
  try {
    await body();
  } finally {
    if (isReadOnly) await endWritable(graph, node);
  }
}

/** The image names it from then on, or, with an error, it or another one. */
async function nameBacking(node: Node, { filename, format }: BackingReference): Promise<void> {
  await node.instance.changeBacking?.(filename, format);
  node.backingIsUncertain = false;
}

async function changeOrUndo(node: Node, reference: BackingReference): Promise<void> {
  try {
    await nameBacking(node, reference);
  } catch (error) {
    if (error instanceof BlockError && REFUSALS.has(error.kind)) throw error;
    node.backingIsUncertain = true;
    await nameBacking(node, backingReferenceOf(node)).catch(() => undefined);
    throw error;
  }
  node.backingFilename = reference.filename;
  node.backingFormat = reference.format;
  node.automaticBacking = reference.shown ?? reference.filename;
}

/**
 * In a drained section, before data of upper layers goes down into `base`: an image that skips some of them on disk would
 * show other content after a crash. One whose header could not be changed is made to name its backing file once more.
 * Errors: io.
 */
export async function settleBackingAbove(graph: Graph, base: Node): Promise<void> {
  for (const node of [...graph.nodes.values()]) {
    if (!node.backingIsUncertain || !node.isAbove(base)) continue;
    try {
      await whileWritable(graph, node, () => nameBacking(node, backingReferenceOf(node)));
    } catch (cause) {
      const text = `Node '${node.name}' may name another backing file on disk than it has: a change of its header failed`;
      throw new BlockError('io', text, { errno: 'EIO', node: node.name, cause });
    }
  }
}
