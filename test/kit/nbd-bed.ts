import assert from 'node:assert/strict';
import { KiB } from '../../src/base/limits.js';
import type { Host, SocketAddress } from '../../src/host/host.js';
import { createSimulatedHost } from '../../src/host/simulated.js';
import { NbdServer, type NbdServerOptions } from '../../src/wire/nbd/server.js';
import { MemoryTarget } from './nbd-target.js';

export const ADDRESS: SocketAddress = { type: 'unix', path: '/tmp/nbd' };
export const SIZE = 256 * KiB;

export interface Bed {
  host: Host;
  server: NbdServer;
  target: MemoryTarget;
  simulation: ReturnType<typeof createSimulatedHost>;
}

/** A server with the exports 'disk' and 'ro' of one target, on a machine that exists only in memory. */
export function onServer(
  body: (bed: Bed) => Promise<void>,
  options: NbdServerOptions = {},
): () => Promise<void> {
  return async () => {
    const simulation = createSimulatedHost({ seed: 1 });
    const { host } = simulation;
    await simulation.run(async () => {
      const server = await NbdServer.listen(host, ADDRESS, options);
      const target = new MemoryTarget(SIZE);
      server.addExport({ name: 'disk', target, readOnly: false, multiConn: true, description: 'a disk' });
      server.addExport({ name: 'ro', target, readOnly: true, multiConn: false });
      await body({ host, server, target, simulation });
      await server.close();
      assert.equal(server.connectionCount, 0);
    });
  };
}
