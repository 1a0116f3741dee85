import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryBudget, type MemoryHolder } from './memory-budget.js';

class Holder implements MemoryHolder {
  heldBytes = 0;
  /** What somebody is using. */
  usedBytes = 0;
  readonly #budget: MemoryBudget;

  constructor(budget: MemoryBudget) {
    this.#budget = budget;
  }

  take(bytes: number): void {
    this.heldBytes += bytes;
    this.#budget.took(this, bytes);
  }

  letGo(bytes: number): void {
    const gone = Math.min(bytes, this.heldBytes - this.usedBytes);
    this.#budget.gave(gone);
    this.heldBytes -= gone;
  }
}

test('who has not taken memory for longest lets go first, and no more than is needed', () => {
  const budget = new MemoryBudget(10);
  const [a, b, c] = [new Holder(budget), new Holder(budget), new Holder(budget)];
  a.take(4);
  b.take(4);
  a.take(1);
  c.take(3);
  assert.deepEqual([a.heldBytes, b.heldBytes, c.heldBytes, budget.bytes], [5, 2, 3, 10]);
  c.take(4);
  assert.deepEqual([a.heldBytes, b.heldBytes, c.heldBytes, budget.bytes], [3, 0, 7, 10]);
});

test('what is in use stays, whoever else lacks it, and is let go later', () => {
  const budget = new MemoryBudget(10);
  const [a, b] = [new Holder(budget), new Holder(budget)];
  a.take(8);
  a.usedBytes = 6;
  b.take(8);
  assert.deepEqual([a.heldBytes, b.heldBytes, budget.bytes], [6, 8, 14]);
  a.usedBytes = 0;
  b.take(1);
  assert.deepEqual([a.heldBytes, b.heldBytes, budget.bytes], [1, 9, 10]);
});

test('who leaves has nothing in it any more', () => {
  const budget = new MemoryBudget(10);
  const [a, b] = [new Holder(budget), new Holder(budget)];
  a.take(8);
  budget.leave(a);
  budget.leave(b);
  assert.equal(budget.bytes, 0);
  b.take(10);
  assert.deepEqual([a.heldBytes, b.heldBytes], [8, 10]);
});
