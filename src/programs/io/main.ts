import { BlockError } from '../../base/error.js';
import type { DriverDescription } from '../../block/driver.js';
import { probedWarning } from '../../block/format-guard.js';
import { Graph } from '../../block/graph.js';
import { Opener } from '../../block/open.js';
import { DriverRegistry } from '../../block/registry.js';
import type { Host } from '../../host/host.js';
import { versionText } from '../../wire/qmp/version.js';
import { parseObject } from '../arguments/objects.js';
import { runInSession } from './command.js';
import { checkAio, type DiskArguments, Disks, openDisk } from './disk.js';
import type { ObjectOptions } from '../../schema/objects.js';
import { getopt, type OptionSpec } from './getopt.js';
import { type IoOutput, IoSession } from './session.js';

const OPTIONS: readonly OptionSpec[] = [
  { short: 'c', long: 'cmd', takesValue: true },
  { short: 'f', long: 'format', takesValue: true },
  { short: 'r', long: 'read-only', takesValue: false },
  { short: 'n', long: 'nocache', takesValue: false },
  { short: 't', long: 'cache', takesValue: true },
  { short: 'd', long: 'discard', takesValue: true },
  { short: 'U', long: 'force-share', takesValue: false },
  { short: 'i', long: 'aio', takesValue: true },
  { short: 'h', long: 'help', takesValue: false },
  { short: 'V', long: 'version', takesValue: false },
  { short: 's', long: 'snapshot', takesValue: false },
  { short: 'C', long: 'copy-on-read', takesValue: false },
  { short: 'm', long: 'misalign', takesValue: false },
  { short: 'k', long: 'native-aio', takesValue: false },
  { short: 'T', long: 'trace', takesValue: true },
  { short: '', long: 'object', takesValue: true },
  { short: '', long: 'image-opts', takesValue: false },
];

/** Options of qemu-io that livedisk does not have. */
const REFUSED = ['snapshot', 'misalign', 'native-aio', 'trace'];

export const HELP = `Usage: livedisk io [OPTIONS]... [-c STRING]... [FILE]
Reads and writes an image by command, as qemu-io does.

  -c, --cmd STRING     execute command with its arguments
                       from the given string
  -f, --format FMT     specifies the block driver to use
  -r, --read-only      export read-only
  -n, --nocache        disable host cache, short for -t none
  -i, --aio=MODE       use AIO mode (threads)
  -t, --cache=MODE     use the given cache mode for the image
  -C, --copy-on-read   enable copy-on-read
  -d, --discard=MODE   use the given discard mode for the image
  -U, --force-share    force shared permissions
      --image-opts     FILE is options: driver=qcow2,file.filename=...
  -h, --help           display this help and exit
  -V, --version        output version information and exit

See 'livedisk io -c help' for information on available commands.
`;

/** A wrong command line, told as "qemu-io: MESSAGE". */
class Refusal extends Error {}

interface IoArguments {
  objects: ObjectOptions[];
  commands: string[];
  /** Names are options. */
  imageOpts: boolean;
  /** The one that is named on the command line. */
  disk: DiskArguments;
}

/**
 * `livedisk io`, with qemu-io's command line. Without -c, commands come from `lines`, one each. Answers the exit
 * status: 1 when a command failed.
 */
export async function ioMain(
  args: readonly string[],
  out: IoOutput,
  host: Host,
  drivers: Iterable<DriverDescription>,
  lines: AsyncIterable<string> = nothing(),
): Promise<number> {
  try {
    const parsed = parse(args, out);
    if (typeof parsed === 'number') return parsed;
    return await exercise(parsed, out, host, drivers, lines);
  } catch (error) {
    if (!(error instanceof Refusal) && !(error instanceof BlockError)) throw error;
    out.error(`qemu-io: ${error.message}\n`);
    if (error instanceof BlockError && error.hint !== undefined) out.error(`${error.hint}\n`);
    return 1;
  }
}

async function* nothing(): AsyncIterable<string> {
  // Nobody types.
}

function parse(args: readonly string[], out: IoOutput): IoArguments | number {
  const { options, operands, problem } = getopt(args, OPTIONS);
  if (problem) {
    const what = problem.kind === 'unknown' ? 'invalid option' : 'option requires an argument';
    out.error(`qemu-io: ${what} -- '${problem.option}'\n`);
    out.print(HELP);
    return 1;
  }
  const given = new Map(options.map(({ name, value }) => [name, value]));
  if (given.has('help')) {
    out.print(HELP);
    return 0;
  }
  if (given.has('version')) {
    out.print(versionText('qemu-io'));
    return 0;
  }
  const refused = REFUSED.find((name) => given.has(name));
  if (refused !== undefined) throw new Refusal(`--${refused} is not supported by livedisk`);
  const [filename] = operands;
  if (operands.length > 1) {
    out.print(HELP);
    return 1;
  }
  checkAio(given.get('aio') ?? 'threads');
  const commands = options.filter(({ name }) => name === 'cmd').map(({ value }) => value);
  const format = given.get('format');
  const imageOpts = given.has('image-opts');
  if (imageOpts && format !== undefined) throw new Refusal('--image-opts and -f are mutually exclusive');
  return {
    objects: options.filter(({ name }) => name === 'object').map(({ value }) => parseObject(value)),
    ...{ commands, imageOpts },
    disk: {
      ...(imageOpts ? { filename: undefined, options: filename } : { filename, format }),
      readOnly: given.has('read-only'),
      forceShare: given.has('force-share'),
      cache: given.get('cache') ?? (given.has('nocache') ? 'none' : 'writeback'),
      copyOnRead: given.has('copy-on-read'),
      discard: given.get('discard') ?? 'unmap',
    },
  };
}

async function exercise(
  args: IoArguments,
  out: IoOutput,
  host: Host,
  drivers: Iterable<DriverDescription>,
  lines: AsyncIterable<string>,
): Promise<number> {
  const graph = new Graph(host);
  for (const object of args.objects) await graph.objects.add(object);
  const opener = new Opener(graph, new DriverRegistry(drivers));
  opener.graph.onDriverLine = (line) => out.error(`${line}\n`);
  opener.onWarning = (text) => out.error(`qemu-io: warning: ${text}\n`);
  opener.onProbed = (name, format, readOnly) => out.error(probedWarning(name, format, readOnly));
  const session = new IoSession(new Disks(opener, args.imageOpts), out, { host, graph });
  try {
    if (args.disk.filename !== undefined || args.disk.options !== undefined)
      session.use(await openDisk(opener, args.disk));
    const failed =
      args.commands.length > 0 ? await runAll(session, args.commands) : await typed(session, lines);
    return failed ? 1 : 0;
  } finally {
    await session.close();
  }
}

/** Answers whether any command failed. */
async function runAll(session: IoSession, commands: readonly string[]): Promise<boolean> {
  let failed = false;
  for (const command of commands) {
    if (!(await runInSession(session, command))) failed = true;
    if (session.hasQuit) break;
  }
  return failed;
}

async function typed(session: IoSession, lines: AsyncIterable<string>): Promise<boolean> {
  const prompt = (): void => session.output.print('qemu-io> ');
  let failed = false;
  prompt();
  for await (const line of lines) {
    if (!(await runInSession(session, line.replace(/\r?\n$/, '')))) failed = true;
    if (session.hasQuit) break;
    prompt();
  }
  return failed;
}
