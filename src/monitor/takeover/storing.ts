import type { CancelSignal } from '../../base/cancel-signal.js';
import { BlockError } from '../../base/error.js';
import { prepareInactivation } from '../../block/activity.js';
import type { PreparedChange } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import type { Given } from './live.js';

/** What the kernel has of plain files it has for both. */
function keepsTables({ driver }: Node): boolean {
  return driver.kind === 'format' && driver.isFallback !== true;
}

function formatsOf({ graph }: Given): Node[] {
  const seen = new Set<Node>();
  // Those above come before those below.
  const visit = (node: Node, order: Node[]): void => {
    if (seen.has(node)) return;
    seen.add(node);
    for (const edge of node.children.values()) visit(edge.node, order);
    order.unshift(node);
  };
  const order: Node[] = [];
  for (const node of graph.nodes.values()) visit(node, order);
  return order.filter((node) => node.isOpen && node.isWritable && keepsTables(node));
}

/** Only who has written to a server knows what it may lose still: the other process begins with a connection of its own. */
function serversOf({ graph }: Given): Node[] {
  return [...graph.nodes.values()].filter(
    ({ isOpen, readOnly, driver, instance }) =>
      isOpen && !readOnly && driver.kind === 'protocol' && !instance.passed,
  );
}

export async function flushAll(engine: Given): Promise<void> {
  for (const { instance } of [...formatsOf(engine), ...serversOf(engine)]) await instance.flush();
}

/**
 * All that formats have in memory is in their images, servers keep what they have, and nothing is written by itself any more.
 * Errors: ECANCELED, where nobody waits for it by then; what was done is undone.
 */
export async function storeAll(
  engine: Given,
  signal: CancelSignal,
): Promise<Array<PreparedChange | undefined>> {
  const done: Array<PreparedChange | undefined> = [];
  try {
    for (const { side } of engine.graph.nodes.values()) {
      if (!side) continue;
      signal.check();
      done.push({ commit: () => undefined, abort: () => side.log.goOn() });
      await side.log.rest();
    }
    for (const node of formatsOf(engine)) {
      signal.check();
      done.push(await prepareInactivation(node));
      // Whoever opens it would repair it first.
      if (node.instance.info().isDirty === true)
        throw new BlockError('busy', `The image of node '${node.name}' is not clean`);
    }
    for (const { instance } of serversOf(engine)) await instance.flush();
    return done;
  } catch (error) {
    undo(done);
    throw error;
  }
}

/** They go on. */
export function undo(changes: ReadonlyArray<PreparedChange | undefined>): void {
  for (const change of [...changes].reverse()) change?.abort();
}
