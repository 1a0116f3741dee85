/** As package.json has it. */
export const VERSION = '0.1.0';

/** A subcommand gives the program's exit status. Each is loaded only when it is asked for. */
export interface Subcommand {
  summary: string;
  /** It ends as soon as its work is done, whoever is still connected. */
  serves?: true;
  /** `program`: by which name it speaks of itself. */
  run(args: string[], program: string): Promise<number>;
}

export const SUBCOMMANDS: Readonly<Record<string, Subcommand>> = {
  demo: {
    summary: 'build a chain, write to it as a guest and reshape it live',
    run: async (args) => (await import('./demo/main.js')).demoMain(args),
  },
  run: {
    summary: "serve disks as a machine's, with QEMU's command line and QMP",
    serves: true,
    run: async (args, program) => (await import('./run/main.js')).runMain(args, 'machine', program),
  },
  machine: {
    summary: 'run a machine of QEMU whose disks are served here, with one command line and one QMP',
    serves: true,
    run: async (args, program) => {
      const { MACHINE_USAGE } = await import('./machine/help.js');
      if (/^--?h(elp)?$/.test(args[0] ?? '')) return print(MACHINE_USAGE);
      const { withMachineSwitch } = await import('./machine/machine.js');
      return (await import('./run/main.js')).runMain(withMachineSwitch(args), 'machine', program);
    },
  },
  'storage-daemon': {
    summary: 'serve disks with the command line of qemu-storage-daemon',
    serves: true,
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
  points: {
    summary: 'points in time of disks: list, create, delete, go back; running or at rest',
    run: async (args) => (await import('./points/main.js')).pointsMain(args),
  },
  move: {
    summary: 'move a running machine with its disks to another livedisk',
    run: async (args) => (await import('./move/main.js')).moveMain(args),
  },
  web: {
    summary: 'serve a page that draws the disks of running livedisks and QEMUs, and changes them',
    serves: true,
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

/** The one that a command line begins with. */
export function subcommandOf([name = '']: readonly string[]): Subcommand | undefined {
  return Object.hasOwn(SUBCOMMANDS, name) ? SUBCOMMANDS[name] : undefined;
}

function print(text: string): number {
  process.stdout.write(text);
  return 0;
}

export function usage(): string {
  const lines = Object.entries(SUBCOMMANDS).map(([name, { summary }]) => `  ${name.padEnd(16)}${summary}\n`);
  return `usage: livedisk COMMAND [ARGUMENTS]\n\n${lines.join('')}\nlivedisk COMMAND --help tells more.\n`;
}
