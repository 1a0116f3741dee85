import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FakeDevice, newBackend, newGraph } from '../../test/kit/fake-graph.js';
import { driverOptions } from '../schema/blockdev-options.js';
import type { BlockBackend } from './backend.js';
import type { DriverDescription } from './driver.js';
import { BlockError } from '../base/error.js';
import type { Edge } from './edge.js';
import type { Graph } from './graph.js';
import { computePermissions } from './graph-permissions.js';
import { Node } from './node.js';
import { ALL_PERMISSIONS, Permission } from './permissions.js';
import type { GraphTransaction } from './transaction.js';

const ROLES = ['file', 'backing'] as const;
const NODES = 6;

function describe(kind: 'format' | 'filter', visit: () => void = () => undefined): DriverDescription {
  return {
    name: kind,
    kind,
    options: driverOptions({}, [{ role: 'file', required: false }], true),
    open: async () => new FakeDevice(),
    childPermissions: () => {
      visit();
      return undefined;
    },
  };
}

function newNode(name: string, driver: DriverDescription): Node {
  const node = new Node({ name, driver, options: {}, readOnly: false, monitorOwned: true });
  node.opened(new FakeDevice());
  return node;
}

/** How often a driver is asked about a child while a chain of that length is opened, base first, and then used. */
async function visitsOfOpening(length: number): Promise<number> {
  let visits = 0;
  const driver = describe('format', () => visits++);
  const graph = newGraph();
  let below: Node | undefined;
  for (let i = 0; i < length; i++) {
    const node = newNode(`layer${i}`, driver);
    const base = below;
    await graph.transaction((transaction) => transaction.add(node));
    if (base) await graph.transaction((transaction) => void transaction.attach(node, 'backing', base));
    below = node;
  }
  const top = below;
  assert.ok(top);
  await graph.transaction((t) => void t.attach(newBackend(graph, Permission.consistentRead), 'root', top));
  return visits;
}

test('opening a chain looks at each of its layers a few times, however long it is', async () => {
  for (const length of [50, 200]) assert.ok((await visitsOfOpening(length)) <= 6 * length);
});

interface Operation {
  kind: 'attach' | 'detach' | 'retarget' | 'use' | 'ask' | 'read-only' | 'activity';
  a: number;
  b: number;
  role: number;
  perm: number;
  shared: number;
}

const operations = fc.array(
  fc.record<Operation>({
    kind: fc.constantFrom('attach', 'attach', 'detach', 'retarget', 'use', 'ask', 'read-only', 'activity'),
    a: fc.nat(NODES - 1),
    b: fc.nat(NODES - 1),
    role: fc.nat(1),
    perm: fc.nat(ALL_PERMISSIONS),
    shared: fc.nat(ALL_PERMISSIONS),
  }),
  { minLength: 1, maxLength: 3 },
);

interface World {
  graph: Graph;
  nodes: Node[];
  users: BlockBackend[];
}

async function newWorld(): Promise<World> {
  const graph = newGraph();
  const nodes = Array.from({ length: NODES }, (_, i) =>
    newNode(`n${i}`, describe(i % 3 === 2 ? 'filter' : 'format')),
  );
  await graph.transaction((transaction) => {
    for (const node of nodes) transaction.add(node);
  });
  const users = nodes.map((_, i) => newBackend(graph, 0, ALL_PERMISSIONS, { isGuest: i % 2 === 0 }));
  return { graph, nodes, users };
}

/** Lists an operation where it makes sense as the graph stands before the transaction. */
function list(transaction: GraphTransaction, world: World, operation: Operation, used: Set<object>): void {
  const { kind, a, b, perm, shared } = operation;
  const node = world.nodes[a] as Node;
  const other = world.nodes[b] as Node;
  const user = world.users[a] as BlockBackend;
  const role = ROLES[operation.role] ?? 'file';
  const edge: Edge | undefined = node.children.get(role);
  const isFirst = (key: object): boolean => !used.has(key) && Boolean(used.add(key));
  const slot = edge ?? user;
  if (kind === 'use' && isFirst(user)) {
    if (user.root) transaction.detach(user.root);
    else transaction.attach(user, 'root', other);
  } else if (kind === 'ask' && isFirst(user)) transaction.setPermissions(user, perm, shared);
  else if (kind === 'read-only') transaction.setReadOnly(node, shared % 2 === 0);
  else if (kind === 'activity' && isFirst(node))
    transaction.setActivity(node, node.activity === 'active' ? 'inactive' : 'active');
  else if (kind === 'attach' && !edge && node !== other && used.size === 0 && isFirst(slot))
    transaction.attach(node, role, other);
  else if (kind === 'detach' && edge && isFirst(edge)) transaction.detach(edge);
  else if (kind === 'retarget' && edge && node !== other && isFirst(edge)) transaction.retarget(edge, other);
}

/** All edges have what they would have if all were looked at. */
function assertSettled({ graph, nodes, users }: World): void {
  const { edges } = computePermissions(graph, nodes);
  const all = [...nodes.flatMap((node) => [...node.children.values()]), ...users.map(({ root }) => root)];
  for (const edge of all) {
    if (!edge) continue;
    const { perm, shared } = edge;
    assert.deepEqual({ perm, shared }, edges.get(edge), `${edge.role} of '${edge.parent.describe()}'`);
  }
}

test('a transaction that looks only where something may change leaves what looking everywhere would', async () => {
  let done = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(operations, { maxLength: 30 }), async (transactions) => {
      const world = await newWorld();
      for (const listed of transactions) {
        const used = new Set<object>();
        try {
          await world.graph.transaction((transaction) => {
            for (const operation of listed) list(transaction, world, operation, used);
          });
          done++;
        } catch (error) {
          if (!(error instanceof BlockError)) throw error;
        }
        assertSettled(world);
      }
    }),
    { numRuns: 300 },
  );
  assert.ok(done > 1000, 'most transactions come to be');
});
