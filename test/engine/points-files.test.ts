import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { test } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { createImage } from '../../src/block/create.js';
import type { Layer } from '../../src/monitor/points/chain.js';
import { findLayer } from '../../src/monitor/points/chain.js';
import { planTakeover } from '../../src/monitor/takeover/plan.js';
import { settle } from '../../src/monitor/points/settle.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { Disk } from '../../src/library/disk.js';
import { Engine } from '../../src/monitor/engine.js';
import { withMethods } from '../kit/lying-host.js';
import { EngineBed, MiB } from './engine-bed.js';

/** Files that are not the points' stay, whatever they are called and wherever they lie. */

async function diskWithPoints(bed: EngineBed, count: number): Promise<void> {
  await bed.chain('A');
  for (let i = 1; i <= count; i++) {
    await bed.execute('x-point-create', { name: `p${i}` });
    await bed.guest(`write -P ${i} ${i * MiB} 1M`);
  }
}

async function deletePoint(bed: EngineBed, name: string): Promise<unknown> {
  const ended = deferred<unknown>();
  const stop = bed.engine.onEvent((event, data) => {
    if (event === 'x-point-deleted') ended.resolve(data['error']);
  });
  await bed.execute('x-point-delete', { name });
  const error = await ended.promise;
  stop();
  return error;
}

const overlayOn = (bed: EngineBed, path: string, base: string): Promise<void> =>
  createImage(bed.engine.opener, path, 'qcow2', {
    ...{ sizeBytes: 8 * MiB, backingFile: base, backingFormat: 'qcow2' },
  });

test('a file that gets the name of an image that was removed is not removed at the next change', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 3);
  const before = readdirSync(bed.folder);
  assert.equal(await deletePoint(bed, 'p2'), undefined);
  const [gone = ''] = before.filter((name) => name.endsWith('.qcow2') && !existsSync(bed.path(name)));
  assert.match(gone, /^A\.after-p/);
  writeFileSync(bed.path(gone), 'of a user');
  await bed.execute('x-point-create', { name: 'p4' });
  assert.equal(await deletePoint(bed, 'p4'), undefined);
  assert.equal(readFileSync(bed.path(gone), 'utf8'), 'of a user');
});

test('what going back has left in another folder keeps the images that it stands on', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.execute('x-point-create', { name: 'p1' });
  await bed.guest('write -P 1 1M 1M');
  mkdirSync(bed.path('fast'));
  const [top = ''] = await bed.layers();
  const left = bed.path('fast/x.qcow2');
  await bed.execute('x-point-create', { name: 'p2', disks: [{ node: top, file: left }] });
  await bed.guest('write -P 2 2M 1M');
  await bed.execute('stop');
  await bed.execute('system_reset');
  const [active = ''] = await bed.layers();
  const back = { name: 'p2', disks: [{ node: active, file: bed.path('back.qcow2') }] };
  await bed.execute('x-point-revert', back);
  assert.equal(await deletePoint(bed, 'p2'), undefined);
  // It is opened with all that is below it.
  const file = { driver: 'file', filename: left };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'left', file, 'read-only': true });
  for (const command of ['read -P 1 1M 1M', 'read -P 2 2M 1M'])
    await bed.execute('human-monitor-command', { 'command-line': `qemu-io left "${command}"` });
  assert.doesNotMatch(bed.printed.join(), /failed|rror/);
});

test('what going back has left stands on images in other folders, where others had made a layer on top', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.execute('x-point-create', { name: 'p1' });
  await bed.guest('write -P 1 1M 6M');
  mkdirSync(bed.path('fast'));
  const [top = ''] = await bed.layers();
  await bed.execute('x-point-create', { name: 'p2', disks: [{ node: top, file: bed.path('fast/x.qcow2') }] });
  await bed.guest('write -P 2 2M 1M');
  const [active = ''] = await bed.layers();
  await bed.snapshot(active, 'over');
  await bed.guest('write -P 3 3M 1M');
  await bed.execute('stop');
  await bed.execute('system_reset');
  await bed.execute('x-point-revert', { name: 'p2' });
  // Less is to be copied down than up.
  await bed.guest('write -P 4 1M 1M');
  assert.equal(await deletePoint(bed, 'p2'), undefined);
  const file = { driver: 'file', filename: bed.path('over.qcow2') };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'left', file, 'read-only': true });
  for (const command of ['read -P 1 1M 1M', 'read -P 2 2M 1M', 'read -P 3 3M 1M'])
    await bed.execute('human-monitor-command', { 'command-line': `qemu-io left "${command}"` });
  assert.doesNotMatch(bed.printed.join(), /failed|rror/);
});

