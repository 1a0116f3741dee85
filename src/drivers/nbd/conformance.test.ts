import { after } from 'node:test';
import { protocolConformance } from '../../../test/kit/conformance.js';
import { NbdExports } from '../../../test/kit/nbd-exports.js';
import type { TestBed } from '../../../test/kit/test-disk.js';
import { nbdDriver } from './index.js';

const servers = new Map<TestBed, NbdExports>();
let exports = 0;

after(async () => {
  for (const server of servers.values()) await server.close();
});

protocolConformance({
  name: 'nbd',
  drivers: [nbdDriver],
  shape: { sizeBytes: 5 * 4096 + 512, unitBytes: 4096 },
  canGrow: false,
  async create(bed, sizeBytes) {
    const server = servers.get(bed) ?? new NbdExports(bed);
    servers.set(bed, server);
    const name = `disk${exports++}`;
    await server.add(name, sizeBytes);
    return { driver: 'nbd', server: { type: 'unix', path: server.socketPath }, export: name };
  },
});
