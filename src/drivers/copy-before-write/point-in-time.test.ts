import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../base/async.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import { NEVER_HELD } from '../../block/copy-turn.js';
import { CopyBeforeWrite } from './point-in-time.js';

const GRANULE = 4096;

function gateOver(
  sizeBytes: number,
  arrives: Promise<void> = Promise.resolve(),
): { gate: CopyBeforeWrite; due: DirtyBitmap; copied: number[] } {
  const due = new DirtyBitmap(sizeBytes, GRANULE);
  due.setAll();
  const copied: number[] = [];
  const gate = new CopyBeforeWrite({
    due,
    sides: { source: NEVER_HELD, target: NEVER_HELD },
    copy: (_turn, { lengthBytes }) => arrives.then(() => lengthBytes),
    breaks: 'snapshot',
    failed: (error) => assert.fail(String(error)),
    copied: (bytes) => copied.push(bytes),
  });
  return { gate, due, copied };
}

test('an attempt that stops within a granule leaves that granule due', () => {
  const { gate, due, copied } = gateOver(8 * GRANULE);
  assert.equal(
    gate.tryCopy(GRANULE, 4 * GRANULE, () => 2 * GRANULE + 512),
    false,
  );
  assert.deepEqual(copied, [2 * GRANULE]);
  assert.deepEqual(due.nextDirty(GRANULE, 8 * GRANULE), { offset: 3 * GRANULE, lengthBytes: 5 * GRANULE });
});

test('a last granule that the end of the disk cuts is whole', () => {
  const size = 2 * GRANULE + 512;
  const { gate, due, copied } = gateOver(size);
  assert.equal(
    gate.tryCopy(GRANULE, size - GRANULE, () => size - GRANULE),
    true,
  );
  assert.deepEqual(copied, [size - GRANULE]);
  assert.equal(due.nextDirty(GRANULE, size), undefined);
});

test('where something is copied already, or is on its way, nothing is attempted', async () => {
  const { gate, due } = gateOver(4 * GRANULE);
  const attempt = (): number => assert.fail('attempted');
  due.reset(2 * GRANULE, GRANULE);
  assert.equal(gate.tryCopy(GRANULE, 2 * GRANULE, attempt), false);
  const copying = gate.copy(0, GRANULE);
  assert.equal(gate.tryCopy(0, GRANULE, attempt), false);
  await copying;
  gate.giveUp();
  assert.equal(gate.tryCopy(3 * GRANULE, GRANULE, attempt), false);
});

test('who reads the point in time does not wait for what is on its way to the target', async () => {
  const arrives = deferred();
  const { gate, due } = gateOver(4 * GRANULE, arrives.promise);
  const change = { kind: 'discard', offset: 0, lengthBytes: GRANULE } as const;
  let [isChanged, holder] = [false, 'nobody'];
  const changing = gate.run(change, async () => void (isChanged = true));
  await gate.readFirst(0, GRANULE, async (found) => void (holder = found));
  assert.equal(holder, 'file');

  const reading = deferred();
  const read = gate.readFirst(0, GRANULE, () => reading.promise);
  arrives.resolve();
  for (let i = 0; i < 20; i++) await new Promise(setImmediate);
  assert.equal(isChanged, false, 'the reader reads what is about to be changed');
  assert.equal(due.isDirty(0), true);
  reading.resolve();
  await Promise.all([read, changing]);
  assert.equal(isChanged, true);
  await gate.readFirst(0, GRANULE, async (found) => void (holder = found));
  assert.equal(holder, 'target');
});

test('what is on its way when the point in time is given up is not taken for copied', async () => {
  const arrives = deferred();
  const { gate, due, copied } = gateOver(4 * GRANULE, arrives.promise);
  const copying = gate.copy(0, 2 * GRANULE);
  await new Promise(setImmediate);
  gate.giveUp();
  arrives.resolve();
  await copying;
  assert.deepEqual(copied, []);
  assert.equal(due.nextClean(0), 4 * GRANULE);
});
