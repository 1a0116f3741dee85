import { truncateSync, writeFileSync } from 'node:fs';
import type { TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { type Lie, lyingHost } from '../kit/lying-host.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

/** A disk A <-- B of which 5 MiB hold data, and a target T, a raw file of zeroes. */
export async function newLyingBed(t: TestContext, lies: Lie[] = []): Promise<EngineBed> {
  const bed = new EngineBed(t, { host: lyingHost(createRealHost(), lies) });
  await bed.chain('A', 'B');
  writeFileSync(bed.path('T.raw'), '');
  truncateSync(bed.path('T.raw'), DISK_BYTES);
  const file = { driver: 'file', filename: bed.path('T.raw') };
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'T', file });
  return bed;
}
