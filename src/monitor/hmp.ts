import { BlockError, hintOf } from '../base/error.js';
import type { BlockBackend } from '../block/backend.js';
import { unitePermissions } from '../block/permissions.js';
import { permissionsFor, runIoCommand } from '../programs/io/command.js';
import { QmpError } from '../wire/qmp/registry.js';
import { WATCHDOG_ACTIONS } from '../schema/migration.js';
import { VERSION } from '../wire/qmp/version.js';
import { withBackend } from '../block/with-backend.js';
import type { Parts } from './parts.js';
import { findNode } from '../block/find-node.js';
import { type HmpArguments, HmpSyntaxError, parseArguments, splitWords } from './hmp-arguments.js';
import { BLOCK_COMMANDS, type HmpBlock } from './hmp-block.js';
import { type HmpCommand, runQmp } from './hmp-command.js';
import { type HmpObjects, OBJECT_COMMANDS, OBJECT_INFO } from './hmp-objects.js';
import { type HmpSnapshots, SNAPSHOT_COMMANDS, SNAPSHOT_INFO } from './hmp-snapshots.js';
import { infoBlock, infoBlockJobs, infoBlockStatistics } from './hmp-info.js';
import { diskOfDevice } from './media.js';
import { type HmpMigration, MIGRATION_COMMANDS, MIGRATION_INFO } from './hmp-migration.js';
import type { Quitting, Running } from './run-state.js';
import { TRACE_HMP, TRACE_INFO, type Traced } from './trace.js';

/** What its commands need together. */
type Hmp = Running &
  Quitting &
  HmpBlock &
  HmpObjects &
  HmpSnapshots &
  HmpMigration &
  Traced &
  Parts<'guestProgram'>;

export function registerHmp(engine: Hmp & Parts<'command'>): void {
  engine.command('human-monitor-command', async ({ 'command-line': line, 'cpu-index': cpuIndex }) => {
    // No processor is here: as a QEMU without one answers.
    if (cpuIndex !== undefined) throw new BlockError('invalid', "Parameter 'cpu-index' expects a CPU number");
    return (await runHmp(engine, line)).replaceAll('\n', '\r\n');
  });
}

const COMMANDS: ReadonlyArray<HmpCommand<Hmp>> = [
  ...BLOCK_COMMANDS,
  ...OBJECT_COMMANDS,
  ...SNAPSHOT_COMMANDS,
  ...MIGRATION_COMMANDS,
  ...TRACE_HMP,
  {
    name: 'cont',
    alias: 'c',
    parameters: '',
    help: 'resume emulation',
    syntax: {},
    run: (engine) => runQmp(engine, 'cont'),
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
    run: infoHelp,
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
    name: 'system_powerdown',
    parameters: '',
    help: 'send system power down event',
    syntax: {},
    run: (engine) => runQmp(engine, 'system_powerdown'),
  },
  {
    name: 'system_reset',
    parameters: '',
    help: 'reset the system',
    syntax: {},
    run: (engine) => runQmp(engine, 'system_reset'),
  },
  {
    name: 'system_wakeup',
    parameters: '',
    help: 'wakeup guest from suspend',
    syntax: {},
    run: (engine) => runQmp(engine, 'system_wakeup'),
  },
  {
    name: 'watchdog_action',
    parameters: '[reset|shutdown|poweroff|pause|debug|none]',
    help: 'change watchdog action',
    syntax: { operands: [{ missing: 'string expected' }] },
    run: (engine, { operands: [action = ''] }) => {
      if (!WATCHDOG_ACTIONS.includes(action))
        throw new BlockError('invalid', `invalid parameter value: ${action}`);
      return runQmp(engine, 'set-action', { watchdog: action });
    },
  },
  {
    name: 'quit',
    alias: 'q',
    parameters: '',
    help: 'quit the emulator',
    syntax: {},
    run: (engine) => runQmp(engine, 'quit'),
  },
  {
    name: 'stop',
    alias: 's',
    parameters: '',
    help: 'stop emulation',
    syntax: {},
    run: (engine) => runQmp(engine, 'stop'),
  },
];

