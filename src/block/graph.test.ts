import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Notifier } from '../base/async.js';
import { BlockError } from '../base/error.js';
import type { Host } from '../host/host.js';
import type { BlockBackend } from './backend.js';
import type { DriverDescription, DriverInstance, PermissionSet } from './driver.js';
import { Graph } from './graph.js';
import { Node } from './node.js';
import { ALL_PERMISSIONS, Permission } from './permissions.js';
import { driverOptions } from '../schema/blockdev-options.js';

const WRITER = Permission.consistentRead + Permission.write;

/** A device in memory whose reads wait for a gate, and which records or refuses permissions. */
class FakeDevice implements DriverInstance {
  readonly lengthBytes = 4096;
  readonly requestAlignmentBytes = 1;
  readonly seen: PermissionSet[] = [];
  refuse = false;
  readonly gate = new Notifier();
  aborted = 0;

  readonly io = {
    read: async (_offset: number, buffer: Uint8Array): Promise<void> => {
      await this.gate.wait();
      buffer.fill(7);
    },
    write: async (): Promise<void> => undefined,
    writeZeroes: async (): Promise<void> => undefined,
    discard: async (): Promise<void> => undefined,
    status: async (_offset: number, lengthBytes: number) => ({
      lengthBytes,
      allocated: true,
      zero: false,
      data: true,
    }),
  };

  async preparePermissions(set: PermissionSet): Promise<{ commit(): void; abort(): void }> {
    if (this.refuse) throw new BlockError('busy', 'Failed to get "write" lock');
    return { commit: () => void this.seen.push(set), abort: () => void this.aborted++ };
  }

  async flush(): Promise<void> {}
  info(): Record<string, never> {
    return {};
  }
  async close(): Promise<void> {}
}

const DEVICE: DriverDescription = {
  name: 'fake',
  kind: 'protocol',
  options: driverOptions({}),
  open: async () => new FakeDevice(),
};

function newGraph(): Graph {
  const clock = { nowMs: () => 0 };
  return new Graph({ clock } as unknown as Host);
}

function newNode(name: string, readOnly = false): { node: Node; device: FakeDevice } {
  const node = new Node({ name, driver: DEVICE, options: {}, filename: name, readOnly, monitorOwned: true });
  const device = new FakeDevice();
  node.opened(device);
  return { node, device };
}

function newBackend(
  graph: Graph,
  perm: number,
  shared = ALL_PERMISSIONS,
  description = 'a test',
): BlockBackend {
  return graph.createBackend({ description, perm, shared });
}

test('a permission conflict is refused in words that name both users, and changes nothing', async () => {
  const graph = newGraph();
  const { node, device } = newNode('disk');
  const guest = newBackend(graph, WRITER, ALL_PERMISSIONS - Permission.write, "block device '/machine/x'");
  const second = newBackend(graph, WRITER, ALL_PERMISSIONS, 'an unnamed block device');
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
