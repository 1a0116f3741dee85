import assert from 'node:assert/strict';
import test from 'node:test';
import { NbdClient } from '../../src/nbd/client.js';
import { TransmissionFlag } from '../../src/nbd/constants.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

async function serving(bed: EngineBed, more: JsonObject = {}): Promise<string> {
  const path = bed.path('nbd.sock');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path } }, ...more });
  return path;
}

function connect(bed: EngineBed, path: string, exportName: string): Promise<NbdClient> {
  return NbdClient.connect({ host: bed.engine.host, address: { type: 'unix', path }, exportName });
}

test('nbd-server-remove takes the id of an export, whatever name it is served under', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await serving(bed);
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'A', name: 'disk' });
  assert.equal(await bed.refusal('nbd-server-remove', { name: 'disk' }), "Export 'disk' is not found");
  await bed.execute('nbd-server-remove', { name: 'e' });
  assert.deepEqual(await bed.execute('query-block-exports'), []);
});

test('an exported disk keeps the size that its clients were told', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await serving(bed);
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'A' });
  assert.equal(
    await bed.refusal('block_resize', { 'node-name': 'A', size: 2 * DISK_BYTES }),
    "Permission conflict on node 'A': permissions 'resize' are both required by an unnamed block device " +
      "(uses node 'A' as 'root' child) and unshared by an unnamed block device (uses node 'A' as 'root' child).",
  );
  await bed.execute('block-export-del', { id: 'e' });
  await bed.execute('block_resize', { 'node-name': 'A', size: 2 * DISK_BYTES });
});

test('an export is served under its name, with its description, read-only unless it is said to be writable', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  const path = await serving(bed);
  const flagsOf = async (name: string): Promise<unknown[]> => {
    const client = await connect(bed, path, name);
    const { readOnly, canMultiConn } = TransmissionFlag;
    const found = [client.info.description, client.has(readOnly), client.has(canMultiConn)];
    await client.close();
    return found;
  };
  const add = { type: 'nbd', 'node-name': 'A' };
  await bed.execute('block-export-add', { ...add, id: 'a' });
  await bed.execute('block-export-add', {
    ...add,
    id: 'b',
    name: 'disk',
    description: 'of a',
    writable: true,
  });
  await bed.execute('nbd-server-add', { device: 'A', name: 'c', description: 'old', writable: true });
  assert.deepEqual(await flagsOf('A'), [undefined, true, true]);
  assert.deepEqual(await flagsOf('disk'), ['of a', false, true]);
  assert.deepEqual(await flagsOf('c'), ['old', false, true]);
  const listed = (await bed.execute('query-block-exports')) as Array<{ id: string }>;
  assert.deepEqual(
    listed.map(({ id }) => id),
    ['c', 'b', 'a'],
  );
  await bed.execute('nbd-server-stop');
  assert.deepEqual(
    bed.events,
    ['a', 'b', 'c'].map((id) => ({ event: 'BLOCK_EXPORT_DELETED', data: { id } })),
  );
  assert.deepEqual(await bed.execute('query-block-exports'), []);
});

test('an export that cannot be is refused, and leaves nothing', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.engine.addNode({ driver: 'null-co', 'node-name': 'fixed', size: DISK_BYTES, 'read-only': true });
  const path = await serving(bed);
  const again = { addr: { type: 'unix', data: { path: bed.path('other') } } };
  assert.equal(await bed.refusal('nbd-server-start', again), 'NBD server already running');
  const add = { type: 'nbd', id: 'a', 'node-name': 'A' };
  await bed.execute('block-export-add', add);
  const users = bed.engine.graph.backends.size;
  for (const [more, words] of [
    [{ name: 'x' }, "Block export id 'a' is already in use"],
    [{ id: 'b' }, "NBD server already has export named 'A'"],
    [{ id: '1' }, 'Invalid block export id'],
    [{ id: 'f', 'node-name': 'fixed', writable: true }, 'Cannot export read-only node as writable'],
  ] as const)
    assert.equal(await bed.refusal('block-export-add', { ...add, ...more }), words);
  assert.equal(bed.engine.graph.backends.size, users);
  // The older command takes what it can get.
  await bed.execute('nbd-server-add', { device: 'fixed', writable: true });
  const client = await connect(bed, path, 'fixed');
  assert.equal(client.has(TransmissionFlag.readOnly), true);
  await client.close();
});

test('an export with a client is removed only by force, and that is told once', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  const path = await serving(bed);
  await bed.execute('nbd-server-add', { device: 'A' });
  const client = await connect(bed, path, 'A');
  assert.equal(await bed.refusal('nbd-server-remove', { name: 'A' }), "export 'A' still in use");
  assert.equal(await bed.refusal('block-export-del', { id: 'A' }), "export 'A' still in use");
  await client.read(0, Buffer.alloc(512));
  await bed.execute('block-export-del', { id: 'A', mode: 'hard' });
  await assert.rejects(client.read(0, Buffer.alloc(512)), { errno: 'EIO' });
  await client.close();
  assert.deepEqual(bed.events, [{ event: 'BLOCK_EXPORT_DELETED', data: { id: 'A' } }]);
  assert.equal(bed.engine.graph.backends.size, 0);
});

test('a server for one client serves one at a time, and says so', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  const path = await serving(bed, { 'max-connections': 1 });
  await bed.execute('nbd-server-add', { device: 'A' });
  const first = await connect(bed, path, 'A');
  assert.equal(first.has(TransmissionFlag.canMultiConn), false);
  let isServed = false;
  const second = connect(bed, path, 'A').finally(() => (isServed = true));
  await bed.engine.host.clock.sleep(50);
  assert.equal(isServed, false);
  await first.close();
  await (await second).close();
});

test('an export closes the image that nothing else holds when it goes', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await serving(bed);
  await bed.execute('nbd-server-add', { device: 'A', writable: true });
  await bed.snapshot('A', 'B');
  assert.ok(bed.engine.graph.nodes.has('B'));
  await bed.execute('nbd-server-remove', { name: 'A' });
  assert.deepEqual(
    [...bed.engine.graph.nodes.values()]
      .filter((node) => node.driver.name === 'qcow2')
      .map((node) => node.name),
    ['A'],
  );
});

test('what is written to a writethrough export is durable at once', async (t) => {
  for (const writethrough of [false, true]) {
    const bed = new EngineBed(t);
    await bed.engine.addNode({
      ...{ driver: 'blkdebug', 'node-name': 'A', image: { driver: 'null-co', size: DISK_BYTES } },
      'inject-error': [{ event: 'none', iotype: 'flush' }],
    });
    const path = await serving(bed);
    const add = { type: 'nbd', id: 'a', 'node-name': 'A', writable: true, writethrough };
    await bed.execute('block-export-add', add);
    const client = await connect(bed, path, 'A');
    const written = client.write(0, Buffer.alloc(512), 0);
    if (writethrough) await assert.rejects(written, { errno: 'EIO' });
    else await written;
    await client.close();
  }
});
