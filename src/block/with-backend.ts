import type { BlockBackend } from './backend.js';
import type { BackendProperties } from './backend-user.js';
import type { Graph } from './graph.js';
import type { Node } from './node.js';
import { ALL_PERMISSIONS } from './permissions.js';

/** A backend on a node. Where it may not be there, the node goes when nobody else uses it. Errors: those of permissions. */
export async function useNode(
  graph: Graph,
  node: Node,
  properties: BackendProperties,
): Promise<BlockBackend> {
  const backend = graph.createBackend(properties);
  try {
    await graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
  } catch (error) {
    await graph.collect([node]);
    throw error;
  }
  return backend;
}

/** Runs `body` with a backend of its own on a node. `owner`: of a drained section in which it works. */
export async function withBackend<T>(
  graph: Graph,
  node: Node,
  perm: number,
  body: (backend: BlockBackend) => Promise<T>,
  owner: object = {},
): Promise<T> {
  const description = 'an unnamed block device';
  const backend = graph.createBackend({ description, perm, shared: ALL_PERMISSIONS, owner });
  await graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
  try {
    return await body(backend);
  } finally {
    const { root } = backend;
    if (root) await graph.transaction((transaction) => transaction.detach(root));
  }
}
