import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { JsonObject } from '../../src/schema/types.js';
import { EngineBed } from '../engine/engine-bed.js';
import { DISK_BYTES, runLoad } from './load.js';

/** A sample of `npm run proof load`. */

test('snapshots, reopens and bitmaps in a row lose and tear nothing of what 32 writers write', async (t) => {
  const bed = new EngineBed(t, { kind: 'storage-daemon' });
  const nbd = { type: 'unix', path: bed.path('nbd') } as const;
  for (const name of ['disk0.0', 'disk1.0']) {
    const filename = bed.path(name);
    await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
    await bed.engine.addNode({ driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename } });
  }
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: nbd.path } } });
  const server = {
    ...{ host: bed.engine.host, folder: bed.folder, nbd },
    execute: (command: string, args: JsonObject) => bed.execute(command, args),
    ended: async (jobId: string) => {
      const { error } = await bed.event('BLOCK_JOB_COMPLETED', jobId);
      bed.events.length = 0;
      assert.equal(error, undefined);
    },
  };
  const { stalls, writes, layersSeen } = await runLoad(server, 32, (bound) => randomInt(bound));
  assert.ok(writes > 32 * 32);
  assert.ok(layersSeen > 25, 'a commit has taken place');
  assert.equal(stalls.get('snapshots of two disks')?.length, 32);
});
