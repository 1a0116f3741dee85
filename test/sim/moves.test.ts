import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runMoves } from './moves.js';

const SEEDS = 60;

test(`${SEEDS} moves, cut and killed anywhere: one end has the machine, and the disk is right`, async () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const failure = await runMoves(seed);
    const how = `node --import tsx test/sim/moves-main.ts --seed ${seed}`;
    assert.equal(failure, undefined, failure && `${how}\n${failure.trace.join('\n')}\n${failure.message}`);
  }
});
