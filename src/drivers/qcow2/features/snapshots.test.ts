import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errnoError } from '../../../base/error.js';
import type { InternalSnapshots, NewSnapshot, NodeOptions } from '../../../block/driver.js';
import { goToSnapshot, showSnapshot } from '../../../block/internal-snapshots.js';
import { Flag } from '../../../block/request.js';
import { seededBelow } from '../../../../test/kit/crash-states.js';
import { HandmadeQcow2 } from '../../../../test/kit/handmade-qcow2.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { checkQcow2 } from '../check/check.js';
import { qcow2Driver } from '../driver.js';
import { FieldOffset } from '../disk/header.js';

const SECTOR = 512;

function named(name: string, vmState?: Uint8Array): NewSnapshot {
  return { name, dateSec: 5, dateNsec: 6, clockNs: 7n, icount: -1n, ...(vmState && { vmState }) };
}

function snapshotsOf(disk: OpenDisk): InternalSnapshots {
  const { snapshots } = disk.node.instance;
  assert.ok(snapshots);
  return snapshots;
}

function idOf(disk: OpenDisk, name: string): string {
  const found = snapshotsOf(disk).list.find((one) => one.name === name);
  assert.ok(found, `snapshot ${name}`);
  return found.id;
}

async function problems(file: RecordedDisk | Buffer): Promise<string[]> {
  const disk = file instanceof RecordedDisk ? new RecordedDisk(file.contents()) : new RecordedDisk(file);
  return (await checkQcow2(childOf(disk))).messages;
}

async function newDisk(
  sizeBytes: number,
  options: NodeOptions,
  open: NodeOptions = {},
): Promise<{ shelf: DiskShelf; file: RecordedDisk; disk: OpenDisk }> {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes, options });
  const file = shelf.put('image', shelf.disk('image').contents());
  return { shelf, file, disk: await shelf.open('image', open) };
}

/** What a snapshot shows. */
async function shown(file: RecordedDisk, name: string): Promise<Buffer> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', file.contents());
  const disk = await shelf.open('image', { readOnly: true });
  await showSnapshot(disk.node, { name });
  const content = await disk.read(0, disk.node.lengthBytes);
  await disk.close();
  return content;
}

for (const create of [
  { 'cluster-size': 512 },
  { 'cluster-size': 4096, version: 'v2' },
  { 'cluster-size': 1024, 'refcount-bits': 8 },
  { 'cluster-size': 65536, 'refcount-bits': 64 },
] as NodeOptions[])
  test(`snapshots are taken, shown, gone back to and deleted: ${JSON.stringify(create)}`, async () => {
    const { file, disk } = await newDisk(200 * SECTOR, create);
    const snapshots = snapshotsOf(disk);
    const states = new Map<string, Buffer>();
    const write = (at: number, sectors: number, fill: number): Promise<void> =>
      disk.backend.write(at * SECTOR, Buffer.alloc(sectors * SECTOR, fill));
    const take = async (name: string): Promise<void> => {
      await snapshots.take(named(name));
      states.set(name, await disk.read(0, disk.node.lengthBytes));
      assert.deepEqual(await problems(file), [], `after ${name}`);
    };
    await take('empty');
    await write(3, 20, 1);
    await take('first');
    await write(10, 5, 2);
    await disk.backend.discard(0, 8 * SECTOR);
    await write(150, 50, 3);
    await take('second');
    await disk.backend.write(160 * SECTOR, Buffer.alloc(SECTOR, 4));
    assert.deepEqual(
      snapshots.list.map(({ id, name }) => [id, name]),
      [
        ['1', 'empty'],
        ['2', 'first'],
        ['3', 'second'],
      ],
    );
    for (const name of ['first', 'empty', 'second', 'first']) {
      await goToSnapshot(disk.node, idOf(disk, name));
      assert.ok((await disk.read(0, 200 * SECTOR)).equals(states.get(name) ?? Buffer.alloc(0)), name);
      assert.deepEqual(await problems(file), [], `gone back to ${name}`);
      await write(12, 30, 9);
      await disk.backend.flush();
    }
    for (const [name, content] of states) assert.ok((await shown(file, name)).equals(content), name);
    const now = await disk.read(0, 200 * SECTOR);
    for (const name of ['first', 'second', 'empty']) {
      await snapshots.delete(idOf(disk, name));
      assert.deepEqual(await problems(file), [], `${name} deleted`);
      assert.ok((await disk.read(0, 200 * SECTOR)).equals(now));
    }
    assert.deepEqual(snapshots.list, []);
    await disk.close();
    assert.deepEqual(await problems(file), []);
  });

