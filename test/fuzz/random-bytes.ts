import type { SeededRandom } from '../../src/host/simulated-random.js';

export function pick<T>(random: SeededRandom, values: readonly T[]): T {
  return values[random.below(values.length)] as T;
}

/** Numbers at which something may go wrong, and any others. */
export function oddNumber(random: SeededRandom, mostBytes: number): number {
  const edges = [0, 1, 511, 512, 4095, 4096, 65_536, mostBytes - 1, mostBytes, mostBytes + 1];
  if (random.chance(0.6)) return Math.max(0, pick(random, edges));
  return random.below(random.chance(0.8) ? mostBytes : 2 ** 53 - 1);
}

/** The same bytes, or some of them changed, cut out or put in. */
export function damaged(random: SeededRandom, valid: Buffer, probability: number): Buffer {
  if (!random.chance(probability)) return valid;
  const at = random.below(valid.length + 1);
  const bytes = random.bytes(random.below(12));
  switch (random.below(4)) {
    case 0:
      return valid.subarray(0, at);
    case 1:
      return Buffer.concat([valid.subarray(0, at), bytes, valid.subarray(at)]);
    case 2:
      return Buffer.concat([valid.subarray(0, at), valid.subarray(at + bytes.length)]);
    default: {
      const changed = Buffer.from(valid);
      changed.set(bytes.subarray(0, changed.length - Math.min(at, changed.length)), at);
      return changed;
    }
  }
}
