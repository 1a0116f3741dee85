import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { NodeOptions } from '../../../block/driver.js';
import { Flag } from '../../../block/request.js';
import { seededBelow } from '../../../../test/kit/crash-states.js';
import { addKept } from '../../../../test/kit/kept-bitmaps.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { checkQcow2 } from '../check/check.js';
import { FieldOffset } from '../disk/header.js';
import { qcow2Driver } from '../driver.js';

const SECTOR = 512;
const CLUSTER = 16384;

interface Subject {
  options: NodeOptions;
  hasDataFile?: boolean;
  withBase?: boolean;
}

const SUBJECTS: Record<string, Subject> = {
  subclusters: { options: { 'extended-l2': true, 'cluster-size': CLUSTER } },
  'subclusters over a backing file': {
    options: { 'extended-l2': true, 'cluster-size': CLUSTER },
    withBase: true,
  },
  'subclusters of 2 KiB, all with a place': {
    options: { 'extended-l2': true, 'cluster-size': 65536, preallocation: 'metadata' },
    withBase: true,
  },
  'all clusters with a place': { options: { 'cluster-size': 4096, preallocation: 'falloc' } },
  'a data file': { options: { 'cluster-size': 512 }, hasDataFile: true, withBase: true },
  'a raw data file': { options: { 'cluster-size': 512, 'data-file-raw': true }, hasDataFile: true },
  'subclusters in a data file': {
    options: { 'extended-l2': true, 'cluster-size': CLUSTER },
    hasDataFile: true,
    withBase: true,
  },
};

async function makeShelf(sizeBytes: number, { options, hasDataFile, withBase }: Subject): Promise<DiskShelf> {
  const shelf = new DiskShelf([qcow2Driver]);
  if (withBase) {
    await createQcow2(childOf(shelf.put('base')), { sizeBytes: sizeBytes - 40 * SECTOR });
    const base = await shelf.open('base');
    await base.backend.write(0, Buffer.alloc(sizeBytes - 40 * SECTOR, 0xbb));
    await base.close();
  }
  const dataFile = hasDataFile && { dataFile: { io: childOf(shelf.put('data')), filename: 'data' } };
  await createQcow2(childOf(shelf.put('image')), {
    sizeBytes,
    options: { ...options, ...(hasDataFile && { 'data-file': 'data' }) },
    ...(withBase && { backingFile: 'base', backingFormat: 'qcow2' }),
    ...dataFile,
  });
  return shelf;
}

async function problems(shelf: DiskShelf): Promise<string[]> {
  return (await checkQcow2(childOf(new RecordedDisk(shelf.disk('image').contents())))).messages;
}

/** Of its own layer. */
async function hasData(disk: OpenDisk, from: number, lengthBytes: number): Promise<boolean> {
  for (let at = from; at < from + lengthBytes;) {
    const status = await disk.node.io.status(at, from + lengthBytes - at);
    if (status.data) return true;
    at += status.lengthBytes;
  }
  return false;
}

async function removeBitmaps({ node }: OpenDisk): Promise<void> {
  for (const { name = '' } of node.dirtyBitmaps.splice(0)) await node.instance.bitmaps?.remove(name);
}

