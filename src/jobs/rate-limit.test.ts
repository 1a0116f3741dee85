import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RateLimit } from './rate-limit.js';

/** Spends `piece` bytes whenever the limit lets; answers how many bytes by `endMs`. */
function spentBy(limit: RateLimit, piece: number, fromMs: number, endMs: number): number {
  let spent = 0;
  for (let now = fromMs; now < endMs;) {
    const delay = limit.delayMs(now);
    now += delay;
    if (delay > 0) continue;
    limit.spend(piece);
    spent += piece;
  }
  return spent;
}

test('a limit is kept over time, to a slice of 100 ms and a piece', () => {
  for (const piece of [1, 700, 5000]) {
    const limit = new RateLimit(10_000);
    assert.equal(limit.sliceBytes, 1000);
    const spent = spentBy(limit, piece, 5000, 15_000);
    assert.ok(spent >= 100_000 - piece && spent <= 100_000 + 1000 + piece, `${spent} in pieces of ${piece}`);
  }
});

test('a limit is kept within each slice', () => {
  const spent = spentBy(new RateLimit(10_000), 100, 5000, 5100);
  assert.ok(spent <= 1100, `${spent}`);
});

test('time without work saves nothing up', () => {
  const limit = new RateLimit(10_000);
  assert.equal(limit.delayMs(0), 0);
  const spent = spentBy(limit, 100, 60_000, 61_000);
  assert.ok(spent <= 11_000, `${spent}`);
});

test('a new limit forgets what was overdrawn; none is never waited for', () => {
  const limit = new RateLimit(1);
  limit.spend(1_000_000);
  assert.ok(limit.delayMs(0) > 1_000_000);
  limit.bytesPerSecond = 1000;
  assert.equal(limit.delayMs(0), 0);
  limit.spend(1_000_000);
  limit.bytesPerSecond = 0;
  assert.equal(limit.delayMs(0), 0);
  assert.equal(limit.sliceBytes, Infinity);
});
