import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { measureResent, RESENT_KINDS } from './resent.js';

const DISK_MIB = 4096;
const CUTS = 100;
const MOST_SHARE = 0.05;

/** `--seed N` and `--seeds N`: each is a mirror and a backup of 4 GiB with 100 cuts. */
async function main(): Promise<number> {
  const { values } = parseArgs({ options: { seed: { type: 'string' }, seeds: { type: 'string' } } });
  const first = values.seed === undefined ? randomInt(1, 2 ** 31) : Number(values.seed);
  const count = Number(values.seeds ?? 1);
  let [cuts, againBytes, diskBytes] = [0, 0, 0];
  for (let seed = first; seed < first + count; seed++)
    for (const kind of RESENT_KINDS) {
      const one = await measureResent(kind, seed, DISK_MIB, CUTS);
      if (one.againBytes > MOST_SHARE * one.diskBytes) {
        console.error(`${kind}, seed ${seed}: ${one.againBytes} of ${one.diskBytes} bytes were sent again`);
        return 1;
      }
      cuts += one.cuts;
      againBytes += one.againBytes;
      diskBytes += one.diskBytes;
    }
  console.log(`${cuts} cuts from seed ${first} passed, ${againBytes} of ${diskBytes} bytes sent again`);
  return 0;
}

process.exitCode = await main();
