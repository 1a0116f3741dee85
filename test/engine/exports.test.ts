import assert from 'node:assert/strict';
import test, { type TestContext } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { createRealHost } from '../../src/host/real.js';
import { Command, HandshakeFlag, Option, TransmissionFlag } from '../../src/nbd/constants.js';
import { NbdPeer } from '../../src/testing/nbd-peer.js';
import { ScriptedServer } from '../../src/testing/nbd-script.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

async function serving(bed: EngineBed): Promise<string> {
  const path = bed.path('nbd.sock');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  return path;
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

/** The node 'stuck', whose server answers no request until `release`. */
async function stuckNode(
  t: TestContext,
  bed: EngineBed,
): Promise<{ asked: Promise<void>; release: () => void }> {
  const path = bed.path('stuck.sock');
  const asked = deferred();
  const entry = {
    sizeBytes: DISK_BYTES,
    flags: TransmissionFlag.hasFlags + TransmissionFlag.sendFlush,
    options: new Set([Option.go]),
    handshakeFlags: HandshakeFlag.fixedNewstyle + HandshakeFlag.noZeroes,
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
    const bed = new EngineBed(t);
    const path = await serving(bed);
    const { asked, release } = await stuckNode(t, bed);
    await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'stuck' });
    await readStuck(t, path, 'stuck');
    await asked;
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
  const bed = new EngineBed(t);
  const path = await serving(bed);
  const { asked, release } = await stuckNode(t, bed);
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'stuck' });
  await readStuck(t, path, 'stuck');
  await asked;
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
