import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB, MiB } from '../../base/limits.js';
import { drawn } from '../../../test/kit/amount.js';
import { buffer, DISK, FleecingBed, FOLDER } from '../../../test/kit/fleecing-bed.js';
import { assertSame, contents } from '../../../test/kit/job-bench.js';

test('guests write on while the target hangs; the copy is the point in time, and the buffer keeps its bound', async () => {
  const bed = new FleecingBed(1);
  await bed.run(async () => {
    const before = await bed.prepare();
    bed.target.hang();
    const job = await bed.start({ 'max-bytes': 4 * MiB });
    // Past what the job has read into memory.
    await bed.overwrite(4 * MiB);
    const whole = buffer(job);
    assert.ok(
      whole.used > MiB && whole.peak === whole.used && whole.used <= whole.max,
      JSON.stringify(whole),
    );
    assert.deepEqual(await bed.names, [], 'the buffer has a name');
    assert.equal(job.isOver, false);
    bed.target.goOn();
    await job.concluded;
    assert.equal(job.error, undefined);
    assertSame(await contents(bed.targetNode), before, 1);
    assertSame(await contents(bed.source), bed.model, 1);
    assert.equal(buffer(job).used, 0);
  });
});

test('a buffer that is full ends the backup, though its target hangs, and no write of a guest', async () => {
  const bed = new FleecingBed(2);
  await bed.run(async () => {
    await bed.prepare();
    bed.target.hang();
    const job = await bed.start({ 'max-bytes': 256 * KiB });
    await bed.overwrite(4 * MiB);
    await job.concluded;
    assert.match(job.error ?? '', /^The buffer of backup 'j' is full: 262144 bytes/);
    assert.equal(buffer(job).peak, 256 * KiB);
    assertSame(await contents(bed.source), bed.model, 2);
    bed.target.goOn();
  });
});

test('what is beyond the bound spills where it may', async () => {
  const bed = new FleecingBed(3);
  await bed.run(async () => {
    const before = await bed.prepare();
    bed.target.hang();
    const spill = { 'on-full': 'spill', 'spill-folder': FOLDER };
    const job = await bed.start({ 'max-bytes': 256 * KiB, ...spill });
    await bed.overwrite(4 * MiB);
    assert.equal(buffer(job).used, 256 * KiB);
    bed.target.goOn();
    await job.concluded;
    assert.equal(job.error, undefined);
    assertSame(await contents(bed.targetNode), before, 3);
  });
});

test('of a slow target nothing is seen in the time that guests wait', async () => {
  const bed = new FleecingBed(4);
  await bed.run(async () => {
    const before = await bed.prepare();
    const { clock } = bed.simulation.host;
    bed.target.delayMs = 5000;
    const job = await bed.start();
    let longestMs = 0;
    for (let i = 0; i < 100; i++) {
      const begunMs = clock.nowMs();
      await bed.write(bed.random.below(DISK / 512 - 8) * 512, 4096);
      longestMs = Math.max(longestMs, clock.nowMs() - begunMs);
      await clock.sleep(20);
    }
    assert.ok(longestMs < 500, `${longestMs} ms`);
    await job.concluded;
    assert.equal(job.error, undefined);
    assertSame(await contents(bed.targetNode), before, 4);
  });
});

test('a target that fails for a while gets what was kept, once the job goes on', async () => {
  const bed = new FleecingBed(5);
  await bed.run(async () => {
    const before = await bed.prepare();
    bed.target.hang();
    const job = await bed.start({}, { 'on-target-error': 'stop' });
    await bed.overwrite(MiB);
    bed.target.errno = 'EIO';
    bed.target.goOn();
    while (!job.pace.isUserPaused) await bed.simulation.host.clock.sleep(10);
    await bed.write(DISK - 3 * MiB, 4096);
    bed.target.errno = undefined;
    job.resume();
    await job.concluded;
    assert.equal(job.error, undefined);
    assertSame(await contents(bed.targetNode), before, 5);
  });
});

test('a disk of the buffer that is full is as a buffer that is full', async () => {
  const bed = new FleecingBed(6);
  await bed.run(async () => {
    await bed.prepare();
    bed.target.hang();
    const job = await bed.start();
    bed.simulation.injectFault({ op: 'write', errno: 'ENOSPC' });
    await bed.overwrite(2 * MiB);
    bed.target.goOn();
    await job.concluded;
    assert.match(job.error ?? '', /No space left on device/);
    assertSame(await contents(bed.source), bed.model, 6);
  });
});

for (const seed of drawn(Array.from({ length: 20 }, (_, index) => 10 + index)))
  test(`random writes, discards and hangs: the copy is the point in time (seed ${seed})`, async () => {
    const bed = new FleecingBed(seed);
    await bed.run(async () => {
      const below = (bound: number): number => bed.random.below(bound);
      const { clock: late } = bed.simulation.host;
      const before = await bed.prepare({ isLate: () => below(2) === 0, delay: () => late.sleep(below(3)) });
      const mode = below(2) === 0 ? {} : { compress: false };
      const job = await bed.start({ 'max-bytes': DISK }, mode);
      const { clock } = bed.simulation.host;
      for (let i = 0; i < 120; i++) {
        if (below(8) === 0) bed.target.hang();
        else if (below(4) === 0) bed.target.goOn();
        const offset = below(DISK / 512 - 256) * 512;
        if (below(5) === 0) {
          await bed.guest.writeZeroes(offset, 65536);
          bed.model.fill(0, offset, offset + 65536);
        } else await bed.write(offset, 512 * (1 + below(250)));
        if (below(3) === 0) await clock.sleep(below(30));
      }
      bed.target.goOn();
      await job.concluded;
      assert.equal(job.error, undefined);
      assertSame(await contents(bed.targetNode), before, seed);
      assertSame(await contents(bed.source), bed.model, seed);
      assert.equal(buffer(job).used, 0);
    });
  });

test('what it cannot be used with is refused by name', async () => {
  const bed = new FleecingBed(7);
  await bed.run(async () => {
    await bed.prepare();
    const refused = async (more: object, request: object = {}): Promise<string> =>
      bed.start(more, request).then(
        () => assert.fail('was started'),
        (error: Error) => error.message,
      );
    assert.match(await refused({}, { sync: 'none' }), /sync mode 'none'/);
    assert.match(await refused({}, { 'x-persist': '/tmp/j' }), /'x-persist'/);
    assert.match(await refused({}, { 'discard-source': true }), /'discard-source'/);
    assert.match(await refused({ 'on-full': 'spill' }), /'spill-folder' is given when/);
    assert.match(await refused({ 'max-bytes': 4096 }), /less than the 65536 bytes/);
    assert.match(await refused({ folder: '/none' }), /No such file or directory/);
    assert.deepEqual(await bed.names, []);
  });
});
