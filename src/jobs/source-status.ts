import type { ChainStatus } from '../block/chain-status.js';
import type { Node } from '../block/node.js';
import { PIECE_BYTES } from './copy-window.js';

/**
 * Status of a stretch through the chain, for a job that copies it. Status is advice: where it cannot be had, a first
 * part counts as data, and what is wrong with it shows when it is read.
 */
export function statusOrData(
  node: Node,
  offset: number,
  lengthBytes: number,
  lowest?: Node,
): ChainStatus | Promise<ChainStatus> {
  try {
    const status = node.statusThroughChain(offset, lengthBytes, lowest);
    return status instanceof Promise ? status.catch(() => unknown(node, lengthBytes)) : status;
  } catch {
    return unknown(node, lengthBytes);
  }
}

/** Held by some layer, nobody knows which. */
function unknown(node: Node, lengthBytes: number): ChainStatus {
  const known = Math.min(lengthBytes, PIECE_BYTES);
  return { lengthBytes: known, allocated: true, zero: false, data: true, depth: 1, node };
}

/** The same, of a stretch that may be shorter, where no wait is needed; undefined: ask statusOrData. */
export function tryStatus(
  node: Node,
  offset: number,
  lengthBytes: number,
  lowest?: Node,
): ChainStatus | undefined {
  try {
    return node.tryStatusThroughChain(offset, lengthBytes, lowest);
  } catch {
    return undefined;
  }
}
