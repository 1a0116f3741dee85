import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB, MiB } from '../../base/limits.js';
import { drawn } from '../../../test/kit/amount.js';
import { buffer, DISK, FleecingBed, FOLDER } from '../../../test/kit/fleecing-bed.js';
import { assertSame, contents } from '../../../test/kit/job-bench.js';
import { handOn } from '../../../test/kit/passed-jobs.js';
import type { PassedFleecing } from './fleecing.js';

/** Backups with a buffer that go on in another process. */

test('what the buffer keeps goes over, and guests go on to be let in', async () => {
  const bed = new FleecingBed(40);
  await bed.run(async () => {
    const before = await bed.prepare();
    bed.target.hang();
    await bed.start({ 'max-bytes': 4 * MiB });
    await bed.overwrite(3 * MiB);
    bed.target.goOn();
    const { job } = await handOn(bed.bench.jobs, 'j');
    const { used, peak } = buffer(job);
    assert.ok(used > MiB && peak >= used, JSON.stringify(buffer(job)));
    assert.deepEqual(await bed.names, []);
    bed.target.hang();
    await bed.overwrite(4 * MiB);
    assert.ok(buffer(job).used <= 4 * MiB);
    bed.target.goOn();
    await job.concluded;
    assert.equal(job.error, undefined);
    assertSame(await contents(bed.targetNode), before, 40);
    assertSame(await contents(bed.source), bed.model, 40);
    assert.equal(buffer(job).used, 0);
  });
});

test('its bound stays what it was', async () => {
  const bed = new FleecingBed(41);
  await bed.run(async () => {
    await bed.prepare();
    bed.target.hang();
    await bed.start({ 'max-bytes': MiB });
    await bed.overwrite(MiB);
    bed.target.goOn();
    const { job } = await handOn(bed.bench.jobs, 'j');
    bed.target.hang();
    await bed.overwrite(4 * MiB);
    await job.concluded;
    assert.match(job.error ?? '', /^The buffer of backup 'j' is full: 1048576 bytes/);
    bed.target.goOn();
  });
});

test('what spilled goes over, too', async () => {
  const bed = new FleecingBed(42);
  await bed.run(async () => {
    const before = await bed.prepare();
    bed.target.hang();
    const spill = { 'on-full': 'spill', 'spill-folder': FOLDER };
    await bed.start({ 'max-bytes': 256 * KiB, ...spill });
    await bed.overwrite(4 * MiB);
    bed.target.goOn();
    const { job, work } = await handOn(bed.bench.jobs, 'j');
    assert.equal(work.files?.length, 2);
    assert.equal(buffer(job).used, 256 * KiB);
    await job.concluded;
    assert.equal(job.error, undefined);
    assertSame(await contents(bed.targetNode), before, 42);
  });
});

test('what was read of a target that fails is brought on by who goes on', async () => {
  const bed = new FleecingBed(43);
  await bed.run(async () => {
    const before = await bed.prepare();
    bed.target.hang();
    const old = await bed.start({}, { 'on-target-error': 'stop' });
    await bed.overwrite(MiB);
    bed.target.errno = 'EIO';
    bed.target.goOn();
    while (!old.pace.isUserPaused) await bed.simulation.host.clock.sleep(10);
    const { job, work } = await handOn(bed.bench.jobs, 'j');
    const { carried } = work.data['fleecing'] as PassedFleecing;
    assert.ok(carried.some(({ isData }) => isData));
    assert.equal(job.status, 'paused');
    await bed.write(DISK - 3 * MiB, 4096);
    // It fails once more, which is no end of the job either.
    job.resume();
    while (!job.pace.isUserPaused) await bed.simulation.host.clock.sleep(10);
    bed.target.errno = undefined;
    job.resume();
    await job.concluded;
    assert.equal(job.error, undefined);
    assertSame(await contents(bed.targetNode), before, 43);
  });
});

for (const seed of drawn(Array.from({ length: 20 }, (_, index) => 50 + index)))
  test(`random writes, hangs and takeovers: the copy is the point in time (seed ${seed})`, async () => {
    const bed = new FleecingBed(seed);
    await bed.run(async () => {
      const below = (bound: number): number => bed.random.below(bound);
      const { clock } = bed.simulation.host;
      const before = await bed.prepare({ isLate: () => below(2) === 0, delay: () => clock.sleep(below(3)) });
      let job = await bed.start({ 'max-bytes': DISK });
      let updates = 0;
      for (let i = 0; i < 120; i++) {
        if (below(8) === 0) bed.target.hang();
        else if (below(4) === 0) bed.target.goOn();
        const offset = below(DISK / 512 - 256) * 512;
        if (below(5) === 0) {
          await bed.guest.writeZeroes(offset, 65536);
          bed.model.fill(0, offset, offset + 65536);
        } else await bed.write(offset, 512 * (1 + below(250)));
        if (below(3) === 0) await clock.sleep(below(10));
        if (below(10) > 0 || job.isOver) continue;
        bed.target.goOn();
        const used = buffer(job).used;
        ({ job } = await handOn(bed.bench.jobs, 'j'));
        assert.ok(buffer(job).used <= used);
        updates++;
      }
      bed.target.goOn();
      await job.concluded;
      assert.equal(job.error, undefined);
      assert.ok(updates > 0);
      assertSame(await contents(bed.targetNode), before, seed);
      assertSame(await contents(bed.source), bed.model, seed);
      assert.equal(buffer(job).used, 0);
    });
  });
