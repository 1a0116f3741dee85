import { hintOf } from '../base/error.js';
import { outliveOutput } from './output.js';
import { SUBCOMMANDS, usage, VERSION } from './subcommands.js';

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
  const subcommand = Object.hasOwn(SUBCOMMANDS, name) ? SUBCOMMANDS[name] : undefined;
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
void main(args, program)
  .catch(async (error: unknown) => {
    // Loaded only here: most programs talk to no server.
    const { isForPeople } = await import('../wire/qmp/registry.js');
    if (!isForPeople(error)) throw error;
    process.stderr.write(`${program}: ${error.message}\n${hintOf(error)}`);
    return 1;
  })
  .then((status) => void (process.exitCode = status));
