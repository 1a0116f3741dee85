import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB } from '../base/limits.js';
import type { HostClock } from '../host/host.js';
import { ChangeLog, type Lease } from './change-log.js';
import { DirtyBitmap } from './dirty-bitmap.js';

const REGION = 64 * KiB;
const REGIONS = 512;
const SIZE = REGIONS * REGION;
const GRANULE = 4 * KiB;

const clock = { setTimer: () => ({ cancel: () => undefined }) } as unknown as HostClock;

/** A log of one bitmap, whose writes are counted; `fails` lets them fail. */
function newLog(lease?: Lease) {
  const bitmap = new DirtyBitmap(SIZE, GRANULE, 'b');
  const there = Buffer.alloc(SIZE / GRANULE / 8);
  const state = { writes: 0, durable: 0, fails: false };
  const place = {
    lengthBytes: there.length,
    write: async (at: number, bytes: Uint8Array, isDurable: boolean): Promise<void> => {
      if (state.fails) throw new Error('no');
      there.set(bytes, at);
      state.writes++;
      if (isDurable) state.durable++;
    },
  };
  const log = new ChangeLog(clock, SIZE, async () => undefined, lease);
  log.activate([{ bitmap, place, bytes: Buffer.from(there) }]);
  const isStored = (offset: number): boolean => {
    const granule = offset / GRANULE;
    return Math.floor((there[Math.floor(granule / 8)] ?? 0) / 2 ** (granule % 8)) % 2 === 1;
  };
  const write = (offset: number): Promise<void> =>
    log.run(offset, GRANULE, async () => {
      assert.ok(isStored(offset), 'stored before it is changed');
      bitmap.set(offset, GRANULE);
    });
  return { log, bitmap, state, isStored, write };
}

test('a region is stored once before its first change, and what has not changed goes when it rests', async () => {
  const { log, state, isStored, write } = newLog();
  assert.equal(log.isOpen(0, 1), false);
  await write(0);
  await write(4 * GRANULE);
  assert.deepEqual([state.writes, state.durable], [1, 1]);
  assert.ok(log.isOpen(0, REGION) && isStored(8 * GRANULE));
  await log.retire();
  assert.equal(log.openBytes, REGION, 'it was touched');
  await log.retire();
  assert.equal(log.openBytes, 0);
  assert.deepEqual([isStored(0), isStored(4 * GRANULE), isStored(8 * GRANULE)], [true, true, false]);
  assert.equal(state.durable, 1, 'bits go without a wait');
});

test('a change that is under way keeps its region open', async () => {
  const { log, isStored } = newLog();
  let end = (): void => undefined;
  const under = log.run(REGION, GRANULE, () => new Promise<void>((resolve) => (end = resolve)));
  while (!log.isOpen(REGION, GRANULE)) await Promise.resolve();
  for (let times = 0; times < 4; times++) await log.retire();
  assert.ok(isStored(REGION));
  end();
  await under;
});

test('who is everywhere waits a bounded number of times', async () => {
  const { state, write } = newLog();
  for (let region = 0; region < REGIONS; region++) await write(((region * 97) % REGIONS) * REGION);
  assert.ok(state.durable <= 32 * 6, `${state.durable} waits for ${REGIONS} regions`);
});

test('where bits cannot be stored the change fails, and later ones do it again', async () => {
  const { log, state, isStored, write } = newLog();
  state.fails = true;
  await assert.rejects(write(0), /no/);
  assert.equal(log.isOpen(0, 1), false);
  state.fails = false;
  await write(0);
  assert.ok(isStored(0));
});

test('without leave nothing is changed', async () => {
  let isValid = false;
  let renewed = 0;
  const { log, write } = newLog({
    isValid: () => isValid,
    renew: async () => {
      renewed++;
      isValid = true;
    },
  });
  await write(0);
  assert.equal(renewed, 1);
  isValid = false;
  assert.equal(log.isOpen(0, 1), false);
  await write(0);
  assert.equal(renewed, 2);
});
