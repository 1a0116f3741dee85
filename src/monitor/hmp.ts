import { BlockError } from '../base/error.js';
import type { BlockBackend } from '../block/backend.js';
import { Permission } from '../block/permissions.js';
import type { GuestDevice } from '../guest/device.js';
import { runIoCommand } from '../io/command.js';
import { VERSION } from '../qmp/session.js';
import { withBackend } from './blockdev.js';
import type { Engine } from './engine.js';
import { findNode } from './find-node.js';
import { infoBlock, infoBlockJobs } from './hmp-info.js';
import { cont, quit, stop } from './run-state.js';

export function registerHmp(engine: Engine): void {
  engine.command('human-monitor-command', ({ 'command-line': line }) => runHmp(engine, line));
}

interface HmpCommand {
  name: string;
  parameters: string;
  help: string;
  run(engine: Engine, words: string[]): Promise<string> | string;
}

const COMMANDS: readonly HmpCommand[] = [
  { name: 'cont', parameters: '', help: 'resume emulation', run: (engine) => silent(cont(engine)) },
  { name: 'help', parameters: '[cmd]', help: 'show the help', run: (_engine, words) => help(words[0]) },
  {
    name: 'info',
    parameters: '[subcommand]',
    help: 'show various information about the system state',
    run: info,
  },
  {
    name: 'qemu-io',
    parameters: '[-d] [device] "[command]"',
    help: 'run a qemu-io command on a block device',
    run: qemuIo,
  },
  { name: 'quit', parameters: '', help: 'quit the emulator', run: (engine) => silent(quit(engine)) },
  { name: 'stop', parameters: '', help: 'stop emulation', run: (engine) => silent(stop(engine)) },
];

const INFO: ReadonlyArray<{
  name: string;
  help: string;
  run(engine: Engine, words: string[]): string;
}> = [
  { name: 'block', help: 'show info of one block device or all block devices', run: infoBlock },
  { name: 'block-jobs', help: 'show progress of ongoing block device operations', run: infoBlockJobs },
  { name: 'status', help: 'show the current VM status (running|paused)', run: infoStatus },
  { name: 'version', help: 'show the version of QEMU', run: infoVersion },
];

async function silent(work: Promise<void>): Promise<string> {
  await work;
  return '';
}

/** One line of the human monitor; the answer is what it prints. Errors of the command are part of that. */
export async function runHmp(engine: Engine, line: string): Promise<string> {
  try {
    const [name, ...words] = splitWords(line);
    if (name === undefined) return '';
    const command = COMMANDS.find((candidate) => candidate.name === name || aliasOf(name) === candidate.name);
    if (!command) throw new UnknownCommand(name);
    return await command.run(engine, words);
  } catch (error) {
    if (error instanceof UnknownCommand) return `${error.message}\n`;
    if (error instanceof BlockError) return `Error: ${error.message}\n`;
    throw error;
  }
}

class UnknownCommand extends Error {
  constructor(name: string) {
    super(`unknown command: '${name}'`);
  }
}

function aliasOf(name: string): string {
  return { c: 'cont', q: 'quit', s: 'stop', '?': 'help' }[name] ?? name;
}

/** Words apart, "quoted ones" whole with \" and \\ inside. */
function splitWords(line: string): string[] {
  const words: string[] = [];
  for (const [, quoted, plain] of line.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g)) {
    words.push(plain ?? (quoted ?? '').replace(/\\(.)/g, '$1'));
  }
  return words;
}

function help(name: string | undefined): string {
  const wanted = COMMANDS.filter((command) => name === undefined || command.name === name);
  const lines = wanted.map(
    (command) => `${[command.name, command.parameters].join(' ').trim()} -- ${command.help}\n`,
  );
  return lines.join('');
}

function info(engine: Engine, [name, ...words]: string[]): string {
  const found = INFO.find((candidate) => candidate.name === name);
  if (found) return found.run(engine, words);
  if (name !== undefined) throw new UnknownCommand(`info ${name}`);
  return INFO.map((item) => `info ${item.name} -- ${item.help}\n`).join('');
}

function infoStatus({ runState }: Engine): string {
  const { status, isRunning } = runState;
  const detail = isRunning || status === 'paused' ? '' : ` (${status})`;
  return `VM status: ${isRunning ? 'running' : 'paused'}${detail}\n`;
}

function infoVersion(): string {
  const { major, minor, micro } = VERSION.qemu;
  return `${major}.${minor}.${micro}${VERSION.package}\n`;
}

/** Prints on the program's standard output, as QEMU does, not into the answer. */
async function qemuIo(engine: Engine, words: string[]): Promise<string> {
  const byDevice = words[0] === '-d';
  const [name, command, ...rest] = byDevice ? words.slice(1) : words;
  if (name === undefined || command === undefined || rest.length > 0)
    throw new BlockError('invalid', 'qemu-io: device and command expected: qemu-io [-d] DEVICE "COMMAND"');
  const print = (text: string): void => engine.print(text.replace(/\n$/, ''));
  const run = async (backend: BlockBackend): Promise<void> =>
    void (await runIoCommand(backend, command, print, { host: engine.host }));
  if (byDevice) await run(findByPath(engine, name).backend);
  else await onNode(engine, name, run);
  return '';
}

/** virtio0, virtio0/virtio-backend or the whole path. */
function findByPath(engine: Engine, path: string): GuestDevice {
  const id = path.replace(/^\/machine\/peripheral\//, '').replace(/\/virtio-backend$/, '');
  const device = engine.devices.get(id);
  if (!device) throw new BlockError('device-not-found', `Device '${path}' not found`);
  return device;
}

async function onNode(
  engine: Engine,
  name: string,
  run: (backend: BlockBackend) => Promise<void>,
): Promise<void> {
  const node = findNode(engine.graph, undefined, name);
  const perm = Permission.consistentRead + (node.readOnly ? 0 : Permission.write);
  await withBackend(engine.graph, node, perm, run);
}