test('any history of a disk and its snapshots: each keeps its content and size, and the image is sound', async () => {
  for (let seed = 1; seed <= 12; seed++) await randomHistory(seed);
});

async function randomHistory(seed: number): Promise<void> {
  const below = seededBelow(seed * 104_729);
  const clusterBytes = [512, 1024, 4096][below(3)] ?? 512;
  const { file, disk } = await newDisk(
    (100 + below(200)) * SECTOR,
    { 'cluster-size': clusterBytes, 'refcount-bits': [8, 16, 32][below(3)] ?? 16 },
    { 'l2-cache-size': 1024, 'refcount-cache-size': 1024 },
  );
  const snapshots = snapshotsOf(disk);
  let model = Buffer.alloc(disk.node.lengthBytes);
  const states = new Map<string, Buffer>();
  const any = (): string => [...states.keys()][below(states.size)] ?? '';
  for (let i = 0; i < 40; i++) {
    const at = below(model.length / SECTOR) * SECTOR;
    const length = Math.min(model.length - at, (1 + below(24)) * SECTOR);
    switch (below(10)) {
      case 0: {
        const name = `s${i}`;
        await snapshots.take(named(name, below(2) === 0 ? Buffer.alloc(1 + below(9000), i) : undefined));
        states.set(name, Buffer.from(model));
        break;
      }
      case 1:
        if (states.size === 0) break;
        {
          const name = any();
          await goToSnapshot(disk.node, idOf(disk, name));
          model = Buffer.from(states.get(name) ?? model);
        }
        break;
      case 2:
        if (states.size === 0) break;
        {
          const name = any();
          await snapshots.delete(idOf(disk, name));
          states.delete(name);
        }
        break;
      case 3:
        await disk.backend.discard(at, length);
        if (below(2) === 0) await disk.backend.flush();
        // What is not a whole cluster may stay.
        (await disk.read(0, model.length)).copy(model);
        break;
      case 4:
        await disk.backend.writeZeroes(at, length, below(2) === 0 ? Flag.mayUnmap : Flag.none);
        model.fill(0, at, at + length);
        break;
      case 5:
        if (below(3) > 0) break;
        model =
          below(2) === 0
            ? Buffer.concat([model], model.length + below(50) * SECTOR)
            : model.subarray(0, Math.max(20, model.length / SECTOR - below(60)) * SECTOR);
        await disk.backend.truncate(model.length);
        break;
      default:
        await disk.backend.write(at, Buffer.alloc(length, i + 1));
        model.fill(i + 1, at, at + length);
    }
    const where = `seed ${seed}, step ${i}`;
    assert.equal(disk.node.lengthBytes, model.length, where);
    assert.ok((await disk.read(0, model.length)).equals(model), where);
  }
  await disk.close();
  assert.deepEqual(await problems(file), [], `seed ${seed}`);
  for (const [name, content] of states)
    assert.ok((await shown(file, name)).equals(content), `seed ${seed}: ${name}`);
}

