import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AtOnce } from './at-once.js';

const SEEDS = 60;

test('calls and commands at once, and an end in the middle of them: each is answered, and nothing is left', async () => {
  for (let seed = 0; seed < SEEDS; seed++) {
    const run = new AtOnce(seed);
    await run.run(40);
    assert.deepEqual(run.unexpected, [], `seed ${seed}`);
  }
});
