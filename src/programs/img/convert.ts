import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { MiB } from '../../base/limits.js';
import type { BlockBackend } from '../../block/backend.js';
import type { DriverDescription } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import { createImage } from '../../block/create.js';
import { type LoadSnapshot, loadSnapshot, parseLoadSnapshot } from '../arguments/load-snapshot.js';
import { cacheOptions } from '../io/cache.js';
import { Arguments, options } from './arguments.js';
import { type CopySource, ImageCopy } from './copy.js';
import { driverOptions, invalidBackingFormat, splitOptions } from './create-options.js';
import { Progress } from './progress.js';
import { explain, type Tool, ToolFailure, UsageError } from './tool.js';

const DEFAULT_SPARSE_BYTES = 4096;
const MAX_SPARSE_BYTES = 16 * MiB;
const DEFAULT_PARALLEL = 8;
const MAX_PARALLEL = 16;

const REFUSED = options('r:', '|salvage', '|bitmaps', '|skip-broken-bitmaps');

/**
 * convert [-U] [-C] [-c] [-p] [-q] [-n] [-f FMT] [-t CACHE] [-T CACHE] [-O FMT] [-B BACKING [-F FMT]] [-o OPTIONS]
 * [-l SNAPSHOT] [-S SIZE] [-m N] [-W] [--target-is-zero] [--image-opts] [--target-image-opts] FILE [FILE2 ...] OUTPUT
 */
export async function convertCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options(
    ...['f:', 'O:', 'o:', 'B:', 'F:', 'S:', 'l:', 'm:', 't:', 'T:'],
    ...[
      'n',
      'p',
      'q',
      'c',
      'W',
      'C',
      'U|force-share',
      '|target-is-zero',
      '|image-opts',
      '|target-image-opts',
    ],
  );
  const args = new Arguments('convert', words, taken, REFUSED);
  const plan = planOf(tool, args);
  const sources = await openSources(tool, args, plan);
  const totalBytes = sources.reduce((sum, { image }) => sum + image.lengthBytes, 0);
  const progress = new Progress(tool.out, args.has('p') && !args.has('q'));
  if (args.has('force-share')) await checkNotSource(tool, plan);
  if (!args.has('n')) await createTarget(tool, plan, totalBytes);
  const target = await openTarget(tool, args, plan);
  if (target.lengthBytes < totalBytes) throw new ToolFailure('output file is smaller than input file');
  const isNew = !args.has('n') && readsZeroWhenNew(target.node);
  await new ImageCopy(target, totalBytes, {
    parallel: plan.parallel,
    sparseBytes: plan.sparseBytes,
    targetIsZero: (isNew && plan.backingFile === undefined) || args.has('target-is-zero'),
    targetHasBacking: plan.backingFile !== undefined,
    // Where a byte lies is decided by the order of writes only in an image that gives out clusters.
    inOrder: target.node.instance.map !== undefined && !args.has('W'),
    compressedUnitBytes: args.has('c') ? compressedUnit(target, sources) : 0,
    offload: args.has('C'),
    progress,
    buffer: (lengthBytes) => tool.host.files.buffer(lengthBytes),
  }).run(sources);
  progress.update(1, 1);
  progress.finish();
  await finish(tool, target);
  return 0;
}

interface Plan {
  inputs: string[];
  output: string;
  /** The output is named by options; it and its format are not checked before it is open. */
  byOptions: boolean;
  format: string;
  optionTexts: Map<string, string>;
  backingFile: string | undefined;
  backingFormat: string | undefined;
  sparseBytes: number;
  parallel: number;
  cache: NonNullable<ReturnType<typeof cacheOptions>>;
  sourceCache: NonNullable<ReturnType<typeof cacheOptions>>;
  /** What of the input is read: the disk as it was then. */
  snapshot: LoadSnapshot | undefined;
}