async function history(subject: Subject, seed: number): Promise<void> {
  const below = seededBelow(seed * 7_368_787);
  const sizeBytes = (200 + below(300)) * SECTOR;
  const shelf = await makeShelf(sizeBytes, subject);
  let model = Buffer.alloc(sizeBytes);
  if (subject.withBase) model.fill(0xbb, 0, sizeBytes - 40 * SECTOR);
  let disk = await shelf.open('image');
  const snapshots = new Map<string, Buffer>();
  const idOf = (name: string): string =>
    disk.node.instance.snapshots?.list.find((one) => one.name === name)?.id ?? '';
  for (let i = 0; i < 60; i++) {
    const at = below(model.length / SECTOR) * SECTOR;
    const length = Math.min(model.length - at, (1 + below(60)) * SECTOR);
    switch (below(10)) {
      case 0:
        await disk.backend.writeZeroes(at, length, below(2) === 0 ? Flag.mayUnmap : Flag.none);
        model.fill(0, at, at + length);
        break;
      case 1:
        await disk.backend.discard(at, length);
        (await disk.read(0, model.length)).copy(model);
        break;
      case 2: {
        if (subject.hasDataFile || below(2) === 0) break;
        const { clusterBytes } = disk.node.instance.map ?? { clusterBytes: 1 };
        const start = at - (at % clusterBytes);
        if (start + clusterBytes > model.length) break;
        if (below(2) === 0) await disk.backend.discard(start, clusterBytes);
        const bytes = Buffer.alloc(clusterBytes, `compressible ${i}`);
        const isRefused = await hasData(disk, start, clusterBytes);
        const written = disk.backend.write(start, bytes, Flag.compressed);
        if (isRefused) await assert.rejects(written, { errno: 'EIO' });
        else {
          await written;
          bytes.copy(model, start);
        }
        break;
      }
      case 3:
        if (below(3) === 0) {
          // What bitmaps took before, or the one that goes now, becomes free in the image's own file.
          if (disk.node.dirtyBitmaps.length > 0) await removeBitmaps(disk);
          else if (snapshots.size === 0) addKept(disk.node, `b${i}`).setAll();
          await disk.close();
          disk = await shelf.open('image');
        } else await disk.backend.flush();
        break;
      case 4:
        if (subject.hasDataFile || below(2) === 0) break;
        if (snapshots.size > 0 && below(2) === 0) {
          const [name = ''] = snapshots.keys();
          if (below(2) === 0) {
            await disk.node.instance.snapshots?.goTo(idOf(name));
            disk.node.resized();
            model = Buffer.from(snapshots.get(name) ?? model);
          } else {
            await disk.node.instance.snapshots?.delete(idOf(name));
            snapshots.delete(name);
          }
          break;
        }
        await disk.node.instance.snapshots?.take({
          ...{ name: `s${i}`, dateSec: 0, dateNsec: 0, clockNs: 0n, icount: -1n },
        });
        snapshots.set(`s${i}`, Buffer.from(model));
        break;
      case 5:
        if (below(3) > 0) break;
        {
          const size = (100 + below(500)) * SECTOR;
          await removeBitmaps(disk);
          await disk.backend.truncate(size);
          model = size < model.length ? model.subarray(0, size) : Buffer.concat([model], size);
        }
        break;
      default:
        await disk.backend.write(at, Buffer.alloc(length, i + 1));
        model.fill(i + 1, at, at + length);
    }
    assert.equal(disk.node.lengthBytes, model.length, `seed ${seed}, step ${i}`);
    assert.ok((await disk.read(0, model.length)).equals(model), `seed ${seed}, step ${i}`);
  }
  for (const [name, content] of snapshots) {
    await disk.node.instance.snapshots?.goTo(idOf(name));
    disk.node.resized();
    assert.ok((await disk.read(0, content.length)).equals(content), `seed ${seed}, ${name}`);
    model = Buffer.from(content);
  }
  await disk.close();
  assert.deepEqual(await problems(shelf), [], `seed ${seed}`);
  if (subject.options['data-file-raw'] === true)
    assert.ok(shelf.disk('data').contents().equals(model), `seed ${seed}: the data file is the disk`);
}

for (const [name, subject] of Object.entries(SUBJECTS))
  test(`${name}: any history shows what was written, and leaves a sound image`, async () => {
    for (let seed = 1; seed <= 6; seed++) await history(subject, seed);
  });

test('a write takes as many subclusters as it needs, and zeroes and discards leave the others', async () => {
  const shelf = await makeShelf(8 * CLUSTER, { options: { 'extended-l2': true, 'cluster-size': CLUSTER } });
  const disk: OpenDisk = await shelf.open('image');
  const { map } = disk.node.instance;
  assert.deepEqual([map?.clusterBytes, map?.unitBytes], [CLUSTER, SECTOR]);
  await disk.backend.write(3 * SECTOR + 5, Buffer.alloc(SECTOR, 1));
  const kinds = async (): Promise<string[]> => {
    const found: string[] = [];
    for (let at = 0; at < 8 * SECTOR;) {
      const { lengthBytes, allocated, zero } = await disk.backend.status(at, 8 * SECTOR - at);
      found.push(`${lengthBytes / SECTOR} ${allocated ? (zero ? 'zero' : 'data') : 'none'}`);
      at += lengthBytes;
    }
    return found;
  };
  assert.deepEqual(await kinds(), ['3 none', '2 data', '3 none']);
  await disk.backend.writeZeroes(4 * SECTOR, 2 * SECTOR, Flag.none);
  assert.deepEqual(await kinds(), ['3 none', '1 data', '2 zero', '2 none']);
  await disk.backend.discard(3 * SECTOR, SECTOR);
  assert.deepEqual(await kinds(), ['3 none', '3 zero', '2 none']);
  await disk.close();
  assert.deepEqual(await problems(shelf), []);
});

