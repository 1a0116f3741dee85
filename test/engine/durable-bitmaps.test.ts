import assert from 'node:assert/strict';
import { copyFileSync, existsSync, readFileSync, rmSync } from 'node:fs';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { deferred } from '../../src/base/async.js';
import { errnoError } from '../../src/base/error.js';
import { createImage } from '../../src/block/create.js';
import { BITS_OFFSET } from '../../src/block/side-header.js';
import { createRealHost } from '../../src/host/real.js';
import { BITMAP_ACTIONS } from '../../src/monitor/bitmaps.js';
import { FaultyHost } from '../kit/faulty-host.js';
import { HeldClock } from '../kit/held-clock.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

/** How much of a node a kept bitmap has as dirty in a copy of its image, as a crash would leave it now. */
async function afterCrash(bed: EngineBed, node: string, name: string): Promise<number | undefined> {
  const filename = bed.path('crashed.qcow2');
  copyFileSync(bed.path(`${node}.qcow2`), filename);
  const file = { driver: 'file', filename };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'crashed', 'read-only': true, file });
  const dirtyBytes = bed.engine.graph.node('crashed').findBitmap(name)?.dirtyBytes;
  await bed.execute('blockdev-del', { 'node-name': 'crashed' });
  return dirtyBytes;
}

test('a durable bitmap that was cleared in a transaction that failed has its bits after a crash', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.device('A');
  const of = (name: string) => ({ node: 'A', name });
  for (const name of ['cleared', 'other'])
    await bed.execute('block-dirty-bitmap-add', { ...of(name), persistent: true, 'x-durable': true });
  await bed.guest('write 1M 64k');
  // What does not record is in the image exactly.
  await bed.execute('block-dirty-bitmap-disable', of('cleared'));
  assert.equal(await afterCrash(bed, 'A', 'cleared'), 65536);
  const actions = [
    { type: 'block-dirty-bitmap-clear', data: of('cleared') },
    // Taken back first, by which all durable bitmaps are stored.
    { type: 'block-dirty-bitmap-disable', data: of('other') },
    { type: 'abort', data: {} },
  ];
  assert.match(await bed.refusal('transaction', { actions }), /aborted/);
  assert.equal(await afterCrash(bed, 'A', 'cleared'), 65536);
});

/** A disk A in a raw image, whose bitmap `bits` is in A.bits. */
async function keptAside(bed: EngineBed): Promise<void> {
  const filename = bed.path('A.raw');
  await createImage(bed.engine.opener, filename, 'raw', { sizeBytes: DISK_BYTES });
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'A', file: { driver: 'file', filename } });
  await bed.device('A');
  await bed.execute('x-bitmap-ensure', { name: 'bits', disks: [{ node: 'A', file: bed.path('A.bits') }] });
}

test('a bitmap in a side file whose clearing is taken back after a while has its bits there', async (t) => {
  const host = createRealHost();
  const clock = new HeldClock(host.clock, 1000);
  const bed = new EngineBed(t, { host: { ...host, clock } });
  const aside = bed.path('A.bits');
  await keptAside(bed);
  await bed.guest('write 1M 64k');
  const isStored = (): boolean =>
    readFileSync(aside)
      .subarray(BITS_OFFSET)
      .some((byte) => byte !== 0);
  assert.ok(isStored());
  const cleared = BITMAP_ACTIONS['block-dirty-bitmap-clear'](bed.engine, { node: 'A', name: 'bits' });
  while (isStored()) {
    clock.pass(10_000);
    await turn();
  }
  await cleared.undo();
  assert.ok(isStored());
});

test('a write that waits for a side file is made when the bitmap there is removed meanwhile', async (t) => {
  const { host } = new FaultyHost(createRealHost());
  const [reached, released] = [deferred(), deferred()];
  let isHeld = false;
  const open: typeof host.files.open = async (path, options) => {
    const file = await host.files.open(path, options);
    if (!path.endsWith('A.bits')) return file;
    const writeDurable: typeof file.writeDurable = async (...args) => {
      if (isHeld) {
        reached.resolve();
        await released.promise;
      }
      await file.writeDurable(...args);
    };
    return new Proxy(file, {
      get: (of, key) => {
        const value: unknown = key === 'writeDurable' ? writeDurable : Reflect.get(of, key, of);
        return typeof value === 'function' ? (value.bind(of) as unknown) : value;
      },
    });
  };
  const bed = new EngineBed(t, { host: { ...host, files: { ...host.files, open } } });
  await keptAside(bed);
  const disk = bed.engine.devices.get('virtio0')?.backend;
  isHeld = true;
  const written = disk?.write(2 * MiB, Buffer.alloc(65536, 0x5a));
  await reached.promise;
  const removed = bed.execute('block-dirty-bitmap-remove', { node: 'A', name: 'bits' });
  for (let times = 0; times < 20; times++) await turn();
  released.resolve();
  await written;
  await removed;
  assert.equal(bed.engine.graph.node('A').findBitmap('bits'), undefined);
  assert.ok(!existsSync(bed.path('A.bits')));
  await bed.guest('read -P 0x5a 2M 64k');
});

test('a bitmap whose side file somebody has removed is removed', async (t) => {
  const bed = new EngineBed(t);
  await keptAside(bed);
  rmSync(bed.path('A.bits'));
  await bed.execute('block-dirty-bitmap-remove', { node: 'A', name: 'bits' });
  assert.equal(bed.engine.graph.node('A').findBitmap('bits'), undefined);
  await bed.guest('write 0 64k');
});

test('a bitmap whose side file cannot be removed is none of the disk any more', async (t) => {
  const { host } = new FaultyHost(createRealHost());
  const unlink = (): Promise<void> => Promise.reject(errnoError('EACCES'));
  const bed = new EngineBed(t, { host: { ...host, files: { ...host.files, unlink } } });
  await keptAside(bed);
  assert.match(await bed.refusal('block-dirty-bitmap-remove', { node: 'A', name: 'bits' }), /denied/);
  assert.equal(bed.engine.graph.node('A').findBitmap('bits'), undefined);
  await bed.guest('write 0 64k');
});

test('a job of a transaction begins though a bitmap of it cannot be removed', async (t) => {
  const { host } = new FaultyHost(createRealHost());
  const unlink = (): Promise<void> => Promise.reject(errnoError('EACCES'));
  const bed = new EngineBed(t, { host: { ...host, files: { ...host.files, unlink } } });
  await keptAside(bed);
  await bed.image('T');
  const actions = [
    { type: 'block-dirty-bitmap-remove', data: { node: 'A', name: 'bits' } },
    { type: 'blockdev-backup', data: { 'job-id': 'j', device: 'A', target: 'T', sync: 'full' } },
  ];
  assert.match(await bed.refusal('transaction', { actions }), /denied/);
  const job = bed.engine.jobs.find('j');
  assert.ok(job && job.status !== 'created');
  await job.concluded;
  assert.equal(job.error, undefined);
});
