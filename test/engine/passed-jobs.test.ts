import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import type { Job } from '../../src/jobs/job.js';
import { readManifest } from '../../src/jobs/verified/manifest.js';
import { handOn } from '../kit/passed-jobs.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';
import { newLyingBed } from './lying-bed.js';

/** Jobs with x-verify and x-manifest that go on in another process: what was hashed and copied here is not, there. */

const CHUNK = 65536;
const MANIFEST = 'T.manifest';

function job(bed: EngineBed): Job {
  const found = bed.engine.jobs.find('j');
  assert.ok(found);
  return found;
}

async function until(what: () => boolean): Promise<void> {
  while (!what()) await new Promise((resolve) => setTimeout(resolve, 2));
}

const KINDS = ['backup', 'mirror', 'mirror to both sides'] as const;

/** The first MiBs are copied by one, the rest by another. */
async function run(bed: EngineBed, kind: (typeof KINDS)[number]): Promise<Job> {
  const checked = { 'x-verify': true, 'x-manifest': bed.path(MANIFEST), 'auto-dismiss': false };
  const common = { 'job-id': 'j', device: 'B', target: 'T', sync: 'full', ...checked };
  const mode = kind === 'mirror to both sides' ? { 'copy-mode': 'write-blocking' } : {};
  await bed.execute(kind === 'backup' ? 'blockdev-backup' : 'blockdev-mirror', {
    ...common,
    ...mode,
    // A piece of it, and little more.
    speed: 1,
  });
  const reached = (): number => job(bed).progress().doneBytes;
  for (let round = 1; round <= 2; round++) {
    job(bed).setSpeed(MiB);
    await until(() => reached() >= round * MiB);
    job(bed).setSpeed(1);
    // Where it has been, and where it has not.
    await bed.guest(`write -P ${0x40 + round} ${round - 1}M 10k`);
    await bed.guest(`write -P ${0x50 + round} ${5 + round}M 10k`);
    await handOn(bed.engine.jobs, 'j');
  }
  job(bed).setSpeed(0);
  if (kind !== 'backup') {
    await until(() => job(bed).isReady);
    await handOn(bed.engine.jobs, 'j');
    await bed.guest('write -P 0x66 5M 10k');
    job(bed).complete();
  }
  await job(bed).concluded;
  return job(bed);
}

for (const kind of KINDS) {
  test(`${kind}: the manifest has what both have copied`, async (t) => {
    const bed = await newLyingBed(t);
    assert.equal((await run(bed, kind)).error, undefined);
    if (kind !== 'backup') await bed.execute('quit');
    const copy = readFileSync(bed.path('T.raw'));
    const hashes = await readManifest(createRealHost(), bed.path(MANIFEST), DISK_BYTES);
    const whole = await hashes.digestsOf(copy);
    for (let i = 0; i < hashes.chunks; i++)
      assert.deepEqual(hashes.digestAt(i), whole.subarray(i * 32, (i + 1) * 32), `chunk ${i}`);
  });

  test(`${kind}: what the disk has not kept of the first one is found by the last one`, async (t) => {
    const lie = { file: 'T.raw', position: MiB / 2 + 5000, times: 1 };
    const bed = await newLyingBed(t, [lie]);
    assert.equal((await run(bed, kind)).error, undefined);
    assert.equal(lie.times, 0);
    const told = bed.events.filter(({ event }) => event === 'X_BLOCK_JOB_CHUNK_DIFFERS');
    const chunk = { device: 'j', offset: MiB / 2, length: CHUNK };
    assert.deepEqual(
      told.map(({ data }) => data),
      [{ ...chunk, action: 'copied-again' }],
    );
    assert.ok(existsSync(bed.path(MANIFEST)));
  });
}

test('one that waits to be finalized writes its manifest there', async (t) => {
  const bed = await newLyingBed(t);
  const checked = { 'x-manifest': bed.path(MANIFEST), 'auto-dismiss': false, 'auto-finalize': false };
  await bed.execute('blockdev-backup', { 'job-id': 'j', device: 'B', target: 'T', sync: 'full', ...checked });
  await until(() => job(bed).status === 'pending');
  await handOn(bed.engine.jobs, 'j');
  assert.equal(job(bed).status, 'pending');
  assert.ok(!existsSync(bed.path(MANIFEST)));
  job(bed).finalize();
  await job(bed).concluded;
  assert.equal(job(bed).error, undefined);
  await readManifest(createRealHost(), bed.path(MANIFEST), DISK_BYTES);
});
