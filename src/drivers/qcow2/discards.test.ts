import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededBelow } from '../../../test/kit/crash-states.js';
import { createQcow2 } from '../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, RecordedDisk } from '../../../test/kit/recorded-disk.js';
import { Flag } from '../../block/request.js';
import { checkQcow2 } from './check/check.js';
import { qcow2Driver } from './driver.js';

const CLUSTER = 4096;
const CLUSTERS = 48;

for (const extended of [false, true])
  test(`discard-no-unref: what was discarded reads as zeroes and keeps its place${extended ? ', part by part' : ''}`, async () => {
    const clusterBytes = extended ? 16384 : CLUSTER;
    for (let seed = 1; seed <= 6; seed++) {
      const below = seededBelow(seed * 31_337);
      const shelf = new DiskShelf([qcow2Driver]);
      const sizeBytes = CLUSTERS * clusterBytes;
      const options = { 'cluster-size': clusterBytes, 'extended-l2': extended };
      await createQcow2(childOf(shelf.put('image')), { sizeBytes, options });
      const disk = await shelf.open('image', { 'discard-no-unref': true, discard: 'unmap' });
      const model = Buffer.alloc(sizeBytes, 1);
      await disk.backend.write(0, model);
      await disk.backend.flush();
      const places = async (): Promise<string[]> => {
        const found: string[] = [];
        for (let at = 0; at < sizeBytes; at += clusterBytes) {
          const { lengthBytes, hostOffset } = await disk.node.io.status(at, clusterBytes);
          if (lengthBytes === clusterBytes && hostOffset !== undefined) found.push(`${at}: ${hostOffset}`);
        }
        return found;
      };
      const before = await places();
      for (let step = 0; step < 40; step++) {
        const at = below(sizeBytes / 512) * 512;
        const length = Math.min(sizeBytes - at, (1 + below(100)) * 512);
        if (below(2) === 0) {
          await disk.backend.write(at, Buffer.alloc(length, step + 2));
          model.fill(step + 2, at, at + length);
        } else {
          await disk.backend.writeZeroes(at, length, Flag.mayUnmap);
          model.fill(0, at, at + length);
        }
        if (below(4) === 0) await disk.backend.flush();
        assert.ok((await disk.read(0, sizeBytes)).equals(model), `seed ${seed}, step ${step}`);
      }
      await disk.backend.discard(0, sizeBytes);
      assert.ok((await disk.read(0, sizeBytes)).every((byte) => byte === 0));
      await disk.backend.write(0, Buffer.alloc(sizeBytes, 7));
      assert.deepEqual(await places(), before);
      await disk.close();
      const { messages } = await checkQcow2(childOf(new RecordedDisk(shelf.disk('image').contents())));
      assert.deepEqual(messages, [], `seed ${seed}`);
    }
  });
