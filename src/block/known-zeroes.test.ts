import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../host/simulated-random.js';
import { KnownZeroes } from './known-zeroes.js';

const UNITS = 24;

interface Change {
  offset: number;
  lengthBytes: number;
  isZero: boolean;
}

/** A disk of bytes: what is asked of it is done, and answered, some time afterwards. */
class SlowDisk {
  readonly #isZero = Array.from({ length: UNITS }, () => true);
  readonly #changes: Change[] = [];
  /** Answers on their way. */
  readonly #answers: Array<{ offset: number; lengthBytes: number; connection: number }> = [];
  readonly #random: SeededRandom;
  readonly known = new KnownZeroes();
  connection = 0;

  constructor(seed: number) {
    this.#random = new SeededRandom(seed);
    for (let i = 0; i < UNITS; i++) this.#isZero[i] = this.#random.below(8) > 0;
  }

  #begin(): void {
    const offset = this.#random.below(UNITS);
    const lengthBytes = 1 + this.#random.below(Math.min(3, UNITS - offset));
    this.known.changes(offset, lengthBytes);
    this.#changes.push({ offset, lengthBytes, isZero: this.#random.below(3) === 0 });
  }

  #land(): void {
    const [change] = this.#changes.splice(this.#random.below(this.#changes.length + 1), 1);
    if (change) this.#isZero.fill(change.isZero, change.offset, change.offset + change.lengthBytes);
  }

  #look(): void {
    const offset = this.#random.below(UNITS);
    let end = offset;
    while (end < UNITS && this.#isZero[end]) end++;
    if (end > offset) this.#answers.push({ offset, lengthBytes: end - offset, connection: this.connection });
  }

  #answer(): void {
    const [answer] = this.#answers.splice(this.#random.below(this.#answers.length + 1), 1);
    if (answer) this.known.learn(answer.offset, answer.lengthBytes, answer.connection);
  }

  /** What was changed at any time may be as it was before. */
  #lose(): void {
    this.connection++;
    this.#changes.length = 0;
    for (let i = 0; i < UNITS; i++) if (this.#random.below(4) === 0) this.#isZero[i] = false;
  }

  step(): void {
    const acts = [() => this.#begin(), () => this.#land(), () => this.#look(), () => this.#answer()];
    const act = acts[this.#random.below(acts.length)];
    if (this.#random.below(60) === 0) this.#lose();
    else act?.();
  }

  mayBeData(unit: number): boolean {
    const isBeingChanged = this.#changes.some(
      ({ offset, lengthBytes }) => offset <= unit && unit < offset + lengthBytes,
    );
    return isBeingChanged || this.#isZero[unit] !== true;
  }
}

test('what is known is zeroes, however answers and changes pass one another, and losses come between', () => {
  let covered = 0;
  for (let seed = 1; seed <= 400; seed++) {
    const disk = new SlowDisk(seed);
    for (let step = 0; step < 100; step++) {
      disk.step();
      for (let unit = 0; unit < UNITS; unit++) {
        if (!disk.known.covers(unit, 1, disk.connection)) continue;
        covered++;
        assert.equal(disk.mayBeData(unit), false, `unit ${unit} after step ${step} of seed ${seed}`);
      }
    }
  }
  assert.ok(covered > 10_000, `only ${covered} units were known`);
});

test('one answer serves all the gaps of a copy that goes on in order', () => {
  const known = new KnownZeroes();
  known.changes(0, 10);
  known.changes(20, 10);
  known.learn(10, 90, 0);
  assert.equal(known.covers(10, 10, 0), false, 'it was asked amid what was on its way');
  for (let at = 30; at < 90; at += 20) {
    assert.ok(known.covers(at, 10, 0));
    known.changes(at + 10, 10);
    assert.equal(known.covers(at, 20, 0), false);
  }
  assert.equal(known.covers(90, 11, 0), false, 'more than was asked');
  assert.equal(known.covers(90, 10, 1), false, 'another connection');
});
