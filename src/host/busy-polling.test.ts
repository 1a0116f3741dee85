import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BusyPolling } from './busy-polling.js';

/** A loop of which each round takes a microsecond; answers how many it went without sleeping. */
function bench(): { polling: BusyPolling; sleep: (ms: number) => void; rounds: (most: number) => number } {
  let nowMs = 1000;
  let next: (() => void) | undefined;
  const polling = new BusyPolling({ nowMs: () => nowMs, nextRound: (callback) => (next = callback) });
  const rounds = (most: number): number => {
    let count = 0;
    for (; next && count < most; count++) {
      const callback = next;
      next = undefined;
      nowMs += 0.001;
      callback();
    }
    return count;
  };
  return { polling, sleep: (ms) => (nowMs += ms), rounds };
}

test('who is heard from once is not looked for', () => {
  const { polling, rounds, sleep } = bench();
  polling.came();
  assert.equal(rounds(1000), 0);
  sleep(10);
  polling.came();
  assert.equal(rounds(1000), 0);
});

test('in a conversation the loop stays awake for a moment after each word, no longer', () => {
  const { polling, rounds, sleep } = bench();
  polling.came();
  sleep(0.1);
  polling.came();
  for (let i = 0; i < 1000; i++) {
    assert.equal(rounds(20), 20);
    polling.came();
  }
  assert.ok(rounds(1000) <= 61);
  assert.equal(rounds(1000), 0);
});

test('looking in vain ends, and is tried again after a while', () => {
  const { polling, rounds, sleep } = bench();
  let looked = 0;
  for (let i = 0; i < 300; i++) {
    polling.came();
    if (rounds(1000) > 0) looked++;
    sleep(0.1);
  }
  assert.ok(looked >= 8 && looked < 40, `${looked} times`);
});

test('a thousand words a second are no conversation: nothing is spent on them', () => {
  const { polling, rounds, sleep } = bench();
  for (let i = 0; i < 1000; i++) {
    polling.came();
    assert.equal(rounds(1000), 0);
    sleep(1);
  }
});
