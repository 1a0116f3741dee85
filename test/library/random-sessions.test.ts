import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RandomSessions } from './random-sessions.js';

const SEEDS = 20;
const STEPS = 60;

test('clients with sessions and without: what goes with a session is what was made under it', async () => {
  let undone = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const run = new RandomSessions(seed);
    await run.run(STEPS).catch((error: unknown) => {
      throw new Error(`seed ${seed}:\n${run.log.join('\n')}`, { cause: error });
    });
    undone += run.undone;
  }
  assert.ok(undone > 2 * SEEDS, `sessions had ${undone} things`);
});