const INFO: ReadonlyArray<HmpCommand<Hmp>> = [
  ...OBJECT_INFO,
  ...SNAPSHOT_INFO,
  ...MIGRATION_INFO,
  ...TRACE_INFO,
  {
    name: 'block',
    parameters: '[-n] [-v] [device]',
    help: 'show info of one block device or all block devices (-n: show named nodes; -v: show details)',
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
  {
    name: 'blockstats',
    parameters: '',
    help: 'show block device statistics',
    syntax: {},
    run: infoBlockStatistics,
  },
  { name: 'version', parameters: '', help: 'show the version of QEMU', syntax: {}, run: infoVersion },
];

/** One line of the human monitor; the answer is what it prints. Errors of the command are part of that. */
export async function runHmp(engine: Hmp, line: string): Promise<string> {
  const { hmpCommand } = engine.host.trace;
  if (hmpCommand.isOn) hmpCommand.say(`cmd ${line}`);
  try {
    const words = splitWords(line);
    if (words.length === 0) return '';
    const { guestProgram } = engine;
    if (guestProgram && !isKnown(words)) return await guestProgram.runHuman(line);
    const refusal = guestProgram?.refusal(words[0] ?? '');
    if (refusal !== undefined) return `Error: ${refusal}\n`;
    const { command, path, rest } = findCommand(words);
    const name = command.alias === undefined ? command.name : `${command.name}|${command.alias}`;
    return await command.run(engine, parseArguments(rest, command.syntax, { name, path }));
  } catch (error) {
    if (error instanceof HmpSyntaxError) return `${error.message}\n`;
    if (error instanceof BlockError || error instanceof QmpError)
      return `Error: ${error.message}\n${hintOf(error)}`;
    throw error;
  }
}

/** Or else it may be a command of the program that runs the guest. */
function isKnown(words: readonly string[]): boolean {
  const [first = '', second = ''] = words;
  const [list, name] = first === 'info' ? [INFO, second] : [COMMANDS, first];
  return list.some((command) => command.name === name || command.alias === name);
}

/** Errors: HmpSyntaxError. */
function findCommand([first = '', second, ...rest]: readonly string[]): {
  command: HmpCommand<Hmp>;
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
  if (words.length === 0) return sorted(COMMANDS).map(helpLine).join('');
  if (words.length === 1 && words[0] === 'info') return infoHelp();
  const { command, path } = findCommand(words);
  return `${path.startsWith('info ') ? 'info ' : ''}${helpLine(command)}`;
}

type Completing = Parts<'drives' | 'graph' | 'jobs' | 'devices' | 'characterDevices'>;

/** Names that the arguments of a command may be. */
function namesFor(engine: Completing, command: string): string[] {
  const disks = [...engine.drives.keys(), ...engine.graph.nodes.keys()];
  if (/^(chardev-(change|remove|send-break)|ringbuf_)/.test(command))
    return engine.characterDevices.list().map(({ id }) => id);
  if (command === 'object_del') return engine.graph.objects.list().map(({ id }) => id);
  if (command === 'device_del') return [...engine.devices.keys()];
  if (command.startsWith('block_job_')) return [...engine.jobs.list().map(({ id }) => id), ...disks];
  return disks;
}

/** What the last word of a line may become. */
export function completions(engine: Completing, text: string): string[] {
  const words = text.trimStart().split(/\s+/);
  const [first = '', word = first] = [words[0], words.at(-1)];
  const names = (list: ReadonlyArray<HmpCommand<Hmp>>): string[] => sorted(list).map(({ name }) => name);
  const all =
    words.length <= 1
      ? names(COMMANDS)
      : first === 'info' && words.length === 2
        ? names(INFO)
        : first === 'help' || first === '?'
          ? names(words.length === 3 && words[1] === 'info' ? INFO : COMMANDS)
          : namesFor(engine, first);
  return all.filter((name) => name.startsWith(word) && !name.startsWith('#'));
}

function infoHelp(): string {
  return sorted(INFO)
    .map((item) => `info ${helpLine(item)}`)
    .join('');
}

function sorted(commands: ReadonlyArray<HmpCommand<Hmp>>): Array<HmpCommand<Hmp>> {
  return [...commands].sort((a, b) => (a.name < b.name ? -1 : 1));
}

function helpLine({ name, alias, parameters, help }: HmpCommand<Hmp>): string {
  return `${name}${alias === undefined ? '' : `|${alias}`} ${parameters} -- ${help}\n`;
}

async function infoStatus({ registry }: Parts<'registry'>): Promise<string> {
  const { status, running } = (await registry.execute('query-status', {})) as StatusInfo;
  const detail = running || status === 'paused' ? '' : ` (${status})`;
  return `VM status: ${running ? 'running' : 'paused'}${detail}\n`;
}

interface StatusInfo {
  status: string;
  running: boolean;
}

function infoVersion(): string {
  const { major, minor, micro } = VERSION.qemu;
  return `${major}.${minor}.${micro}${VERSION.package}\n`;
}

/** Prints on the program's standard output, as QEMU does, not into the answer. */
async function qemuIo(engine: HmpBlock, { flags, operands }: HmpArguments): Promise<string> {
  const [name = '', command = ''] = operands;
  const print = (text: string): void => engine.print(text.replace(/\n$/, ''));
  const error = (text: string): void => engine.printError(text.replace(/\n$/, ''));
  const run = async (backend: BlockBackend): Promise<string> => {
    await runIoCommand(backend, command, print, { host: engine.host, graph: engine.graph, error });
    return '';
  };
  const own = flags.has('d') ? diskOfDevice(engine, name).backend : engine.drives.get(name)?.backend;
  const node = own ? undefined : findNode(engine.graph, undefined, name);
  const needed = permissionsFor(command);
  try {
    if (node) return await withBackend(engine.graph, node, needed, run);
    if (own) await widen(engine, own, needed);
    return own ? await run(own) : '';
  } catch (error) {
    // What the command may not do is told as the rest of its output is.
    if (error instanceof BlockError) return `${error.message}\n${hintOf(error)}`;
    throw error;
  }
}

/** What a command needs, a disk's backend has from then on. Errors: busy where others conflict. */
async function widen({ graph }: Parts<'graph'>, backend: BlockBackend, needed: number): Promise<void> {
  const perm = unitePermissions(backend.perm, needed);
  if (perm === backend.perm) return;
  await graph.transaction((transaction) => transaction.setPermissions(backend, perm, backend.shared));
}
