import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createSimulatedHost, SeededRandom } from '../../host/simulated.js';
import { ChunkHashes } from './chunk-hashes.js';

const CHUNK = 512;
/** Some hundred pages of digests, and a last chunk that is shorter. */
const SIZE = 20_000 * CHUNK + 100;

test('what one knows another one goes on with: data, zeroes, what nobody knows, and what was not read back', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    const { compute } = simulation.host;
    const random = new SeededRandom(1);
    const one = new ChunkHashes(compute, SIZE, CHUNK);
    for (let i = 0; i < 60; i++) {
      const first = random.below(one.chunks);
      const offset = first * CHUNK;
      const lengthBytes = Math.min((1 + random.below(200)) * CHUNK, SIZE - offset);
      if (random.below(3) === 0) one.zeroes(offset, lengthBytes);
      else await one.data(offset, Buffer.alloc(lengthBytes, random.below(4)));
      if (random.below(4) === 0) one.unchecked.reset(offset, lengthBytes);
    }
    const other = new ChunkHashes(compute, SIZE, CHUNK);
    other.goOnFrom(one.parts);
    const told = (hashes: ChunkHashes): unknown[] =>
      Array.from({ length: hashes.chunks }, (_, i) => [
        hashes.digestAt(i)?.toString('hex'),
        hashes.isZero(i * CHUNK),
        hashes.unchecked.isDirty(i * CHUNK),
      ]);
    assert.deepEqual(told(other), told(one));
    // It goes on by itself.
    const before = told(one);
    await other.data(0, Buffer.alloc(SIZE - 100, 7));
    assert.deepEqual(told(one), before);
  });
});
