import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readAnswers } from '../../src/view/answers.js';
import { buildView } from '../../src/view/build.js';
import { histogramSince, percentileMs, readHistogram } from '../../src/view/histogram.js';
import { planAction } from '../../src/view/plan/plan.js';
import { type DiskRates, Rates } from '../../src/view/rates.js';
import { EngineBed } from '../engine/engine-bed.js';

const boundariesNs = [1e6, 2e6, 5e6];

test('percentiles are the upper ends of buckets, and the lower one of the last', () => {
  const of = (...bins: number[]): Array<number | undefined> =>
    [0.5, 0.99].map((part) => percentileMs({ boundariesNs, bins }, part));
  assert.deepEqual(of(0, 0, 0, 0), [undefined, undefined]);
  assert.deepEqual(of(1, 0, 0, 0), [1, 1]);
  assert.deepEqual(of(98, 1, 1, 0), [1, 2]);
  assert.deepEqual(of(50, 49, 0, 1), [1, 2]);
  assert.deepEqual(of(49, 49, 0, 2), [2, 5]);
  assert.deepEqual(percentileMs({ boundariesNs: [], bins: [3] }, 0.5), undefined);
});

test('what was counted between two looks; after a new beginning, all', () => {
  const at = (...bins: number[]): { boundariesNs: number[]; bins: number[] } => ({ boundariesNs, bins });
  assert.deepEqual(histogramSince(at(1, 2, 3, 4), at(2, 2, 5, 4)).bins, [1, 0, 2, 0]);
  assert.deepEqual(histogramSince(undefined, at(2, 2, 5, 4)).bins, [2, 2, 5, 4]);
  assert.deepEqual(histogramSince(at(9, 9, 9, 9), at(1, 0, 0, 0)).bins, [1, 0, 0, 0]);
  assert.deepEqual(histogramSince({ boundariesNs: [1], bins: [1, 1] }, at(2, 2, 5, 4)).bins, [2, 2, 5, 4]);
  for (const broken of [undefined, null, 1, {}, { boundaries: [1], bins: [1] }, { bins: [] }])
    assert.equal(readHistogram(broken), undefined);
});

test('a server counts once the plan was run, until it is taken back', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const rates = new Rates();
  let ms = 0;
  const look = async (): Promise<{ disks: ReadonlyMap<string, DiskRates>; isCounted: boolean }> => {
    const view = buildView(await readAnswers((command, args) => bed.execute(command, args)));
    const { disks } = rates.look(view, (ms += 1000));
    return { disks, isCounted: view.users[0]?.statistics?.read.latencies !== undefined };
  };
  const run = async (isOn: boolean): Promise<void> => {
    const view = buildView(await readAnswers((command, args) => bed.execute(command, args)));
    const plan = planAction(view, { kind: 'percentiles', isOn });
    for (const { execute, arguments: args } of plan.commands) await bed.execute(execute, args);
    assert.deepEqual(plan.takenBackBy, { kind: 'percentiles', isOn: !isOn });
  };
  await look();
  await bed.guest('read 0 4k');
  const before = await look();
  assert.equal(before.isCounted, false);
  const [plain] = before.disks.values();
  assert.ok(plain?.readLatencyMs !== undefined && plain.readPercentiles === undefined);
  await run(true);
  assert.equal((await look()).isCounted, true);
  for (let i = 0; i < 10; i++) await bed.guest('read 0 4k');
  const [counted] = (await look()).disks.values();
  const { halfMs = 0, most99Ms = 0 } = counted?.readPercentiles ?? {};
  assert.ok(halfMs > 0 && most99Ms >= halfMs, `${halfMs} ${most99Ms}`);
  assert.equal(counted?.writePercentiles, undefined);
  await run(false);
  assert.equal((await look()).isCounted, false);
});
