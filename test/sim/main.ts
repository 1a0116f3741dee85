import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { runSeed } from './scenario.js';
import { Watchdog } from './watchdog.js';

/** Time of the processor that a seed may take: the slowest ones take some seconds. */
const LONGEST_SEED_SECONDS = 120;

/**
 * `--seed N` runs one seed; `--seconds N` as many as fit, `--seeds N` so many, from `--seed FIRST` on or from a random
 * one.
 */
async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string' },
      seconds: { type: 'string' },
      seeds: { type: 'string' },
      trace: { type: 'string' },
    },
  });
  const first = values.seed === undefined ? randomInt(1, 2 ** 31) : wholeNumber(values.seed);
  const count =
    values.seeds !== undefined
      ? wholeNumber(values.seeds)
      : values.seconds === undefined && values.seed !== undefined
        ? 1
        : Infinity;
  const seconds =
    values.seconds === undefined ? (count === Infinity ? 60 : Infinity) : wholeNumber(values.seconds);
  const options = values.trace === undefined ? {} : { traceLines: wholeNumber(values.trace) };
  console.log(`seeds from ${first}`);
  const watchdog = new Watchdog(LONGEST_SEED_SECONDS);
  const began = performance.now();
  let done = 0;
  let requests = 0;
  while (done < count && performance.now() - began < seconds * 1000) {
    watchdog.begin(first + done);
    const { failure, guestRequests } = await runSeed(first + done, options);
    if (failure) {
      console.error(failure.trace.join('\n'));
      console.error(`\nseed ${failure.seed} failed: ${failure.message}`);
      console.error(`again: npm run sim -- --seed ${failure.seed}`);
      await watchdog.end();
      return 1;
    }
    done++;
    requests += guestRequests;
  }
  await watchdog.end();
  const took = ((performance.now() - began) / 1000).toFixed(1);
  console.log(`${done} seeds from ${first} passed in ${took} s, ${requests} guest requests`);
  return 0;
}

function wholeNumber(text: string): number {
  if (!/^\d+$/.test(text)) throw new Error(`'${text}' is not a whole number`);
  return Number(text);
}

process.exitCode = await main();