function planOf(tool: Tool, args: Arguments): Plan {
  const snapshot = parseSnapshot(args);
  const sparseBytes = parseSparse(args);
  const parallel = parseParallel(args);
  if (args.has('n') && args.has('o')) throw new ToolFailure('-o has no effect when skipping image creation');
  const byOptions = args.has('target-image-opts');
  if (byOptions && !args.has('n')) throw new ToolFailure('--target-image-opts requires use of -n flag');
  if (args.has('target-is-zero') && !args.has('n'))
    throw new ToolFailure('--target-is-zero requires use of -n flag');
  const inputs = args.operands.slice(0, -1);
  const output = args.operands.at(-1);
  if (output === undefined || inputs.length === 0) throw new ToolFailure('Must specify image file name');
  const optionTexts = splitOptions(args.values('o'));
  if (optionTexts.has('size'))
    throw new ToolFailure('convert: -o size is not supported by livedisk: the source decides');
  const format = args.value('O') ?? 'raw';
  const cache = cacheOptions(args.value('t') ?? 'unsafe');
  if (!cache) throw new ToolFailure(`Invalid cache option: ${args.value('t')}`);
  const sourceCache = cacheOptions(args.value('T') ?? 'writeback');
  if (!sourceCache) throw new ToolFailure(`Invalid source cache option: ${args.value('T')}`);
  const backingFile = args.value('B') ?? optionTexts.get('backing_file');
  const backingFormat = args.value('F') ?? optionTexts.get('backing_fmt');
  if (inputs.length > 1 && backingFile !== undefined)
    throw new ToolFailure(
      'Having a backing file for the target makes no sense when concatenating multiple input images',
    );
  if (inputs.length > 1 && snapshot) throw new ToolFailure('No support for concatenating multiple snapshot');
  const plan = { inputs, output, byOptions, format, optionTexts, backingFile, backingFormat };
  if (!byOptions) checkTarget(tool, args, plan);
  return { ...plan, sparseBytes, parallel, cache, sourceCache, snapshot };
}

function parseSnapshot(args: Arguments): LoadSnapshot | undefined {
  const text = args.value('l');
  if (text === undefined) return undefined;
  try {
    return parseLoadSnapshot(text);
  } catch (error) {
    const { message, hint } = explain(error, '');
    const told = [
      `qemu-img: Failed in parsing snapshot param '${text}'`,
      ...(hint === undefined ? [] : [hint]),
    ];
    throw new ToolFailure(message, { hint: told.join('\n') });
  }
}

function parseSparse(args: Arguments): number {
  const bytes = args.size('S', 'buffer size for sparse output') ?? DEFAULT_SPARSE_BYTES;
  if (bytes % 512 !== 0 || bytes > MAX_SPARSE_BYTES)
    throw new ToolFailure(
      'Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to ' +
        `${MAX_SPARSE_BYTES}. Select 0 to disable sparse detection (fully allocates output).`,
    );
  if (args.has('C') && args.has('S')) throw new ToolFailure('Cannot enable copy offloading when -S is used');
  if (args.has('C') && args.has('c')) throw new ToolFailure('Cannot enable copy offloading when -c is used');
  return bytes;
}

function parseParallel(args: Arguments): number {
  const text = args.value('m');
  const parallel = text === undefined ? DEFAULT_PARALLEL : Number(text);
  if (Number.isInteger(parallel) && parallel >= 1 && parallel <= MAX_PARALLEL) return parallel;
  throw new ToolFailure(
    `Invalid number of coroutines. Allowed number of coroutines is between 1 and ${MAX_PARALLEL}`,
  );
}

function checkTarget(
  tool: Tool,
  args: Arguments,
  plan: Pick<Plan, 'format' | 'optionTexts' | 'backingFile' | 'backingFormat'>,
): void {
  const { format, optionTexts, backingFile, backingFormat } = plan;
  const driver = tool.opener.drivers.find(format);
  if (!driver) throw new ToolFailure(`Unknown file format '${format}'`);
  if (!args.has('n') && !driver.create)
    throw new ToolFailure(`Format driver '${format}' does not support image creation`);
  driverOptions(driver, optionTexts);
  if (backingFile !== undefined && !driver.options.backing)
    throw new ToolFailure(`Backing file not supported for file format '${format}'`);
  if (backingFormat !== undefined && !driver.options.backing)
    throw new ToolFailure(`Backing file format not supported for file format '${format}'`);
  if (backingFile !== undefined && backingFormat === undefined && !args.has('n'))
    throw new ToolFailure('Use of backing file requires explicit backing format');
  if (args.has('c')) checkCompresses(driver);
}

