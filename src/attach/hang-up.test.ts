import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createSimulatedHost } from '../host/simulated.js';
import { allDrivers } from '../drivers/index.js';
import { CommandFlag, Command } from '../wire/nbd/constants.js';
import { NbdServer } from '../wire/nbd/server.js';
import { NbdPeer } from '../../test/kit/nbd-peer.js';
import { TestBed, type TestDisk } from '../../test/kit/test-disk.js';
import { writeBuffer } from '../host/whole-buffers.js';

const ADDRESS = { type: 'unix', path: '/tmp/nbd' } as const;
const SIZE = 64 * 1024;

interface Parts {
  bed: TestBed;
  disk: TestDisk;
  server: NbdServer;
  peer: NbdPeer;
  /** Requests of each kind, of which none can begin now; then the client hangs up, and they are gone. */
  readonly askAndHangUp: () => Promise<void>;
}

function withClient(body: (parts: Parts) => Promise<void>): Promise<void> {
  const simulation = createSimulatedHost({ seed: 5, refuseProbability: 0 });
  const { host } = simulation;
  return simulation.run(async () => {
    const file = await host.files.open('/tmp/image', { write: true, create: true });
    await writeBuffer(file, 0, Buffer.alloc(SIZE, 1));
    await file.close();
    const bed = new TestBed(host, allDrivers, '/tmp');
    const disk = await bed.open({ driver: 'raw', file: { driver: 'file', filename: '/tmp/image' } });
    const server = await NbdServer.listen(host, ADDRESS);
    server.addExport({ name: 'disk', target: disk.backend, readOnly: false, multiConn: true });
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('disk');
    const askAndHangUp = async (): Promise<void> => {
      peer.request(Command.write, 0, 4096, { cookie: 1, payload: Buffer.alloc(4096, 2) });
      peer.request(Command.write, 4096, 512, {
        cookie: 2,
        payload: Buffer.alloc(512, 3),
        flags: CommandFlag.fua,
      });
      peer.request(Command.read, 8192, 4096, { cookie: 3 });
      peer.request(Command.writeZeroes, 16384, 8192, { cookie: 4 });
      peer.request(Command.trim, 32768, 8192, { cookie: 5 });
      while (server.inFlightOf('disk') < 5) await host.clock.sleep(1);
      await host.clock.sleep(50);
      assert.equal(server.inFlightOf('disk'), 5);
      peer.socket.destroy();
      while (server.connectionsOf('disk') > 0) await host.clock.sleep(1);
      await host.clock.sleep(5);
      assert.ok(!disk.backend.hasRequests, 'what waited for its turn is over when its client is gone');
    };
    await body({ bed, disk, server, peer, askAndHangUp });
    await disk.backend.untilUnused();
    assert.deepEqual(await disk.readAll(), Buffer.alloc(SIZE, 1));
    await server.close();
    await disk.close();
  });
}

test('a client that hangs up takes back what a drained section holds', () =>
  withClient(({ bed, disk, askAndHangUp }) => bed.graph.drained([disk.node], () => askAndHangUp())));

test('a client that hangs up takes back what waits for a range that another has', () =>
  withClient(async ({ disk, askAndHangUp }) => {
    const release = await disk.node.io.ranges.lockExclusive(0, SIZE);
    await askAndHangUp();
    assert.ok(!disk.node.io.ranges.isIdle);
    release();
    assert.ok(disk.node.io.ranges.isIdle);
  }));