test('a machine state lies beside the disk, is read from its snapshot, and is not in the next one', async () => {
  const { shelf, file, disk } = await newDisk(50 * SECTOR, { 'cluster-size': 512 });
  const snapshots = snapshotsOf(disk);
  const state = Buffer.from(Array.from({ length: 40_000 }, (_, i) => (i * 7) % 251));
  await disk.backend.write(0, Buffer.alloc(50 * SECTOR, 1));
  await snapshots.take(named('with', state));
  await snapshots.take(named('without'));
  assert.deepEqual(
    snapshots.list.map(({ vmStateBytes }) => vmStateBytes),
    [40_000, 0],
  );
  const whole = Buffer.alloc(40_000);
  await snapshots.readVmState('1', 0, whole);
  assert.ok(whole.equals(state));
  const part = Buffer.alloc(700);
  await snapshots.readVmState('1', 33_333, part);
  assert.ok(part.equals(state.subarray(33_333, 34_033)));
  const before = file.lengthBytes;
  await snapshots.take(named('third'));
  assert.ok(file.lengthBytes - before < 20_000, 'the state is not copied');
  await snapshots.delete('1');
  await disk.backend.truncate(500 * SECTOR);
  assert.ok((await disk.read(50 * SECTOR, 450 * SECTOR)).every((byte) => byte === 0));
  await disk.close();
  assert.deepEqual(await problems(file), []);
  void shelf;
});

test("a snapshot's own name and numbers: cut as QEMU does, kept as they are by what others do", async () => {
  const image = new HandmadeQcow2({ sizeBytes: 8 * 65536, clusters: 32 });
  image.data(0, 1);
  const table = image.snapshot();
  // An id that is no number, and extra data that nobody knows.
  image.u32(table + 36, 40);
  image.bytes.write('\xff\0abcdefgh\x7f'.padEnd(24, 'x'), table + 56, 'latin1');
  image.bytes.write('7n', table + 80, 'latin1');
  const entry = Buffer.from(image.bytes.subarray(table, table + 82));
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes);
  const disk = await shelf.open('image');
  await snapshotsOf(disk).take(named(`${'n'.repeat(254)}é`));
  await disk.close();
  const again = await shelf.open('image', { readOnly: true });
  assert.deepEqual(
    snapshotsOf(again).list.map(({ id, name }) => [id, name]),
    [
      ['7', 'n'],
      ['8', 'n'.repeat(254)],
    ],
  );
  await again.close();
  const at = Number(file.contents().readBigUInt64BE(FieldOffset.snapshotsOffset));
  assert.ok(
    file
      .contents()
      .subarray(at, at + 82)
      .equals(entry),
  );
});

test('a refcount that cannot count one more: no snapshot, and nothing has changed', async () => {
  const { file, disk } = await newDisk(20 * SECTOR, { 'cluster-size': 512, 'refcount-bits': 1 });
  await disk.backend.write(0, Buffer.alloc(20 * SECTOR, 1));
  await assert.rejects(snapshotsOf(disk).take(named('s')), { errno: 'EINVAL' });
  await disk.backend.write(0, Buffer.alloc(SECTOR, 2));
  await disk.close();
  assert.deepEqual(await problems(file), []);
  assert.equal(file.contents().readUInt32BE(FieldOffset.snapshotCount), 0);
});

