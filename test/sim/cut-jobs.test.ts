import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CUT_KINDS, cutJob } from './cut-jobs.js';

const SEEDS = 3;

for (const kind of CUT_KINDS)
  test(`a persisted ${kind} goes on after each power loss, and what it ends with is right`, async () => {
    let resumed = 0;
    for (let seed = 1; seed <= SEEDS; seed++) resumed += await cutJob(kind, seed);
    // A stream is over sooner: what guests write it need not pull up.
    assert.ok(resumed >= (kind === 'stream' ? 2 : SEEDS * 2));
  });
