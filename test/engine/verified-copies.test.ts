import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { createRealHost } from '../../src/host/real.js';
import { readManifest } from '../../src/jobs/verified/manifest.js';
import type { JsonObject } from '../../src/schema/types.js';
import { FaultyHost } from '../kit/faulty-host.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';
import { newLyingBed } from './lying-bed.js';

const CHUNK = 65536;

const KINDS = ['backup', 'mirror', 'soft cancel', 'mirror to both sides'] as const;

/** Runs a job to its end; meanwhile a guest writes where the job has to follow, or to keep its point in time. */
async function run(
  bed: EngineBed,
  kind: (typeof KINDS)[number],
  more: JsonObject,
): Promise<string | undefined> {
  const common = { 'job-id': 'j', device: 'B', target: 'T', sync: 'full', 'auto-dismiss': false, ...more };
  const job = (): NonNullable<ReturnType<typeof bed.engine.jobs.find>> => {
    const found = bed.engine.jobs.find('j');
    assert.ok(found);
    return found;
  };
  if (kind === 'backup') {
    await bed.execute('blockdev-backup', { ...common, speed: 65536 });
    await bed.guest('write -P 0x44 3M 100k');
    await bed.guest('write -P 0x44 7000k 10k');
    job().setSpeed(0);
  } else {
    const mode = kind === 'mirror to both sides' ? { 'copy-mode': 'write-blocking' } : {};
    await bed.execute('blockdev-mirror', { ...common, ...mode });
    await bed.event('BLOCK_JOB_READY', 'j');
    await bed.guest('write -P 0x44 3M 100k');
    await bed.guest('write -P 0x44 7000k 10k');
    if (kind === 'soft cancel') await bed.execute('block-job-cancel', { device: 'j' });
    else job().complete();
    await bed.guest('write -P 0x55 3200k 10k');
  }
  await job().concluded;
  return job().error;
}

/** What the chunks of a raw image are, by their digests. */
function digests(bytes: Buffer): string[] {
  const out: string[] = [];
  for (let at = 0; at < bytes.length; at += CHUNK)
    out.push(
      createHash('sha256')
        .update(bytes.subarray(at, at + CHUNK))
        .digest('hex'),
    );
  return out;
}

for (const kind of KINDS) {
  test(`${kind}: the manifest says what the copy holds, and the copy was read back`, async (t) => {
    const bed = await newLyingBed(t);
    const manifest = bed.path('T.manifest');
    assert.equal(await run(bed, kind, { 'x-verify': true, 'x-manifest': manifest }), undefined);
    if (kind !== 'backup' && kind !== 'soft cancel') await bed.execute('quit');
    const copy = readFileSync(bed.path('T.raw'));
    const hashes = await readManifest(createRealHost(), manifest, DISK_BYTES);
    assert.equal(hashes.chunkBytes, CHUNK);
    const told = digests(copy).map((_, i) => hashes.digestAt(i)?.toString('hex'));
    assert.deepEqual(told, digests(copy));
    assert.deepEqual(
      bed.events.filter(({ event }) => event === 'X_BLOCK_JOB_CHUNK_DIFFERS'),
      [],
    );
  });

  test(`${kind}: a chunk that the disk has not kept is named and copied again`, async (t) => {
    const lie = { file: 'T.raw', position: MiB + 5000, times: 1 };
    const bed = await newLyingBed(t, [lie]);
    assert.equal(await run(bed, kind, { 'x-verify': true }), undefined);
    assert.equal(lie.times, 0);
    const told = bed.events.filter(({ event }) => event === 'X_BLOCK_JOB_CHUNK_DIFFERS');
    assert.deepEqual(
      told.map(({ data }) => data),
      [{ device: 'j', offset: MiB, length: CHUNK, action: 'copied-again' }],
    );
    const copy = readFileSync(bed.path('T.raw'));
    assert.ok(copy.subarray(MiB, 2 * MiB).every((byte) => byte === 0x21));
  });

  test(`${kind}: a chunk that stays wrong fails the job, by name, and leaves no manifest`, async (t) => {
    const bed = await newLyingBed(t, [{ file: 'T.raw', position: MiB + 5000, times: 100 }]);
    const manifest = bed.path('T.manifest');
    const error = await run(bed, kind, { 'x-verify': true, 'x-manifest': manifest });
    assert.equal(error, `The copy differs from what was sent in 65536 bytes at ${MiB}, and did so 3 times`);
    assert.equal(existsSync(manifest), false);
    assert.deepEqual(await bed.layers(), ['B', 'A']);
  });
}

test('without reading back, a lie stays: that is what x-verify is for', async (t) => {
  const bed = await newLyingBed(t, [{ file: 'T.raw', position: MiB + 5000, times: 1 }]);
  assert.equal(await run(bed, 'backup', {}), undefined);
  assert.equal(readFileSync(bed.path('T.raw'))[MiB + 5000], 0xde);
});

test('a manifest that is there already is not written over, and the job does not begin', async (t) => {
  const bed = await newLyingBed(t);
  writeFileSync(bed.path('old'), 'precious');
  const args = { 'job-id': 'j', device: 'B', target: 'T', sync: 'full', 'x-manifest': bed.path('old') };
  assert.equal(await bed.refusal('blockdev-backup', args), `Manifest '${bed.path('old')}' exists already`);
  assert.equal(readFileSync(bed.path('old'), 'utf8'), 'precious');
});

test('a drained section that begins while a mirror reads back at its pivot does not keep it from that', async (t) => {
  const { host } = new FaultyHost(createRealHost());
  const [reached, released] = [deferred(), deferred()];
  let isHeld = false;
  const open: typeof host.files.open = async (path, options) => {
    const file = await host.files.open(path, options);
    if (!path.endsWith('T.qcow2')) return file;
    const read: typeof file.read = async (...args) => {
      if (isHeld) {
        reached.resolve();
        await released.promise;
      }
      await file.read(...args);
    };
    const tryRead: typeof file.tryRead = (...args) => !isHeld && file.tryRead(...args);
    return new Proxy(file, {
      get: (of, key) => {
        if (key === 'read') return read;
        if (key === 'tryRead') return tryRead;
        const value: unknown = Reflect.get(of, key, of);
        return typeof value === 'function' ? (value.bind(of) as unknown) : value;
      },
    });
  };
  const bed = new EngineBed(t, { host: { ...host, files: { ...host.files, open } } });
  await bed.chain('B');
  await bed.image('T');
  const mirror = { 'job-id': 'j', device: 'B', target: 'T', sync: 'full', 'auto-finalize': false };
  await bed.execute('blockdev-mirror', { ...mirror, 'x-verify': true });
  const job = bed.engine.jobs.find('j');
  await bed.event('BLOCK_JOB_READY', 'j');
  job?.complete();
  while (job?.status !== 'pending') await bed.engine.host.clock.macrotask();
  for (const at of ['1M', '6M']) await bed.guest(`write -P 0x66 ${at} 64k`);
  isHeld = true;
  await bed.execute('job-finalize', { id: 'j' });
  await reached.promise;
  const drained = bed.engine.graph.drained([bed.engine.graph.node('B')], () => undefined);
  released.resolve();
  await job.concluded;
  await drained;
  assert.equal(job.error, undefined);
  assert.deepEqual(await bed.layers(), ['T']);
  await bed.guest('read -P 0x66 6M 64k');
});
