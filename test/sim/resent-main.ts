import { randomInt } from 'node:crypto';
import { parseArgs } from 'node:util';
import { LAYERS_KINDS, measureResentLayers } from './resent-layers.js';
import { measureResent, RESENT_KINDS } from './resent.js';

const DISK_MIB = 4096;
const CUTS = 100;
/** Of qcow2 layers, which take several flushes to be durable, more is on its way. */
const MOST_SHARES = { mirror: 0.05, backup: 0.05, commit: 0.1, stream: 0.1 };

/** `--seed N` and `--seeds N`: each is a mirror, a backup, a commit and a stream of 4 GiB with 100 cuts. */
async function main(): Promise<number> {
  const { values } = parseArgs({ options: { seed: { type: 'string' }, seeds: { type: 'string' } } });
  const first = values.seed === undefined ? randomInt(1, 2 ** 31) : Number(values.seed);
  const count = Number(values.seeds ?? 1);
  let [cuts, againBytes, diskBytes] = [0, 0, 0];
  for (let seed = first; seed < first + count; seed++)
    for (const kind of [...RESENT_KINDS, ...LAYERS_KINDS]) {
      const one =
        kind === 'commit' || kind === 'stream'
          ? await measureResentLayers(kind, seed, DISK_MIB, CUTS)
          : await measureResent(kind, seed, DISK_MIB, CUTS);
      if (one.againBytes > MOST_SHARES[kind] * one.diskBytes) {
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
