import assert from 'node:assert/strict';
import test, { type TestContext } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { createRealHost } from '../../src/host/real.js';
import { NbdClient } from '../../src/wire/nbd/client.js';
import { Command, HandshakeFlag, Option, TransmissionFlag } from '../../src/wire/nbd/constants.js';
import { createImage } from '../../src/block/create.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { MiB } from '../../src/base/limits.js';
import { NbdPeer } from '../kit/nbd-peer.js';
import { ScriptedServer } from '../kit/nbd-script.js';
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

test('an export may name a thread, which must be there', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await serving(bed);
  const add = { type: 'nbd', id: 'e', 'node-name': 'A', iothread: 'thread0', 'fixed-iothread': true };
  assert.equal(await bed.refusal('block-export-add', add), 'iothread "thread0" not found');
  await bed.execute('object-add', { 'qom-type': 'iothread', id: 'thread0' });
  await bed.execute('block-export-add', add);
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

/** The node 'stuck', whose server answers no request until `release`. */
async function stuckNode(
  t: TestContext,
  bed: EngineBed,
): Promise<{ asked: Promise<void>; release: () => void }> {
  const path = bed.path('stuck.sock');
  const asked = deferred();
  const entry = {
    sizeBytes: DISK_BYTES,
    flags: TransmissionFlag.hasFlags | TransmissionFlag.sendFlush,
    options: new Set([Option.go]),
    handshakeFlags: HandshakeFlag.fixedNewstyle | HandshakeFlag.noZeroes,
  };
  const released = deferred();
  const listener = await ScriptedServer.listen(createRealHost(), { type: 'unix', path }, async (server) => {
    await server.handshake(entry);
    for (;;) {
      const request = await server.request();
      asked.resolve();
      await released.promise;
      server.simple(request, 0, Buffer.alloc(request.command === Command.read ? request.lengthBytes : 0));
    }
  });
  t.after(() => listener.close());
  await bed.engine.addNode({ driver: 'nbd', 'node-name': 'stuck', server: { type: 'unix', path } });
  return { asked: asked.promise, release: () => released.resolve() };
}

/** A client of the export of that name that waits for what it wants to read. */
async function readStuck(t: TestContext, path: string, name: string): Promise<void> {
  const peer = await NbdPeer.greet(createRealHost(), { type: 'unix', path });
  t.after(() => peer.socket.destroy());
  await peer.go(name);
  peer.request(Command.read, 0, 512);
}

/** The node 'stuck' in an export 'e', a client's request for which is under way. */
async function stuckExport(t: TestContext): Promise<{ bed: EngineBed; release: () => void }> {
  const bed = new EngineBed(t);
  const path = await serving(bed);
  const { asked, release } = await stuckNode(t, bed);
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'stuck' });
  await readStuck(t, path, 'stuck');
  await asked;
  return { bed, release };
}

function deleted(bed: EngineBed, id: string): Promise<void> {
  return new Promise((resolve) => {
    const end = bed.engine.onEvent((event, data) => {
      if (event !== 'BLOCK_EXPORT_DELETED' || data['id'] !== id) return;
      end();
      resolve();
    });
  });
}

const BOUND = { timeout: 20_000 };

test(
  'an export that is deleted by force shuts down while a request of its client is stuck',
  BOUND,
  async (t) => {
    const { bed, release } = await stuckExport(t);
    const gone = deleted(bed, 'e');
    assert.equal(await bed.refusal('block-export-del', { id: 'e' }), "export 'e' still in use");
    await bed.execute('block-export-del', { id: 'e', mode: 'hard' });
    assert.deepEqual(await bed.execute('query-block-exports'), [
      { 'node-name': 'stuck', 'shutting-down': true, type: 'nbd', id: 'e' },
    ]);
    for (const mode of ['safe', 'hard'])
      assert.equal(
        await bed.refusal('block-export-del', { id: 'e', mode }),
        "Export 'e' is already shutting down",
      );
    const again = { type: 'nbd', id: 'e', 'node-name': 'stuck' };
    assert.equal(await bed.refusal('block-export-add', again), "Block export id 'e' is already in use");
    await bed.execute('block-export-add', { ...again, id: 'f' });
    await bed.execute('block-export-del', { id: 'f' });
    assert.equal(await bed.refusal('blockdev-del', { 'node-name': 'stuck' }), 'Node stuck is in use');
    release();
    await gone;
    await bed.execute('blockdev-del', { 'node-name': 'stuck' });
  },
);

