import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SyncWrites, TurnBudget } from './sync-writes.js';

test('one slow write sends the next ones away for a moment, slow ones in a row for longer', () => {
  const writes = new SyncWrites(new TurnBudget(Infinity));
  writes.wrote(0, 10);
  assert.ok(!writes.mayWrite(29));
  assert.ok(writes.mayWrite(30));
  writes.wrote(30, 40);
  assert.ok(!writes.mayWrite(119));
  assert.ok(writes.mayWrite(120));
  for (let time = 120; time < 2000; time += 500) writes.wrote(time, time + 10);
  assert.ok(!writes.mayWrite(1630 + 319), 'no longer than a third of a second');
  assert.ok(writes.mayWrite(1630 + 320));
});

test('quick writes make up for slow ones', () => {
  const writes = new SyncWrites(new TurnBudget(Infinity));
  writes.wrote(0, 10);
  for (let i = 0; i < 64; i++) writes.wrote(30 + i, 30 + i);
  writes.wrote(100, 110);
  assert.ok(writes.mayWrite(130));
});

test('all files together have one budget a turn', async () => {
  const budget = new TurnBudget(4);
  const [one, other] = [new SyncWrites(budget), new SyncWrites(budget)];
  one.wrote(0, 2);
  assert.ok(other.mayWrite(2));
  other.wrote(2, 4);
  assert.ok(!one.mayWrite(4));
  await new Promise((resolve) => setImmediate(resolve));
  assert.ok(one.mayWrite(4));
});
