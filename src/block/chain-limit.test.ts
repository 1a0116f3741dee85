import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAX_CHAIN_DEPTH } from '../base/limits.js';
import { newGraph, newNode } from '../../test/kit/fake-graph.js';
import { assertOverlayFits } from './chain-limit.js';
import type { Graph } from './graph.js';
import type { Node } from './node.js';

const REFUSAL = /Backing chains of more than 1000 images below the first are not supported$/;

/** Nodes in a chain, the top first. */
async function chainOf(graph: Graph, name: string, length: number): Promise<Node[]> {
  const nodes = Array.from({ length }, (_, index) => newNode(`${name}${index}`, true).node);
  await graph.transaction((transaction) => {
    for (const node of nodes) transaction.add(node);
    nodes.forEach((node, index) => {
      const overlay = nodes[index - 1];
      if (overlay) transaction.attach(overlay, 'backing', node);
    });
  });
  return nodes;
}

test('no link makes a chain that could not be opened again, wherever it is made', async () => {
  const graph = newGraph();
  const upper = await chainOf(graph, 'u', 400);
  const lower = await chainOf(graph, 'l', MAX_CHAIN_DEPTH - 400 + 2);
  const link = (overlay: Node | undefined, backing: Node | undefined): Promise<void> =>
    graph.transaction((transaction) => {
      if (overlay && backing) transaction.attach(overlay, 'backing', backing);
    });
  await assert.rejects(link(upper.at(-1), lower[0]), REFUSAL);
  assert.equal(upper[0]?.isAbove(lower[0] as Node), false);
  await link(upper.at(-1), lower[1]);
  assert.equal([...(upper[0]?.chain() ?? [])].length, MAX_CHAIN_DEPTH + 1);
  assert.throws(() => assertOverlayFits(upper[0] as Node), REFUSAL);
  assert.doesNotThrow(() => assertOverlayFits(upper[1] as Node));
  const { node: overlay } = newNode('overlay');
  await graph.transaction((transaction) => transaction.add(overlay));
  await assert.rejects(link(overlay, upper[0]), REFUSAL);
});
