import { BlockError } from '../../base/error.js';
import type { DriverDescription } from '../../block/driver.js';
import type { Host } from '../../host/host.js';
import { versionText } from '../../wire/qmp/version.js';
import { parseObject, splitObjects, toolObjectHelp } from '../arguments/objects.js';
import { applyTrace, parseTrace, traceHelp, type TraceOptions } from '../arguments/trace.js';
import { benchCommand } from './bench.js';
import { bitmapCommand } from './bitmap.js';
import { amendCommand } from './amend.js';
import { checkCommand } from './check.js';
import { checksumCommand } from './checksum.js';
import { commitCommand } from './commit.js';
import { compactCommand } from './compact.js';
import { compareCommand } from './compare.js';
import { convertCommand } from './convert.js';
import { createCommand } from './create.js';
import { ddCommand } from './dd.js';
import { explainCommand } from './explain.js';
import { infoCommand } from './info.js';
import { mapCommand } from './map.js';
import { measureCommand } from './measure.js';
import { rebaseCommand } from './rebase.js';
import { resizeCommand } from './resize.js';
import { snapshotCommand } from './snapshot.js';
import { TROUBLE, verifyCommand } from './verify.js';
import { explain, Tool, ToolFailure, type ToolOutput, UsageError } from './tool.js';

type Subcommand = (tool: Tool, words: readonly string[]) => Promise<number>;

const SUBCOMMANDS: ReadonlyMap<string, Subcommand> = new Map([
  ['amend', amendCommand],
  ['bench', benchCommand],
  ['bitmap', bitmapCommand],
  ['check', checkCommand],
  ['checksum', checksumCommand],
  ['commit', commitCommand],
  ['compact', compactCommand],
  ['compare', compareCommand],
  ['convert', convertCommand],
  ['create', createCommand],
  ['dd', ddCommand],
  ['explain', explainCommand],
  ['info', infoCommand],
  ['map', mapCommand],
  ['measure', measureCommand],
  ['rebase', rebaseCommand],
  ['resize', resizeCommand],
  ['snapshot', snapshotCommand],
  ['verify', verifyCommand],
]);

export const HELP = `usage: livedisk img COMMAND [OPTIONS]
Makes and looks at disk images, as qemu-img does.

Command syntax:
  amend [-q] [-p] [-f fmt] [-t cache] [--force] [--image-opts] -o options filename
  bench [-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] [-o offset] [--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] [--image-opts] filename
  bitmap (--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] [-g granularity] [--image-opts | -f fmt] filename bitmap
  check [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-U] [--image-opts] filename
  checksum [--algorithm=name] [-f fmt] [-T src_cache] [-p] [-U] [--image-opts] filename...
  commit [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] [--image-opts] [--protect-shared-bases] [--shared-bases-folder folder]... filename
  compact [-f fmt] [-t cache] [-p] [-q] [--dry-run] [--output=ofmt] [--image-opts] filename
  compare [-f fmt] [-F fmt] [-p] [-q] [-s] [-U] [--image-opts] filename1 filename2
  convert [-U] [--image-opts] [--target-image-opts] [-C] [-p] [-q] [-n] [-f fmt] [-t cache] [-T src_cache] [-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] [-l snapshot_param] [-S sparse_size] [-m num_coroutines] [-W] [-r rate_limit] [--salvage] [--checksum algorithm] [--manifest file] [--verify] [--target-is-zero] [--bitmaps [--skip-broken-bitmaps]] filename [filename2 [...]] output_filename
  create [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]
  dd [--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output
  explain [-f fmt] [--image-opts] [-U] [--no-check] filename
  info [-f fmt] [--output=ofmt] [--backing-chain] [--file-use] [-U] [--image-opts] filename
  map [-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] [--image-opts] filename
  measure [--output=ofmt] [-O output_fmt] [-o options] [--size N | [-f fmt] [-l snapshot_param] [--image-opts] [-U] filename]
  rebase [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] [-b backing_file [-F backing_fmt]] [--image-opts] filename
  resize [-f fmt] [--preallocation=prealloc] [-q] [--shrink] [--image-opts] filename [+ | -]size
  snapshot [-U] [--image-opts] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename
  verify [-f fmt] [-T src_cache] [-p] [-q] [-U] [--image-opts] filename [manifest]

In front of the command, -T or --trace [[enable=]PATTERN][,events=FILE][,file=FILE] tells what happens at trace points
(-T help lists them).
Each command takes --untrusted: of files that an image names, only those in its own folder are opened.
`;

