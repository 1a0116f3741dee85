import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FairQueue } from './compute-queue.js';

test('users take turns, each in its order, and items can be taken back', () => {
  const queue = new FairQueue<string>();
  const [a, b, c] = [{}, {}, {}];
  for (const item of ['a1', 'a2', 'a3', 'a4']) queue.add(a, item);
  for (const item of ['b1', 'b2']) queue.add(b, item);
  queue.add(c, 'c1');
  assert.deepEqual([queue.count, queue.countOf(a), queue.countOf(c), queue.countOf({})], [7, 4, 1, 0]);
  assert.equal(queue.remove(a, 'a3'), true);
  assert.equal(queue.remove(a, 'a3'), false);
  assert.equal(queue.remove(b, 'a1'), false);
  const taken = Array.from({ length: 3 }, () => queue.take());
  queue.add(c, 'c2');
  for (let next = queue.take(); next !== undefined; next = queue.take()) taken.push(next);
  assert.deepEqual(taken, ['a1', 'b1', 'c1', 'a2', 'b2', 'c2', 'a4']);
  assert.equal(queue.count, 0);
});
