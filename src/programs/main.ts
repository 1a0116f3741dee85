import { AssertionFailure } from '../base/assert.js';
import { hintOf } from '../base/error.js';
import { printableLines } from '../view/words.js';
import { isForPeople } from '../wire/qmp/qmp-error.js';
import { tellAssertionFailures, tellDeadEnd } from './internal-errors.js';
import { outliveOutput } from './output.js';
import { subcommandOf, usage, VERSION } from './subcommands.js';

async function main(args: string[], program: string): Promise<number> {
  if (process.platform !== 'linux') {
    process.stderr.write(`livedisk: only Linux is supported, not ${process.platform}\n`);
    return 1;
  }
  const [name, ...rest] = args;
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(usage());
    return name === undefined ? 1 : 0;
  }
  if (name === '--version' || name === '-V') {
    process.stdout.write(`livedisk ${VERSION}\n`);
    return 0;
  }
  const subcommand = subcommandOf(args);
  if (!subcommand) {
    process.stderr.write(`livedisk: unknown command '${name}'\n\n${usage()}`);
    return 1;
  }
  return subcommand.run(rest, program);
}

outliveOutput();
/** Launchers say in whose place the program stands: --as NAME COMMAND ... */
function splitName(words: string[]): { program: string; args: string[] } {
  const [first, name, ...rest] = words;
  return first === '--as' && name !== undefined
    ? { program: name, args: rest }
    : { program: 'livedisk', args: words };
}

const { program, args } = splitName(process.argv.slice(2));
const tell = (text: string): void => void process.stderr.write(text);
tellAssertionFailures(program, tell);
const isDone = tellDeadEnd(program, process, tell);
// Clients that stay connected, standard input, and calls that the kernel holds would keep the process alive. Its files may be
// others by the time of its end.
const exit = subcommandOf(args)?.serves === true ? import('../host/exit.js') : undefined;
void main(args, program)
  .catch((error: unknown) => {
    // It has been told.
    if (error instanceof AssertionFailure) return 1;
    if (!isForPeople(error)) throw error;
    tell(printableLines(`${program}: ${error.message}\n${hintOf(error)}`));
    return 1;
  })
  .then(async (status) => {
    isDone();
    process.exitCode = status;
    (await exit)?.exitNow();
  });
