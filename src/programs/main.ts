import { BlockError } from '../base/error.js';
import { outliveOutput } from './output.js';

/** A subcommand gives the program's exit status. Each is loaded only when it is asked for. */
interface Subcommand {
  summary: string;
  /** `program`: by which name it speaks of itself. */
  run(args: string[], program: string): Promise<number>;
}

const SUBCOMMANDS: Readonly<Record<string, Subcommand>> = {
  demo: {
    summary: 'build a chain, write to it as a guest and reshape it live',
    run: async (args) => (await import('./demo/main.js')).demoMain(args),
  },
  run: {
    summary: "serve disks as a machine's, with QEMU's command line and QMP",
    run: async (args, program) => (await import('./run/main.js')).runMain(args, 'machine', program),
  },
  'storage-daemon': {
    summary: 'serve disks with the command line of qemu-storage-daemon',
    run: async (args, program) => (await import('./run/main.js')).runMain(args, 'storage-daemon', program),
  },
  shell: {
    summary: 'talk QMP to a running livedisk or QEMU',
    run: async (args) => (await import('./shell/main.js')).shellMain(args),
  },
  show: {
    summary: 'draw the chains of a running livedisk or QEMU, or of an image',
    run: async (args) => (await import('./screen/show.js')).showMain(args),
  },
  top: {
    summary: 'watch the disks and jobs of a running livedisk or QEMU',
    run: async (args) => (await import('./screen/top.js')).topMain(args),
  },
  web: {
    summary: 'serve a page that draws the disks of running livedisks and QEMUs, and changes them',
    run: async (args) => (await import('./web/main.js')).webMain(args),
  },
  img: {
    summary: 'create, inspect, check, convert and compare images (as qemu-img)',
    run: async (args) => (await import('./tools.js')).imgTool(args),
  },
  io: {
    summary: 'read and write images by command (as qemu-io)',
    run: async (args) => (await import('./tools.js')).ioTool(args),
  },
  nbd: {
    summary: 'serve an image over NBD (as qemu-nbd)',
    run: async (args) => (await import('./tools.js')).nbdTool(args),
  },
  launchers: {
    summary: 'write scripts named qemu-* that start livedisk into a folder',
    run: async (args) => (await import('./launchers.js')).launchersMain(args, Object.keys(SUBCOMMANDS)),
  },
};

function usage(): string {
  const lines = Object.entries(SUBCOMMANDS).map(([name, { summary }]) => `  ${name.padEnd(16)}${summary}\n`);
  return `usage: livedisk COMMAND [ARGUMENTS]\n\n${lines.join('')}\nlivedisk COMMAND --help tells more.\n`;
}

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
    process.stdout.write('livedisk 0.1.0\n');
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
  .catch((error: unknown) => {
    if (!(error instanceof BlockError)) throw error;
    process.stderr.write(
      `${program}: ${error.message}\n${error.hint === undefined ? '' : `${error.hint}\n`}`,
    );
    return 1;
  })
  .then((status) => void (process.exitCode = status));
