import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../base/async.js';
import type { BlockError } from '../base/error.js';
import { newBackend, newGraph, newNode, WRITER } from '../../test/kit/fake-graph.js';
import { ALL_PERMISSIONS, Permission } from './permissions.js';

test('a permission conflict is refused in words that name both users, and changes nothing', async () => {
  const graph = newGraph();
  const { node, device } = newNode('disk');
  const guest = newBackend(graph, WRITER, ALL_PERMISSIONS - Permission.write, {
    description: "block device '/machine/x'",
  });
  const second = newBackend(graph, WRITER, ALL_PERMISSIONS, { description: 'an unnamed block device' });
  await graph.transaction((transaction) => {
    transaction.add(node);
    transaction.attach(guest, 'root', node);
  });
  await assert.rejects(
    graph.transaction((transaction) => void transaction.attach(second, 'root', node)),
    (error: BlockError) => {
      assert.equal(error.kind, 'busy');
      assert.equal(
        error.message,
        "Permission conflict on node 'disk': permissions 'write' are both required by an unnamed block device " +
          "(uses node 'disk' as 'root' child) and unshared by block device '/machine/x' (uses node 'disk' as 'root' " +
          'child).',
      );
      return true;
    },
  );
  assert.equal(second.root, undefined);
  assert.deepEqual([...node.parents], [guest.root]);
  assert.equal(device.seen.length, 1);
});

test('when a driver refuses to prepare, those before it abort and the graph is as it was', async () => {
  const graph = newGraph();
  const first = newNode('first');
  const second = newNode('second');
  second.device.refuse = true;
  const a = newBackend(graph, WRITER);
  const b = newBackend(graph, WRITER);
  await assert.rejects(
    graph.transaction((transaction) => {
      transaction.add(first.node);
      transaction.add(second.node);
      transaction.attach(a, 'root', first.node);
      transaction.attach(b, 'root', second.node);
    }),
    /Failed to get "write" lock/,
  );
  assert.equal(first.device.aborted, 1);
  assert.equal(graph.nodes.size, 0);
  assert.equal(graph.backends.size, 0);
  assert.equal(first.node.parents.size, 0);
});

test('a writer on a read-only node is refused', async () => {
  const graph = newGraph();
  const { node } = newNode('disk', true);
  await assert.rejects(
    graph.transaction((transaction) => {
      transaction.add(node);
      transaction.attach(newBackend(graph, WRITER), 'root', node);
    }),
    { message: 'Block node is read-only' },
  );
});

test('a drained section waits for requests in flight and holds new ones back', async () => {
  const graph = newGraph();
  const { node, device } = newNode('disk');
  const backend = newBackend(graph, Permission.consistentRead);
  await graph.transaction((transaction) => {
    transaction.add(node);
    transaction.attach(backend, 'root', node);
  });
  const log: string[] = [];
  const early = backend.read(0, Buffer.alloc(16)).then(() => log.push('early read'));
  await new Promise(setImmediate);
  const section = graph.drained([node], async () => {
    log.push('drained');
    const late = backend.read(0, Buffer.alloc(16)).then(() => log.push('late read'));
    assert.equal(backend.tryRead(0, Buffer.alloc(16)), false);
    await new Promise(setImmediate);
    device.gate.notify();
    await new Promise(setImmediate);
    log.push('end');
    return { late };
  });
  await new Promise(setImmediate);
  assert.deepEqual(log, []);
  device.gate.notify();
  const { late } = await section;
  await early;
  await new Promise(setImmediate);
  device.gate.notify();
  await late;
  assert.deepEqual(log, ['early read', 'drained', 'end', 'late read']);
});

test('replaceNode moves every user in one step, and a frozen link refuses', async () => {
  const graph = newGraph();
  const old = newNode('old');
  const fresh = newNode('fresh');
  const backend = newBackend(graph, WRITER);
  await graph.transaction((transaction) => {
    transaction.add(old.node);
    transaction.add(fresh.node);
    transaction.attach(backend, 'root', old.node);
  });
  await graph.transaction((transaction) => transaction.replaceNode(old.node, fresh.node));
  assert.equal(backend.node, fresh.node);
  assert.equal(old.node.parents.size, 0);
  assert.deepEqual(old.device.seen.at(-1), { perm: 0, shared: ALL_PERMISSIONS });
  assert.ok(backend.root);
  backend.root.frozen = 1;
  await assert.rejects(
    graph.transaction((transaction) => transaction.replaceNode(fresh.node, old.node)),
    { message: "Cannot change frozen 'root' link from 'a test' to 'fresh'" },
  );
  assert.equal(backend.node, fresh.node);
});

test('a node that is closed lets go of those who are below it in the end, whoever was there when it began', async () => {
  const graph = newGraph();
  const top = newNode('top');
  const between = newNode('between');
  const below = newNode('below');
  for (const { node } of [between, below]) node.monitorOwned = false;
  await graph.transaction((transaction) => {
    for (const { node } of [top, between, below]) transaction.add(node);
    transaction.attach(top.node, 'file', between.node);
    transaction.attach(between.node, 'file', below.node);
  });
  const flushed = deferred();
  top.device.close = () => flushed.promise;
  const closed = graph.closeNode(top.node);
  await new Promise(setImmediate);
  // A job takes its filter out, and closes what is its own.
  await graph.transaction((transaction) => {
    transaction.replaceNode(between.node, below.node);
    transaction.detach(between.node.child('file'));
  });
  await graph.collect([between.node, below.node]);
  assert.deepEqual([...graph.nodes.keys()], ['top', 'below']);
  flushed.resolve();
  await closed;
  assert.deepEqual([...graph.nodes.keys()], []);
});
