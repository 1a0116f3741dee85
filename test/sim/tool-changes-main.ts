import { parseArgs } from 'node:util';
import { type Command, COMMANDS, proveCommand, proveFaults } from './tool-changes.js';

/** `node --import tsx test/sim/tool-changes-main.ts --seed N --seeds N [--command NAME] [--faults]`. */
const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '1' },
    seeds: { type: 'string', default: '20' },
    command: { type: 'string' },
    faults: { type: 'boolean', default: false },
    verbose: { type: 'boolean', default: false },
  },
});

const commands = values.command === undefined ? COMMANDS : [values.command as Command];
const first = Number(values.seed);
let [runs, deaths, failures] = [0, 0, 0];
for (const command of commands)
  for (let seed = first; seed < first + Number(values.seeds); seed++)
    try {
      const outcome = await (values.faults ? proveFaults : proveCommand)(command, seed);
      runs++;
      deaths += outcome.deaths;
      if (values.verbose) console.log(command, seed, outcome);
    } catch (error) {
      failures++;
      console.error(`${command} ${seed}: ${(error as Error).stack}`);
    }
console.log(`${runs} commands passed, ${deaths} deaths`);
process.exitCode = failures === 0 ? 0 : 1;