test('a server that stops with a stuck request holds up no other monitor', BOUND, async (t) => {
  const { bed, release } = await stuckExport(t);
  const stopped = bed.execute('nbd-server-stop');
  assert.equal(await bed.refusal('nbd-server-stop'), 'NBD server not running');
  release();
  await stopped;
  assert.deepEqual(await bed.execute('query-block-exports'), []);
});

test('a node whose last flush is not answered holds up no other monitor', BOUND, async (t) => {
  const bed = new EngineBed(t);
  const { asked, release } = await stuckNode(t, bed);
  const closed = bed.execute('blockdev-del', { 'node-name': 'stuck' });
  await asked;
  await bed.execute('query-block-exports');
  release();
  await closed;
  assert.deepEqual(await bed.execute('query-named-block-nodes'), []);
});

test(
  'a mirror that is cancelled while a request of the guest is stuck holds up no other monitor',
  BOUND,
  async (t) => {
    const bed = new EngineBed(t);
    await bed.chain('A');
    await bed.image('copy');
    const mirror = { device: 'A', target: 'copy', 'job-id': 'm', sync: 'full' };
    await bed.execute('blockdev-mirror', mirror);
    await bed.event('BLOCK_JOB_READY', 'm');
    const device = bed.engine.devices.get('virtio0');
    assert.ok(device);
    await device.backend.enter();
    const cancelled = bed.execute('block-job-cancel', { device: 'm' });
    await bed.execute('query-block-jobs');
    device.backend.leave();
    await cancelled;
    assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'm'))['error'], undefined);
  },
);

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
    const filename = bed.path('A.qcow2');
    await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
    const image = { driver: 'file', filename };
    const file = { driver: 'blkdebug', image, 'inject-error': [{ event: 'none', iotype: 'flush' }] };
    await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file });
    const path = await serving(bed);
    const add = { type: 'nbd', id: 'a', 'node-name': 'A', writable: true, writethrough };
    await bed.execute('block-export-add', add);
    const client = await connect(bed, path, 'A');
    const written = client.write(0, Buffer.alloc(512), 0);
    if (writethrough) await assert.rejects(written, { errno: 'EIO' });
    else await written;
    await client.close();
    await assert.rejects(bed.engine.close(), { errno: 'EIO' });
  }
});

/** What a client of an export is told of a context, over the whole disk. */
async function contextOf(
  bed: EngineBed,
  path: string,
  exportName: string,
  contextName: string,
): Promise<Array<[lengthBytes: number, state: number]> | undefined> {
  const address = { type: 'unix', path } as const;
  const client = await NbdClient.connect({ host: bed.engine.host, address, exportName, contextName });
  if (client.info.context === undefined) return undefined;
  const extents: Array<[number, number]> = [];
  for (let at = 0; at < DISK_BYTES;) {
    const { lengthBytes, state } = await client.blockStatus(at, DISK_BYTES - at);
    const last = extents.at(-1);
    if (last?.[1] === state) last[0] += lengthBytes;
    else extents.push([lengthBytes, state]);
    at += lengthBytes;
  }
  await client.close();
  return extents;
}

