import { defined } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import type { DriverDescription } from '../../block/driver.js';
import { probedWarning } from '../../block/format-guard.js';
import { Graph } from '../../block/graph.js';
import { Opener } from '../../block/open.js';
import { DriverRegistry } from '../../block/registry.js';
import type { Host } from '../../host/host.js';
import { versionText } from '../../wire/qmp/version.js';
import { parseObject, toolObjectHelp } from '../arguments/objects.js';
import { applyTrace, parseTrace, traceHelp, type TraceOptions } from '../arguments/trace.js';
import { runInSession } from './command.js';
import {
  type DiskArguments,
  Disks,
  parseAio,
  parseCache,
  parseDiscard,
  prepareDisk,
  UNSAID,
} from './disk.js';
import type { ObjectOptions } from '../../schema/objects.js';
import { getopt, type OptionSpec, problemText } from './getopt.js';
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

export const HELP = `Usage: livedisk io [OPTIONS]... [-c STRING]... [FILE]
Reads and writes an image by command, as qemu-io does.

  -c, --cmd STRING     execute command with its arguments
                       from the given string
  -f, --format FMT     specifies the block driver to use
  -r, --read-only      export read-only
  -n, --nocache        disable host cache, short for -t none
  -s, --snapshot       write to a temporary file above the image
  -m, --misalign       put requests' memory where O_DIRECT cannot use it
  -k, --native-aio     short for -i native
  -i, --aio=MODE       use AIO mode (threads, native or io_uring)
  -t, --cache=MODE     use the given cache mode for the image
  -C, --copy-on-read   enable copy-on-read
  -d, --discard=MODE   use the given discard mode for the image
  -U, --force-share    force shared permissions
      --image-opts     FILE is options: driver=qcow2,file.filename=...
  -T, --trace [[enable=]PATTERN][,events=FILE][,file=FILE]
                       tell what happens at trace points (-T help lists them)
  -h, --help           display this help and exit
  -V, --version        output version information and exit

See 'livedisk io -c help' for information on available commands.
`;

/** A wrong command line, told as "qemu-io: MESSAGE". */
class Refusal extends Error {}

interface IoArguments {
  traces: TraceOptions[];
  objects: ObjectOptions[];
  commands: string[];
  /** Names are options. */
  imageOpts: boolean;
  isMisaligned: boolean;
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
    for (const trace of parsed.traces)
      await applyTrace(host, trace, (text) => out.error(`qemu-io:${text}\n`));
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

/** Values are looked at in their order, and as far as the first thing that is wrong. */
function parse(args: readonly string[], out: IoOutput): IoArguments | number {
  const { options, operands, problem } = getopt(args, OPTIONS);
  const parsed: IoArguments = {
    ...{ traces: [], objects: [], commands: [], imageOpts: false, isMisaligned: false },
    disk: { ...UNSAID },
  };
  for (const { name, value } of options.slice(0, problem?.before)) {
    if (name === 'help' || name === 'version') {
      out.print(name === 'help' ? HELP : versionText('qemu-io'));
      return 0;
    }
    const help = HELPS[name]?.(value);
    if (help !== undefined) {
      out.print(help);
      return 0;
    }
    defined(TAKEN[name], `what option ${name} does`)(parsed, value);
  }
  if (problem) out.error(`qemu-io: ${problemText(problem)}\n`);
  if (problem || operands.length > 1) {
    out.print(HELP);
    return 1;
  }
  const { imageOpts, disk } = parsed;
  if (imageOpts && disk.format !== undefined) throw new Refusal('--image-opts and -f are mutually exclusive');
  const [operand] = operands;
  return { ...parsed, disk: { ...disk, ...(imageOpts ? { options: operand } : { filename: operand }) } };
}

/** Options whose value may ask for help. */
const HELPS: Readonly<Record<string, (value: string) => string | undefined>> = {
  trace: traceHelp,
  object: (value) => toolObjectHelp([value]),
};

/** What each option does to what is parsed. Errors: Refusal, BlockError. */
const TAKEN: Readonly<Record<string, (parsed: IoArguments, value: string) => void>> = {
  trace: ({ traces }, value) => void traces.push(parseTrace(value)),
  object: ({ objects }, value) => void objects.push(parseObject(value)),
  cmd: ({ commands }, value) => void commands.push(value),
  'image-opts': (parsed) => void (parsed.imageOpts = true),
  misalign: (parsed) => void (parsed.isMisaligned = true),
  format: ({ disk }, value) => void (disk.format = value),
  'read-only': ({ disk }) => void (disk.readOnly = true),
  'force-share': ({ disk }) => void (disk.forceShare = true),
  'copy-on-read': ({ disk }) => void (disk.copyOnRead = true),
  snapshot: ({ disk }) => void (disk.isTemporary = true),
  nocache: ({ disk }) => void (disk.cache = parseCache('none')),
  cache: ({ disk }, value) => void (disk.cache = parseCache(value)),
  'native-aio': ({ disk }) => void (disk.aio = 'native'),
  aio: ({ disk }, value) => void (disk.aio = parseAio(value)),
  discard: ({ disk }, value) => void (disk.discard = parseDiscard(value)),
};

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
  const session = new IoSession(new Disks(opener, args.imageOpts), out, {
    ...{ host, graph, isMisaligned: args.isMisaligned },
  });
  try {
    if (args.disk.filename !== undefined || args.disk.options !== undefined)
      session.use(await prepareDisk(opener, args.disk)());
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
