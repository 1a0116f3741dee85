import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { runMoves } from './moves.js';
import { Watchdog } from './watchdog.js';

/** Time of the processor that a seed may take. */
const LONGEST_SEED_SECONDS = 60;

/** `--seed N` runs one seed, with a trace where it fails; `--seeds N` so many from there on, or from a random one. */
async function main(): Promise<number> {
  const { values } = parseArgs({ options: { seed: { type: 'string' }, seeds: { type: 'string' } } });
  const first = values.seed === undefined ? randomInt(1, 2 ** 31) : Number(values.seed);
  const count = Number(values.seeds ?? 1);
  const watchdog = new Watchdog(LONGEST_SEED_SECONDS);
  for (let seed = first; seed < first + count; seed++) {
    watchdog.begin(seed);
    const failure = await runMoves(seed);
    if (!failure) continue;
    console.error(`${failure.trace.join('\n')}\n\nmoves: seed ${seed} failed: ${failure.message}`);
    await watchdog.end();
    return 1;
  }
  await watchdog.end();
  console.log(`${count} moves from ${first} passed`);
  return 0;
}

process.exitCode = await main();