test('an image that cannot be read may stand on any other', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 3);
  await overlayOn(bed, bed.path('clone.qcow2'), bed.path('A.after-p1.qcow2'));
  const bytes = readFileSync(bed.path('clone.qcow2'));
  // An incompatible feature that nobody knows.
  bytes.writeUInt8(0x80, 72);
  writeFileSync(bed.path('clone.qcow2'), bytes);
  assert.equal(await deletePoint(bed, 'p2'), undefined);
  assert.ok(existsSync(bed.path('A.after-p1.qcow2')));
  await bed.guest('read -P 2 2M 1M');
});

test('another file with the number of one that is gone is not taken for it', () => {
  const layer = (name: string, identity: string, born: string): Layer =>
    ({
      path: `/d/${name}`,
      identity,
      born,
      sizeBytes: 1,
      modified: '1',
      image: { id: name },
    }) as unknown as Layer;
  const images = ['top', 'middle', 'base'].map((file, i) => ({
    ...{ file, identity: `1:${i}`, born: '1', size: 1, modified: '1', ours: true },
    ...(i < 2 && { below: ['middle', 'base'][i] ?? '' }),
  }));
  const record = { id: 'x', name: 'p', created: 1, disks: 1, image: 'middle', overlay: 'top' };
  const content = { disk: 'd', active: 'top', images, points: [record] };
  const file = { path: '/d/d.points', sequence: 1, content };
  const renamed = [layer('top', '1:0', '1'), layer('other', '1:1', '1'), layer('base', '1:2', '1')];
  assert.equal(findLayer(renamed, file, 'middle'), renamed[1]);
  const another = [layer('top', '1:0', '1'), layer('other', '1:1', '2'), layer('base', '1:2', '1')];
  assert.equal(findLayer(another, file, 'middle'), undefined);
  const settled = settle(file, another, { isOverlayWritten: false, isVerbRunning: false, jobs: [] });
  assert.deepEqual(
    settled.file.content.images.map(({ ours }) => ours),
    [true, false, true],
  );
});

test('nobody takes over while a point is being deleted', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 2);
  const [top = ''] = await bed.layers();
  await bed.image('copy');
  const slow = { 'job-id': 'slow', device: top, target: 'copy', sync: 'full', speed: 1024 };
  await bed.execute('blockdev-backup', slow);
  await bed.execute('x-point-delete', { name: 'p1' });
  assert.ok(planTakeover(bed.engine).refuses.includes("point 'p1' is being deleted"));
  await bed.execute('job-cancel', { id: 'slow' });
});

test('an image that another program reads is removed when it is closed, and nobody opens it while it goes', async (t) => {
  const host = createRealHost();
  const other = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
  const removed: string[] = [];
  const unlink = async (path: string): Promise<void> => {
    if (path.endsWith('.qcow2')) {
      await assert.rejects(readerOf(path), /Failed to get/);
      removed.push(basename(path));
    }
    await host.files.unlink(path);
  };
  const readerOf = async (path: string): Promise<Disk> => {
    const node = await other.opener.openImage(path, 'qcow2', { readOnly: true, noBacking: true });
    return Disk.open(other.graph, node, {}).catch(async (error: unknown) => {
      await other.graph.release([node]);
      throw error;
    });
  };
  const bed = new EngineBed(t, { host: { ...host, files: withMethods(host.files, { unlink }) } });
  await diskWithPoints(bed, 2);
  // What p2 holds is the lesser, so that it goes up: the image that is read is only read.
  await bed.guest('write -P 7 3M 4M');
  await bed.execute('x-point-create', { name: 'p3' });
  const reader = await readerOf(bed.path('A.after-p1.qcow2'));
  assert.equal(await deletePoint(bed, 'p2'), undefined);
  assert.equal((await bed.layers()).length, 3);
  assert.ok(existsSync(bed.path('A.after-p1.qcow2')));
  assert.deepEqual(removed, []);
  await reader.close();
  await other.close();
  await bed.execute('x-point-create', { name: 'p4' });
  assert.deepEqual(removed, ['A.after-p1.qcow2']);
});

