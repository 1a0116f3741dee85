import assert from 'node:assert/strict';
import { test } from 'node:test';
import { partOf } from '../kit/amount.js';
import { type PointKinds, runPoints } from './point-runs.js';

const RUNS = partOf(24);
/** They go to their end, and are several times as long. */
const RUNS_WITHOUT_CRASHES = partOf(12);
/** Known ones; new ones are run by test/sim/points-main.ts. */
const FIRST_SEED = Number(process.env['POINT_RUNS_FROM'] ?? 1);

const KINDS: Readonly<Record<string, PointKinds>> = {
  'points of several disks': { foreign: false, crashes: false, managers: false },
  'kills and power losses': { foreign: false, crashes: true, managers: false },
  'jobs and layers of others': { foreign: true, crashes: false, managers: false },
  'several managers at once, killed anywhere': { foreign: false, crashes: true, managers: true },
  'all of it': { foreign: true, crashes: true, managers: true },
};

for (const [name, kinds] of Object.entries(KINDS))
  test(`${name}: whatever is done, a usable point holds its moment, and no image is left over`, async () => {
    const runs = kinds.crashes ? RUNS : RUNS_WITHOUT_CRASHES;
    for (let seed = FIRST_SEED; seed < FIRST_SEED + runs; seed++) {
      const failure = await runPoints(seed, kinds);
      const how = `node --import tsx test/sim/points-main.ts --seed ${seed} --kinds ${kindsText(kinds)}`;
      assert.equal(failure, undefined, failure && `${how}\n${failure.trace.join('\n')}\n${failure.message}`);
    }
  });

function kindsText(kinds: PointKinds): string {
  const names = Object.entries(kinds).flatMap(([name, is]) => (is ? [name] : []));
  return names.length === 0 ? 'none' : names.join();
}
