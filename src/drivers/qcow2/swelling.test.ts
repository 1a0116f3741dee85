import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededBelow } from '../../../test/kit/crash-states.js';
import { createQcow2 } from '../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, RecordedDisk } from '../../../test/kit/recorded-disk.js';
import { Flag } from '../../block/request.js';
import { checkQcow2 } from './check/check.js';
import { qcow2Driver } from './driver.js';

const CLUSTER = 4096;
const SIZE = 2 * 1024 * 1024;
/** What is written and discarded, in sizes of the disk. */
const ROUNDS = 10;
/** Longest request. */
const MOST_CLUSTERS = 32;
/** What a file may take of the size of its disk. */
const MOST_SHARE = 1.1;

for (const extended of [false, true])
  for (const flushes of [1, 20])
    test(`an image stays about as long as its disk, a flush each ${flushes} requests${extended ? ', with parts of clusters' : ''}`, async () => {
      for (let seed = 1; seed <= 2; seed++) {
        const below = seededBelow(seed * 7919 + flushes);
        const shelf = new DiskShelf([qcow2Driver]);
        const clusterBytes = extended ? 4 * CLUSTER : CLUSTER;
        const options = { 'cluster-size': clusterBytes, 'extended-l2': extended };
        await createQcow2(childOf(shelf.put('image')), { sizeBytes: SIZE, options });
        const disk = await shelf.open('image', { discard: 'unmap' });
        let longestBytes = 0;
        for (let done = 0, step = 0; done < ROUNDS * SIZE; step++) {
          const at = below(SIZE / 512) * 512;
          const length = Math.min(SIZE - at, (1 + below((MOST_CLUSTERS * CLUSTER) / 512)) * 512);
          const kind = below(5);
          if (kind < 3) await disk.backend.write(at, Buffer.alloc(length, step));
          else if (kind === 3) await disk.backend.discard(at, length);
          else await disk.backend.writeZeroes(at, length, Flag.mayUnmap);
          if (step % flushes === 0) await disk.backend.flush();
          done += length;
          longestBytes = Math.max(longestBytes, shelf.disk('image').lengthBytes);
        }
        await disk.close();
        const share = longestBytes / SIZE;
        assert.ok(share <= MOST_SHARE, `seed ${seed}: ${share.toFixed(3)} of the disk`);
        const { messages } = await checkQcow2(childOf(new RecordedDisk(shelf.disk('image').contents())));
        assert.deepEqual(messages, [], `seed ${seed}`);
      }
    });
