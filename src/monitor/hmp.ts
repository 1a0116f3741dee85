import { BlockError } from '../base/error.js';
import type { BlockBackend } from '../block/backend.js';
import type { GuestDevice } from '../attach/device.js';
import { permissionsFor, runIoCommand } from '../programs/io/command.js';
import { VERSION } from '../wire/qmp/version.js';
import { withBackend } from '../block/with-backend.js';
import type { Parts } from './parts.js';
import { findNode } from '../block/find-node.js';
import {
  type HmpArguments,
  HmpSyntaxError,
  type HmpSyntax,
  parseArguments,
  splitWords,
} from './hmp-arguments.js';
import { infoBlock, infoBlockJobs } from './hmp-info.js';
import { cont, quit, stop, type Quitting, type Running } from './run-state.js';

/** What its commands need together. */
type Hmp = Running & Quitting & Parts<'print'>;

export function registerHmp(engine: Hmp & Parts<'command'>): void {
  engine.command('human-monitor-command', async ({ 'command-line': line }) =>
    (await runHmp(engine, line)).replaceAll('\n', '\r\n'),
  );
}

interface HmpCommand {
  name: string;
  alias?: string;
  parameters: string;
  help: string;
  syntax: HmpSyntax;
  run(engine: Hmp, given: HmpArguments): Promise<string> | string;
}

const COMMANDS: readonly HmpCommand[] = [
  {
    name: 'cont',
    alias: 'c',
    parameters: '',
    help: 'resume emulation',
    syntax: {},
    run: (engine) => silent(cont(engine)),
  },
  {
    name: 'help',
    alias: '?',
    parameters: '[cmd]',
    help: 'show the help',
    syntax: { operands: ['optional', 'optional'] },
    run: (_engine, { operands }) => help(operands),
  },
  {
    name: 'info',
    parameters: '[subcommand]',
    help: 'show various information about the system state',
    syntax: {},
    run: () => INFO.map((item) => `info ${item.name} -- ${item.help}\n`).join(''),
  },
  {
    name: 'qemu-io',
    parameters: '[-d] [device] "[command]"',
    help: 'run a qemu-io command on a block device\n\t\t\t-d: [device] is a device ID rather than a drive ID or node name',
    syntax: {
      flags: 'd',
      operands: [{ missing: 'block device name expected' }, { missing: 'string expected' }],
    },
    run: qemuIo,
  },
  {
    name: 'quit',
    alias: 'q',
    parameters: '',
    help: 'quit the emulator',
    syntax: {},
    run: (engine) => silent(quit(engine)),
  },
  {
    name: 'stop',
    alias: 's',
    parameters: '',
    help: 'stop emulation',
    syntax: {},
    run: (engine) => silent(stop(engine)),
  },
];

const INFO: readonly HmpCommand[] = [
  {
    name: 'block',
    parameters: '[-n] [-v] [device]',
    help: 'show info of one block device or all block devices',
    syntax: { flags: 'nv', operands: ['optional'] },
    run: infoBlock,
  },
  {
    name: 'block-jobs',
    parameters: '',
    help: 'show progress of ongoing block device operations',
    syntax: {},
    run: infoBlockJobs,
  },
  {
    name: 'status',
    parameters: '',
    help: 'show the current VM status (running|paused)',
    syntax: {},
    run: infoStatus,
  },
  { name: 'version', parameters: '', help: 'show the version of QEMU', syntax: {}, run: infoVersion },
];

async function silent(work: Promise<void>): Promise<string> {
  await work;
  return '';
}

/** One line of the human monitor; the answer is what it prints. Errors of the command are part of that. */
export async function runHmp(engine: Hmp, line: string): Promise<string> {
  try {
    const words = splitWords(line);
    if (words.length === 0) return '';
    const { command, path, rest } = findCommand(words);
    const name = command.alias === undefined ? command.name : `${command.name}|${command.alias}`;
    return await command.run(engine, parseArguments(rest, command.syntax, { name, path }));
  } catch (error) {
    if (error instanceof HmpSyntaxError) return `${error.message}\n`;
    if (error instanceof BlockError) return `Error: ${error.message}\n`;
    throw error;
  }
}

/** Errors: HmpSyntaxError. */
function findCommand([first = '', second, ...rest]: readonly string[]): {
  command: HmpCommand;
  path: string;
  rest: readonly string[];
} {
  const [list, name, path] =
    first === 'info' && second !== undefined ? [INFO, second, `info ${second}`] : [COMMANDS, first, first];
  const command = list.find((candidate) => candidate.name === name || candidate.alias === name);
  if (!command) throw new HmpSyntaxError(`unknown command: '${path}'`);
  if (list === INFO || second === undefined) return { command, path, rest };
  return { command, path: command.name, rest: [second, ...rest] };
}

function help(words: readonly string[]): string {
  if (words.length === 0) return COMMANDS.map((command) => helpLine(command)).join('');
  return helpLine(findCommand(words).command);
}

function helpLine({ name, alias, parameters, help }: HmpCommand): string {
  return `${name}${alias === undefined ? '' : `|${alias}`} ${parameters} -- ${help}\n`;
}

function infoStatus({ runState }: Parts<'runState'>): string {
  const { status, isRunning } = runState;
  const detail = isRunning || status === 'paused' ? '' : ` (${status})`;
  return `VM status: ${isRunning ? 'running' : 'paused'}${detail}\n`;
}

function infoVersion(): string {
  const { major, minor, micro } = VERSION.qemu;
  return `${major}.${minor}.${micro}${VERSION.package}\n`;
}

/** Prints on the program's standard output, as QEMU does, not into the answer. */
async function qemuIo(
  engine: Parts<'graph' | 'devices' | 'host' | 'print'>,
  { flags, operands }: HmpArguments,
): Promise<string> {
  const [name = '', command = ''] = operands;
  const print = (text: string): void => engine.print(text.replace(/\n$/, ''));
  const run = async (backend: BlockBackend): Promise<string> => {
    await runIoCommand(backend, command, print, { host: engine.host });
    return '';
  };
  if (flags.has('d')) return run(findByPath(engine, name).backend);
  const node = findNode(engine.graph, undefined, name);
  try {
    return await withBackend(engine.graph, node, permissionsFor(command), run);
  } catch (error) {
    // What the command may not do is told as the rest of its output is.
    if (error instanceof BlockError) return `${error.message}\n`;
    throw error;
  }
}

/** virtio0, virtio0/virtio-backend or the whole path. */
function findByPath(engine: Parts<'devices'>, path: string): GuestDevice {
  const id = path.replace(/^\/machine\/peripheral\//, '').replace(/\/virtio-backend$/, '');
  const device = engine.devices.get(id);
  if (!device) throw new BlockError('device-not-found', `Device '${path}' not found`);
  return device;
}
