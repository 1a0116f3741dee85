import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { type PointKinds, runPoints } from './point-runs.js';
import { Watchdog } from './watchdog.js';

/** Time of the processor that a seed may take. */
const LONGEST_SEED_SECONDS = 60;

/**
 * `--seed N` runs one seed, with a trace where it fails; `--seeds N` so many from there on, or from a random one; `--all` goes
 * on after a failure. `--kinds foreign,crashes,managers` or `none`: what happens in them, which is drawn otherwise.
 */
async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      ...{ seed: { type: 'string' }, seeds: { type: 'string' } },
      ...{ all: { type: 'boolean' }, kinds: { type: 'string' } },
    },
  });
  const first = values.seed === undefined ? randomInt(1, 2 ** 31) : Number(values.seed);
  const count = Number(values.seeds ?? 1);
  const kinds = values.kinds?.split(',');
  const only: Partial<PointKinds> = {};
  for (const kind of ['foreign', 'crashes', 'managers'] as const)
    if (kinds) only[kind] = kinds.includes(kind);
  const watchdog = new Watchdog(LONGEST_SEED_SECONDS);
  let failed = 0;
  for (let seed = first; seed < first + count; seed++) {
    watchdog.begin(seed);
    const failure = await runPoints(seed, only);
    if (!failure) continue;
    failed++;
    if (values.all === true)
      console.error(`points: seed ${seed} failed: ${failure.message.split('\n')[0] ?? ''}`);
    else {
      console.error(`${failure.trace.join('\n')}\n\npoints: seed ${seed} failed: ${failure.message}`);
      break;
    }
  }
  await watchdog.end();
  if (failed === 0) console.log(`${count} runs from ${first} passed`);
  return failed === 0 ? 0 : 1;
}

process.exitCode = await main();