test('a failure at any write: the snapshot is there or not, the disk is as it was, the image is sound or repaired', async () => {
  const prepared = await newDisk(60 * SECTOR, { 'cluster-size': 512 });
  await prepared.disk.backend.write(0, Buffer.alloc(40 * SECTOR, 1));
  await snapshotsOf(prepared.disk).take(named('old'));
  await prepared.disk.backend.write(5 * SECTOR, Buffer.alloc(20 * SECTOR, 2));
  const content = await prepared.disk.read(0, 60 * SECTOR);
  await prepared.disk.close();
  const start = prepared.file.contents();
  const old = await shown(prepared.file, 'old');
  const steps: Record<string, (disk: OpenDisk) => Promise<void>> = {
    take: (disk) => snapshotsOf(disk).take(named('new', Buffer.alloc(2000, 5))),
    'go to': (disk) => goToSnapshot(disk.node, '1'),
    delete: (disk) => snapshotsOf(disk).delete('1'),
  };
  for (const [what, step] of Object.entries(steps)) {
    let failures = 0;
    for (let fatal = 0; ; fatal++) {
      const shelf = new DiskShelf([qcow2Driver]);
      const file = shelf.put('image', start);
      const disk = await shelf.open('image');
      let writes = 0;
      // This one and the next, then the storage is well again.
      file.failure = () => (Math.abs(writes++ - fatal - 0.5) < 1 ? errnoError('ENOSPC') : undefined);
      const worked = await step(disk).then(
        () => true,
        () => false,
      );
      file.failure = () => undefined;
      const where = `${what}, write ${fatal}`;
      const now = await disk.read(0, 60 * SECTOR);
      const expected = worked && what === 'go to' ? old : content;
      const isEither = what === 'go to' && !worked && now.equals(old);
      assert.ok(now.equals(expected) || isEither, where);
      await disk.close().catch(() => undefined);
      const again = await shelf.open('image');
      assert.ok((await again.read(0, 60 * SECTOR)).equals(now), `${where}, opened again`);
      await again.close();
      const found = await checkQcow2(childOf(file));
      assert.equal(found.corruptions, 0, `${where}: ${found.messages.join('; ')}`);
      if (!worked) failures++;
      else if (writes <= fatal) break;
    }
    assert.ok(failures > 5, `${what}: ${failures} failures`);
  }
});

test('a broken entry or table of a snapshot stops what needs it, and nothing else', async () => {
  const cases: Array<[string, RegExp, (image: HandmadeQcow2, table: number) => void]> = [
    ['offset', /Snapshot L1 table offset invalid/, (image, table) => image.u64(table, 513n)],
    ['length', /Snapshot L1 table too large/, (image, table) => image.u32(table + 8, 2 ** 31)],
    ['size', /Image is too big/, (image, table) => image.u64(table + 48, 2n ** 63n)],
    [
      'L2 offset',
      /L2 table offset 0x10200 unaligned \(L1 index: 0\)/,
      (image, table) => image.u64(Number(image.bytes.readBigUInt64BE(table)), 0x10200n),
    ],
  ];
  for (const [what, message, damage] of cases) {
    const image = new HandmadeQcow2({ sizeBytes: 8 * 65536, clusters: 32 });
    image.data(0, 1);
    damage(image, image.snapshot());
    const shelf = new DiskShelf([qcow2Driver]);
    shelf.put('image', image.bytes);
    const disk = await shelf.open('image');
    await assert.rejects(goToSnapshot(disk.node, '1'), message, what);
    assert.ok((await disk.read(0, 65536)).equals(Buffer.alloc(65536, 1)));
    await disk.close().catch(() => undefined);
  }
  const long = new HandmadeQcow2({ sizeBytes: 8 * 65536, clusters: 32 });
  const table = long.snapshot();
  long.u32(table + 36, 1025);
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', long.bytes);
  await assert.rejects(shelf.open('image'), /Too much extra metadata in snapshot table entry 0/);
});

test('snapshots that come and go leave the file as long as it was', async () => {
  const { file, disk } = await newDisk(60 * SECTOR, { 'cluster-size': 512 });
  const snapshots = snapshotsOf(disk);
  await disk.backend.write(0, Buffer.alloc(60 * SECTOR, 1));
  const round = async (): Promise<void> => {
    await snapshots.take(named('s'));
    await disk.backend.write(5 * SECTOR, Buffer.alloc(20 * SECTOR, 2));
    await goToSnapshot(disk.node, idOf(disk, 's'));
    await snapshots.delete(idOf(disk, 's'));
  };
  await round();
  await round();
  const { lengthBytes } = file;
  for (let i = 0; i < 10; i++) await round();
  assert.equal(file.lengthBytes, lengthBytes);
  await disk.close();
  assert.deepEqual(await problems(file), []);
});