test('data that is there is overwritten by the first change of an image, which says something of itself first', async () => {
  const shelf = await makeShelf(8 * CLUSTER, { options: { 'extended-l2': true, 'cluster-size': CLUSTER } });
  const made = await shelf.open('image');
  await made.backend.write(0, Buffer.alloc(3 * CLUSTER, 1));
  await made.close();
  const bytes = shelf.disk('image').contents();
  // A feature of somebody else's, which no change may outlive.
  bytes.writeBigUInt64BE(32n, FieldOffset.autoclear);
  shelf.put('image', bytes);
  const disk = await shelf.open('image');
  const first = CLUSTER - 3 * SECTOR + 7;
  await disk.backend.write(first, Buffer.alloc(9 * SECTOR, 2));
  const content = Buffer.alloc(8 * CLUSTER);
  await disk.backend.read(0, content);
  assert.deepEqual([...new Set(content.subarray(first, first + 9 * SECTOR))], [2]);
  assert.deepEqual([content[first - 1], content[first + 9 * SECTOR]], [1, 1]);
  await disk.close();
  assert.deepEqual(await problems(shelf), []);
});

test('a data file is a plain file, and only images that have one take one', async () => {
  const named = await makeShelf(256 * SECTOR, { options: {}, hasDataFile: true });
  for (const strange of ['json:{"driver":"file"}', 'nbd://host/x']) {
    const bytes = named.disk('image').contents();
    const at = bytes.indexOf('data', 112);
    assert.equal(bytes.readUInt32BE(at - 8), 0x44415441);
    const shelf = new DiskShelf([qcow2Driver]);
    const extension = Buffer.alloc(8 + Math.ceil(strange.length / 8) * 8 + 8);
    extension.writeUInt32BE(0x44415441, 0);
    extension.writeUInt32BE(strange.length, 4);
    extension.write(strange, 8, 'latin1');
    extension.copy(bytes, 112);
    shelf.put('image', bytes);
    await assert.rejects(shelf.open('image'), /as its data file: that must be a plain file/);
  }
  const file = { driver: 'file', filename: 'data' };
  const given = await named.open('image', { 'data-file': file });
  await given.backend.write(0, Buffer.alloc(SECTOR, 5));
  await given.backend.discard(0, 65536);
  await given.backend.write(65536, Buffer.alloc(SECTOR, 5));
  await assert.rejects(given.backend.write(0, Buffer.alloc(65536), Flag.compressed), { errno: 'ENOTSUP' });
  await assert.rejects(
    async () =>
      given.node.instance.snapshots?.take({ name: 's', dateSec: 0, dateNsec: 0, clockNs: 0n, icount: -1n }),
    { errno: 'ENOTSUP' },
  );
  await given.close();
  assert.ok(
    named
      .disk('data')
      .contents()
      .subarray(65536, 65536 + SECTOR)
      .equals(Buffer.alloc(SECTOR, 5)),
  );
  await createQcow2(childOf(named.put('plain')), { sizeBytes: 64 * SECTOR });
  await assert.rejects(
    named.open('plain', { 'data-file': file }),
    /'data-file' can only be set for images with an external data file/,
  );
});

test('a new image does not say that it reads as zeroes where its data file shows what it had', async () => {
  const says = async (subject: Subject): Promise<boolean | undefined> => {
    const disk = await (await makeShelf(16 * CLUSTER, subject)).open('image');
    const { readsZeroWhenNew } = disk.instance;
    await disk.close();
    return readsZeroWhenNew;
  };
  const options: NodeOptions = { 'cluster-size': CLUSTER, preallocation: 'metadata' };
  assert.equal(await says({ options }), true);
  assert.equal(await says({ options: { ...options, 'data-file-raw': true }, hasDataFile: true }), false);
});