/** Of commands whose status 1 is an answer, whatever goes wrong. */
const FAILURES: ReadonlyMap<string, number> = new Map([['verify', TROUBLE]]);

/** The same, where it is an object that cannot be made. */
const OBJECT_FAILURES: ReadonlyMap<string, number> = new Map([...FAILURES, ['compare', 2]]);

/** `livedisk img`, with qemu-img's command line, answers and exit statuses (which it answers). */
export async function imgMain(
  args: readonly string[],
  out: ToolOutput,
  host: Host,
  drivers: Iterable<DriverDescription>,
): Promise<number> {
  const tool = new Tool(out, host, drivers);
  try {
    try {
      return await run(tool, args);
    } finally {
      await tool.closeAll();
    }
  } catch (error) {
    return tellFailure(out, error, FAILURES.get(commandOf(args)));
  }
}

/** What is to be done, by name; empty where that is not to be found out. */
function commandOf(args: readonly string[]): string {
  try {
    const traced = takeTraces(args);
    return 'rest' in traced ? (traced.rest[0] ?? '') : '';
  } catch {
    return '';
  }
}

async function run(tool: Tool, args: readonly string[]): Promise<number> {
  const traced = takeTraces(args);
  if ('help' in traced) {
    tool.out.print(traced.help);
    return 0;
  }
  for (const trace of traced.traces)
    await applyTrace(tool.graph.host, trace, (text) => tool.out.error(`qemu-img:${text}\n`));
  const [name, ...words] = traced.rest;
  if (name === undefined) throw new UsageError('Not enough arguments');
  if (name === '-h' || name === '--help' || words.includes('--help') || words.includes('-h')) {
    const formats = [...tool.opener.drivers].map((driver) => driver.name).sort();
    tool.out.print(`${HELP}\nSupported formats: ${formats.join(' ')}\n`);
    return 0;
  }
  if (name === '-V' || name === '--version') {
    tool.out.print(versionText('qemu-img'));
    return 0;
  }
  const command = SUBCOMMANDS.get(name);
  tool.opener.staysInFolders = words.includes('--untrusted');
  const others = words.filter((word) => word !== '--untrusted');
  if (!command) throw new UsageError(`Command not found: ${name}`);
  const { objects, rest } = splitObjects(others);
  const help = toolObjectHelp(objects);
  if (help === undefined) {
    await makeObjects(tool, name, objects);
    return command(tool, rest);
  }
  tool.out.print(help);
  return 0;
}

/** Errors: ToolFailure. */
async function makeObjects(tool: Tool, command: string, texts: readonly string[]): Promise<void> {
  try {
    for (const text of texts) await tool.graph.objects.add(parseObject(text));
  } catch (error) {
    throw explain(error, '', OBJECT_FAILURES.get(command));
  }
}

/** -T and --trace, which stand before the command. Errors: UsageError; invalid, in QEMU's words. */
function takeTraces(
  args: readonly string[],
): { traces: TraceOptions[]; rest: readonly string[] } | { help: string } {
  const traces: TraceOptions[] = [];
  let rest = args;
  for (;;) {
    const [first = '', second] = rest;
    const [, inline] = /^(?:-T|--trace=)(.+)$/s.exec(first) ?? [];
    if (inline === undefined && first !== '-T' && first !== '--trace') return { traces, rest };
    const value = inline ?? second;
    if (value === undefined) throw new UsageError(`missing argument for option '${first}'`);
    const help = traceHelp(value);
    if (help !== undefined) return { help };
    traces.push(parseTrace(value));
    rest = rest.slice(inline === undefined ? 2 : 1);
  }
}

function tellFailure(out: ToolOutput, error: unknown, status = statusOf(error)): number {
  if (!(error instanceof ToolFailure) && !(error instanceof BlockError)) throw error;
  out.error(`qemu-img: ${error.message}\n${error.hint === undefined ? '' : `${error.hint}\n`}`);
  return status;
}

function statusOf(error: unknown): number {
  return error instanceof ToolFailure ? error.status : 1;
}
