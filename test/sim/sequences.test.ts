import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { test } from 'node:test';
import { type Kind, KINDS, proveSequence } from './sequences.js';

/** A sample; `npm run proof sequences` is all of them. */
const SAMPLE = 5;
/** Of the changes of files, one in so many. */
const EVERY = 3;

test(
  'each kind of change leaves what was durable, wherever the power goes',
  { timeout: 300_000 },
  async () => {
    for (const kind of KINDS) assert.ok((await proveSequence([kind], 1, EVERY)) > 0, kind);
  },
);

test(`${SAMPLE} sequences of three, drawn anew each time`, { timeout: 300_000 }, async () => {
  for (let i = 0; i < SAMPLE; i++) {
    const kinds = Array.from({ length: 3 }, (): Kind => KINDS[randomInt(KINDS.length)] ?? 'write');
    await proveSequence(kinds, randomInt(1, 2 ** 31), EVERY);
  }
});

test('a flush that does nothing is found out', async () => {
  await assert.rejects(proveSequence(['write', 'flush', 'write'], 1, 1, { dropsFlushes: true }));
});
