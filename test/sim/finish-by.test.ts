import assert from 'node:assert/strict';
import { test } from 'node:test';
import { finishBy } from './finish-by.js';

const MiB = 1024 * 1024;
/** At 200 MiB a second, a copy of it takes 5.12 s where nobody writes. */
const DISK_MIB = 1024;

test('a guest that writes at 0.8 of the link, 90% of it to a tenth of the disk: in time, 1.3 disks copied, half its rate', async () => {
  const told = await finishBy(1, DISK_MIB, { share: 0.8, hotShare: 0.1 }, 6);
  assert.deepEqual(told.ways, ['cold-first', 'both-sides']);
  assert.ok(told.copiedDisks <= 1.3, `${told.copiedDisks} disks were copied`);
  assert.ok(told.leastShare >= 0.5, `${told.leastShare} of the guest's rate`);
  assert.ok(told.seconds <= 6.5, `${told.seconds} s`);
  assertForecast(told);
});

test('a guest that writes as fast everywhere: in time, and half its rate', async () => {
  const told = await finishBy(2, DISK_MIB, { share: 0.8, hotShare: 1 }, 9);
  assert.ok(told.leastShare >= 0.5, `${told.leastShare} of the guest's rate`);
  assert.ok(told.seconds <= 9.5, `${told.seconds} s`);
  assertForecast(told);
});

test('three processes after one another: in time, 1.4 disks copied, half its rate', async () => {
  const told = await finishBy(4, DISK_MIB, { share: 0.8, hotShare: 0.1 }, 6, [2, 5.3]);
  assert.deepEqual(told.ways, ['cold-first', 'both-sides']);
  assert.ok(told.copiedDisks <= 1.4, `${told.copiedDisks} disks were copied`);
  assert.ok(told.leastShare >= 0.45, `${told.leastShare} of the guest's rate`);
  assert.ok(told.seconds <= 6.5, `${told.seconds} s`);
});

test('a guest that writes little is not held back', async () => {
  const told = await finishBy(3, DISK_MIB / 2, { share: 0.1, hotShare: 0.1 }, 60);
  assert.deepEqual(told.ways, ['cold-first']);
  assert.ok(told.leastShare > 0.9, `${told.leastShare} of the guest's rate`);
  assert.ok(told.copiedDisks <= 1.2, `${told.copiedDisks} disks were copied`);
});

/** What was told after one and a half seconds is what came, within a quarter. */
function assertForecast({ told, seconds, copiedAfterTold }: Awaited<ReturnType<typeof finishBy>>): void {
  assert.ok(told, 'nothing was told');
  const left = seconds - told.secondsAt;
  const text = `${told.seconds} s and ${told.copied / MiB} MiB told, ${left} s and ${copiedAfterTold / MiB} MiB came`;
  assert.ok(Math.abs(told.seconds - left) <= 0.25 * left + 1, text);
  assert.ok(Math.abs(told.copied - copiedAfterTold) <= 0.25 * copiedAfterTold, text);
}