test('an export shows dirty bitmaps and the depth of a chain, and keeps the bitmaps from being changed', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const path = await serving(bed);
  await bed.execute('block-export-add', { type: 'nbd', id: 'plain', 'node-name': 'A', name: 'plain' });
  for (const name of ['on', 'off'])
    await bed.execute('block-dirty-bitmap-add', { node: 'B', name, disabled: name === 'off' });
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'below', disabled: true });
  const add = (id: string, more: JsonObject): JsonObject => ({
    ...{ type: 'nbd', id, 'node-name': 'B', name: id },
    ...more,
  });
  const refusals: Array<[more: JsonObject, text: string]> = [
    [{ bitmaps: ['nope'] }, "Bitmap 'nope' is not found"],
    [{ bitmaps: ['on'] }, "Enabled bitmap 'on' incompatible with readonly export"],
    [{ bitmaps: [{ node: 'nope', name: 'on' }] }, "Node 'nope' not found"],
    [{ bitmaps: [{ node: 'B', name: 'nope' }] }, "Dirty bitmap 'nope' not found"],
    [{ bitmaps: [3] }, "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr"],
  ];
  for (const [more, text] of refusals)
    assert.equal(await bed.refusal('block-export-add', add('e', more)), text);
  const bitmaps = ['off', { node: 'B', name: 'on' }, 'below', { node: 'B', name: 'off' }];
  await bed.execute('block-export-add', add('e', { bitmaps, 'allocation-depth': true }));
  const inUse = "Bitmap 'off' is currently in use by another operation and cannot be used";
  assert.equal(await bed.refusal('block-export-add', add('f', { bitmaps: ['off'] })), inUse);
  // That it is in use is told first.
  assert.equal(
    await bed.refusal('block-export-add', add('f', { bitmaps: ['on'] })),
    inUse.replace('off', 'on'),
  );
  for (const command of ['remove', 'clear', 'enable'])
    assert.equal(await bed.refusal(`block-dirty-bitmap-${command}`, { node: 'B', name: 'off' }), inUse);
  const device = bed.engine.devices.get('virtio0');
  await device?.backend.write(65536, Buffer.alloc(65536, 1));
  const rest = DISK_BYTES - 131072;
  const dirty = [
    [65536, 0],
    [65536, 1],
    [rest, 0],
  ];
  assert.deepEqual(await contextOf(bed, path, 'e', 'qemu:dirty-bitmap:on'), dirty);
  assert.deepEqual(await contextOf(bed, path, 'e', 'qemu:allocation-depth'), [
    [65536, 2],
    [65536, 1],
    [MiB - 131072, 2],
    [MiB, 1],
    [2 * MiB, 2],
    [DISK_BYTES - 4 * MiB, 0],
  ]);
  assert.deepEqual(await contextOf(bed, path, 'e', 'qemu:dirty-bitmap:off'), [[DISK_BYTES, 0]]);
  assert.equal(await contextOf(bed, path, 'plain', 'qemu:allocation-depth'), undefined);
  await bed.execute('block-export-del', { id: 'e' });
  await bed.execute('block-dirty-bitmap-remove', { node: 'B', name: 'off' });
  assert.equal(
    await bed.refusal('nbd-server-add', { device: 'B', name: 'g', bitmap: 'on' }),
    "Enabled bitmap 'on' incompatible with readonly export",
  );
});

test('a write of a client that is gone is done before newer ones, by every way to its disk', async (t) => {
  const bed = new EngineBed(t);
  const filename = bed.path('A.qcow2');
  await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
  const image = { driver: 'file', filename };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file: { driver: 'blkdebug', image } });
  const endpoint = bed.path('guest.sock');
  await bed.engine.addDevice('A', {
    id: 'virtio0',
    shareRw: true,
    endpoint: { type: 'unix', path: endpoint },
  });
  await bed.guest('write 0 1M');
  const path = await serving(bed);
  for (const id of ['one', 'two'])
    await bed.execute('block-export-add', { type: 'nbd', id, 'node-name': 'A', name: id, writable: true });
  const ways: ReadonlyArray<[socket: string, name: string]> = [
    [path, 'one'],
    [path, 'two'],
    [endpoint, 'virtio0'],
  ];
  const connected = async ([socket, name]: readonly [string, string]): Promise<NbdPeer> => {
    const peer = await NbdPeer.greet(bed.engine.host, { type: 'unix', path: socket });
    t.after(() => peer.socket.destroy());
    await peer.go(name);
    return peer;
  };
  const qemuIo = (command: string): Promise<JsonValue> =>
    bed.execute('human-monitor-command', { 'command-line': `qemu-io -d virtio0 "${command}"` });
  for (const [i, oldWay] of ways.entries())
    for (const [j, newWay] of ways.entries()) {
      const value = 16 * i + j + 1;
      await qemuIo('break write_aio held');
      const old = await connected(oldWay);
      old.request(Command.write, 4096, 8192, { payload: Buffer.alloc(8192, 0xee) });
      await qemuIo('wait_break held');
      await old.socket.shutDown();
      const newer = await connected(newWay);
      newer.request(Command.write, 8192, 8192, { payload: Buffer.alloc(8192, value) });
      // Answered, since it does not overlap: by then the other one would have been, too.
      const aside = await newer.ask(Command.write, 65536, 512, {
        cookie: 2,
        payload: Buffer.alloc(512, value),
      });
      await qemuIo('resume held');
      assert.equal(aside.cookieLow, 2, 'the newer write did not wait');
      assert.equal((await newer.reply()).failure, 0);
      const { payload } = await newer.ask(Command.read, 4096, 12288);
      const data = payload.subarray(payload.length - 12288);
      assert.ok(data.subarray(0, 4096).every((byte) => byte === 0xee));
      assert.ok(
        data.subarray(4096).every((byte) => byte === value),
        'the old write came last',
      );
    }
});
