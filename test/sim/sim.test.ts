import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runSeed } from './scenario.js';

const SEEDS = 18;
/** A full disk that tells at a flush, which came before the table of a durable bitmap could be read. */
const FAILED_ONCE = [1176980813];

test(`${SEEDS} simulated machines: jobs, faults and power losses leave every disk right`, async () => {
  const seeds = [...Array.from({ length: SEEDS }, (_, i) => i + 1), ...FAILED_ONCE];
  for (const seed of seeds) {
    const { failure } = await runSeed(seed);
    assert.equal(
      failure,
      undefined,
      failure && `npm run sim -- --seed ${seed}\n${failure.trace.slice(-40).join('\n')}\n${failure.message}`,
    );
  }
});

test('a seed decides all that happens', async () => {
  const traceOf = async (): Promise<readonly string[]> => {
    const lines: string[] = [];
    await runSeed(7, { onTrace: (line) => lines.push(line) });
    return lines;
  };
  const first = await traceOf();
  assert.ok(first.length > 100);
  assert.deepEqual(await traceOf(), first);
});