function checkCompresses({ compresses }: DriverDescription): void {
  if (compresses !== true) throw new ToolFailure('Compression not supported for this file format');
}

/** Clusters are compressed whole, of one source each. Errors: ToolFailure. */
function compressedUnit(target: BlockBackend, sources: readonly CopySource[]): number {
  const { clusterSizeBytes = 0 } = target.node.skipFilters().instance.info();
  if (sources.every(({ targetOffset }) => targetOffset % clusterSizeBytes === 0)) return clusterSizeBytes;
  throw new ToolFailure(
    'convert: -c of images that do not end at a whole cluster of the output, one behind the other, is not ' +
      'supported by livedisk',
  );
}

async function openSources(tool: Tool, args: Arguments, plan: Plan): Promise<CopySource[]> {
  const sources: CopySource[] = [];
  let targetOffset = 0;
  for (const input of plan.inputs) {
    const image = await tool.open(input, {
      format: args.value('f'),
      forceShare: args.has('force-share'),
      imageOpts: args.has('image-opts'),
      alone: true,
      cache: plan.sourceCache.options,
    });
    if (plan.snapshot) await loadSnapshot(image.node, plan.snapshot);
    sources.push({ image, targetOffset });
    targetOffset += image.lengthBytes;
  }
  return sources;
}

/** With -U no lock keeps a source from being overwritten. Errors: ToolFailure in the words of the lock. */
async function checkNotSource(tool: Tool, { output, format }: Plan): Promise<void> {
  if (!(await tool.isOpenHere(output))) return;
  throw new ToolFailure(`${output}: error while converting ${format}: Failed to get "write" lock`, {
    hint: `Is another process using the image [${output}]?`,
  });
}

async function createTarget(tool: Tool, plan: Plan, sizeBytes: number): Promise<void> {
  const { output, format, backingFile, backingFormat, optionTexts } = plan;
  const create = given({
    sizeBytes,
    backingFile,
    backingFormat,
    options: driverOptions(tool.opener.drivers.format(format), optionTexts),
  });
  const where = `${output}: error while converting ${format}: `;
  if (backingFormat !== undefined && backingFile === undefined)
    throw new ToolFailure(`${where}Backing format cannot be used without backing file`);
  if (backingFormat !== undefined && !tool.opener.drivers.find(backingFormat))
    throw new ToolFailure(`${where}${invalidBackingFormat(backingFormat)}`);
  try {
    await createImage(tool.opener, output, format, create);
  } catch (error) {
    throw explain(error, where);
  }
}

/** A new image's backing file is only opened to see that it is there: nothing is read from it. */
async function openTarget(tool: Tool, args: Arguments, plan: Plan): Promise<BlockBackend> {
  const { output, byOptions, format, cache } = plan;
  if (args.has('n') && plan.backingFile !== undefined)
    throw new UsageError('convert: -B with -n is not supported by livedisk');
  const target = await tool.open(output, {
    format: byOptions ? args.value('O') : format,
    imageOpts: byOptions,
    write: true,
    // What somebody else may be using keeps its size.
    resize: !args.has('n'),
    cache: cache.options,
    discard: plan.sparseBytes > 0 ? 'unmap' : 'ignore',
    writethrough: cache.writethrough,
  });
  if (!byOptions) return target;
  if (args.has('c')) checkCompresses(target.node.driver);
  // What the options name is known only now; with -U no lock keeps it from being a source.
  const shared = args.has('force-share') ? await tool.sharedFile(target.node) : undefined;
  if (shared === undefined) return target;
  throw new ToolFailure(`Could not open '${output}': Failed to get "write" lock`, {
    hint: `Is another process using the image [${shared}]?`,
  });
}

/** An export keeps what it held, whatever is created in it. */
function readsZeroWhenNew({ instance, filtered }: Node): boolean {
  return instance.readsZeroWhenNew === true && (filtered === undefined || readsZeroWhenNew(filtered.node));
}

async function finish(tool: Tool, target: BlockBackend): Promise<void> {
  try {
    await target.flush();
    await tool.close(target);
  } catch (error) {
    if (error instanceof BlockError) throw explain(error, 'error while writing: ');
    throw error;
  }
}
