import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isDrawn } from '../../../../test/kit/amount.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { errnoError } from '../../../base/error.js';
import { checkQcow2 } from '../check/check.js';
import { FieldOffset } from '../disk/header.js';
import { qcow2Driver } from '../driver.js';

const CLUSTER = 512;
const SIZE = 200 * CLUSTER;

/** A snapshot, and data that it does not have, on a larger disk. */
async function image(): Promise<Buffer> {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: SIZE, options: { 'cluster-size': CLUSTER } });
  const disk = await shelf.open('image');
  await disk.backend.write(0, Buffer.alloc(20 * CLUSTER, 1));
  await take(disk, 'first');
  await disk.backend.truncate(2 * SIZE);
  await disk.backend.write(10 * CLUSTER, Buffer.alloc(20 * CLUSTER, 2));
  await disk.close();
  return shelf.disk('image').contents();
}

const take = (disk: OpenDisk, name: string): Promise<unknown> | undefined =>
  disk.instance.snapshots?.take({ name, dateSec: 1, dateNsec: 2, clockNs: 3n, icount: -1n });

/** What the header says: what a change that failed leaves as it was. */
function saidBy(content: Buffer): object {
  return {
    version: content.readUInt32BE(4),
    backing: content.readUInt32BE(FieldOffset.backingSize),
    size: content.readBigUInt64BE(FieldOffset.size),
    snapshots: content.readUInt32BE(FieldOffset.snapshotCount),
    incompatible: content.readBigUInt64BE(FieldOffset.incompatible),
    compatible: content.readBigUInt64BE(FieldOffset.compatible),
  };
}

const snapshotCount = (content: Buffer): number => content.readUInt32BE(FieldOffset.snapshotCount);

type Change = (disk: OpenDisk) => Promise<unknown> | undefined;

/** Changes of the header, and whether one that failed may be found done: what comes behind it fails then. */
const CHANGES: Readonly<Record<string, { change: Change; mayBeDone?: true }>> = {
  'a larger disk': { change: (disk) => disk.backend.truncate(20 * SIZE) },
  'a smaller disk': { change: (disk) => disk.backend.truncate(CLUSTER), mayBeDone: true },
  'a snapshot': { change: (disk) => take(disk, 'second'), mayBeDone: true },
  'a snapshot less': { change: (disk) => disk.instance.snapshots?.delete('1'), mayBeDone: true },
  'back to a snapshot': { change: (disk) => disk.instance.snapshots?.goTo('1'), mayBeDone: true },
  'another backing file': { change: (disk) => disk.instance.changeBacking?.('other', 'raw') },
  'lazy refcounts': { change: (disk) => disk.instance.amend?.({ lazyRefcounts: true }) },
  'wider refcounts': { change: (disk) => disk.instance.amend?.({ refcountBits: 32 }) },
};

for (const [what, { change, mayBeDone = false }] of Object.entries(CHANGES))
  test(`${what}: where it fails at any write or flush, the header says what it said, and goes on saying it`, async () => {
    const before = await image();
    for (let failing = 0, isDone = false; !isDone; failing++) {
      const shelf = new DiskShelf([qcow2Driver]);
      const file = shelf.put('image', before);
      const disk = await shelf.open('image', { backing: null });
      let events = 0;
      file.failure = () => (events++ === failing ? errnoError('EIO') : undefined);
      isDone = await Promise.resolve(change(disk)).then(
        () => true,
        () => false,
      );
      isDone &&= events <= failing;
      file.failure = () => undefined;
      if (!isDone && !isDrawn()) continue;
      // Others write the header after it.
      const { lengthBytes } = disk.node;
      await disk.backend.write(0, Buffer.alloc(CLUSTER, 7));
      await disk.backend.flush();
      await disk.close();
      const where = `${what}, event ${failing}`;
      const content = file.contents();
      const { messages } = await checkQcow2(childOf(new RecordedDisk(content)));
      const isFoundDone = mayBeDone && (snapshotCount(content) !== 1 || lengthBytes !== 2 * SIZE);
      if (!isDone && !isFoundDone) assert.deepEqual(saidBy(content), saidBy(before), where);
      assert.equal(Number(content.readBigUInt64BE(FieldOffset.size)), lengthBytes, where);
      if (content.readBigUInt64BE(FieldOffset.incompatible) === 0n) assert.deepEqual(messages, [], where);
      const again = new DiskShelf([qcow2Driver]);
      again.put('image', content);
      const reader = await again.open('image', { backing: null });
      assert.deepEqual(await reader.read(0, CLUSTER), Buffer.alloc(CLUSTER, 7), where);
      await reader.close();
      const { messages: left } = await checkQcow2(childOf(again.disk('image')));
      assert.deepEqual(left, [], where);
    }
  });
