import { parseArgs } from 'node:util';
import { runSeed } from './scenario.js';

/** `--seed N` runs one seed, `--seconds N [--seed FIRST]` as many as fit, `--seeds N` so many. */
async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string' },
      seconds: { type: 'string' },
      seeds: { type: 'string' },
      trace: { type: 'string' },
    },
  });
  const first = wholeNumber(values.seed ?? '1');
  const count =
    values.seeds !== undefined
      ? wholeNumber(values.seeds)
      : values.seconds === undefined && values.seed !== undefined
        ? 1
        : Infinity;
  const seconds =
    values.seconds === undefined ? (count === Infinity ? 60 : Infinity) : wholeNumber(values.seconds);
  const options = values.trace === undefined ? {} : { traceLines: wholeNumber(values.trace) };
  const began = performance.now();
  let done = 0;
  while (done < count && performance.now() - began < seconds * 1000) {
    const failure = await runSeed(first + done, options);
    if (failure) {
      console.error(failure.trace.join('\n'));
      console.error(`\nseed ${failure.seed} failed: ${failure.message}`);
      console.error(`again: npm run sim -- --seed ${failure.seed}`);
      return 1;
    }
    done++;
  }
  const took = ((performance.now() - began) / 1000).toFixed(1);
  console.log(`${done} seeds from ${first} passed in ${took} s`);
  return 0;
}

function wholeNumber(text: string): number {
  if (!/^\d+$/.test(text)) throw new Error(`'${text}' is not a whole number`);
  return Number(text);
}

process.exitCode = await main();