test('disks whose images have one name, but for what it ends with, get points files of their own at once', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  writeFileSync(bed.path('A.img'), Buffer.alloc(MiB));
  const file = { driver: 'file', filename: bed.path('A.img') };
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'raw', file });
  await bed.engine.addDevice('raw', { id: 'virtio1' });
  const { images } = await bed.engine.execute('x-point-create', { name: 'p1' });
  assert.equal(new Set(images.map(({ file: name }) => name)).size, 2);
  const { disks } = await bed.engine.execute('x-point-list', {});
  assert.deepEqual(
    disks
      .map((disk) => [
        disk.disk,
        disk['points-file'],
        disk.points.map(({ name, state }) => `${name} ${state}`),
      ])
      .sort(),
    [
      ['A', bed.path('A.points'), ['p1 usable']],
      ['A-2', bed.path('A-2.points'), ['p1 usable']],
    ],
  );
});

test('disks of one name in different folders get images of their own where they come together', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  for (const folder of ['more', 'fast']) mkdirSync(bed.path(folder));
  const filename = bed.path('more/A.qcow2');
  await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: MiB });
  const file = { driver: 'file', filename };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'B', file });
  await bed.engine.addDevice('B', { id: 'virtio1' });
  const disks = ['A', 'B'].map((node) => ({ node, file: bed.path(`fast/${node}.qcow2`) }));
  await bed.execute('x-point-create', { name: 'p1', disks });
  const { images } = await bed.engine.execute('x-point-create', { name: 'p2' });
  assert.deepEqual(
    images.map(({ file: name }) => name),
    [bed.path('fast/A.after-p2.qcow2'), bed.path('fast/A.after-p2-2.qcow2')],
  );
});

test('points are known where no image is left in the folder of their file', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  mkdirSync(bed.path('fast'));
  // Another disk's points have the name there.
  writeFileSync(bed.path('fast/A.points'), 'of somebody');
  const at = (name: string): string => bed.path(`fast/${name}.qcow2`);
  for (const name of ['p1', 'p2', 'p3']) {
    const [node = ''] = await bed.layers();
    await bed.execute('x-point-create', { name, disks: [{ node, file: at(name) }] });
    await bed.guest(`write -P 1 1M 4M`);
  }
  assert.equal(await deletePoint(bed, 'p1'), undefined);
  const folders = (await bed.layers()).map((name) => dirname(bed.engine.graph.node(name).filename));
  assert.deepEqual(folders, [bed.path('fast'), bed.path('fast'), bed.path('fast')]);
  const names = async (): Promise<string[]> => {
    const { disks } = await bed.engine.execute('x-point-list', { nodes: ['virtio0'] });
    return [disks[0]?.['points-file'] ?? '', ...(disks[0]?.points ?? []).map(({ name }) => name)];
  };
  assert.deepEqual(await names(), [bed.path('A.points'), 'p2', 'p3']);
  assert.equal(await deletePoint(bed, 'p2'), undefined);
  assert.deepEqual(await names(), [bed.path('A.points'), 'p3']);
  assert.equal(readFileSync(bed.path('fast/A.points'), 'utf8'), 'of somebody');
  assert.deepEqual(
    readdirSync(bed.path('fast'))
      .filter((name) => name.endsWith('.points'))
      .sort(),
    ['A-2.points', 'A.points'],
  );
});
