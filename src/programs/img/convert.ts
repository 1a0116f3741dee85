import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { MiB } from '../../base/limits.js';
import type { BlockBackend } from '../../block/backend.js';
import type { DriverDescription, NodeOptions } from '../../block/driver.js';
import { createImage, protocolFor } from '../../block/create.js';
import { readsZeroWhenNew } from '../../block/zero-target.js';
import { ContentHash, type ContentSink } from '../../library/images/content-hash.js';
import { FlatOptions } from '../../schema/flat.js';
import { ImageCopy } from '../../library/images/copy.js';
import { SourceImages } from '../../library/images/source-images.js';
import { type LoadSnapshot, loadSnapshot } from '../arguments/load-snapshot.js';
import { cacheOptions } from '../io/cache.js';
import { Arguments, cacheMode, options, parseSnapshot, sizeOf, snapshotOf } from './arguments.js';
import { BitmapCopy } from './convert-bitmaps.js';
import { hashAlgorithm } from './checksum.js';
import {
  checkOptionTexts,
  checkTakesBacking,
  driverOptions,
  fileTraits,
  invalidBackingFormat,
  type OptionTexts,
  splitOptions,
} from './create-options.js';
import { asksForHelp, printOptionHelp } from './option-help.js';
import { ConvertCheck } from './verify.js';
import { explain, type Tool, ToolFailure } from './tool.js';

const DEFAULT_SPARSE_BYTES = 4096;
const MAX_SPARSE_BYTES = 16 * MiB;
const DEFAULT_PARALLEL = 8;
const MAX_PARALLEL = 16;

/**
 * convert [-U] [-C] [-c] [-p] [-q] [-n] [-f FMT] [-t CACHE] [-T CACHE] [-O FMT] [-B BACKING [-F FMT]] [-o OPTIONS]
 * [-l SNAPSHOT] [-S SIZE] [-m N] [-W] [-r RATE] [--salvage] [--checksum ALGORITHM] [--manifest FILE] [--verify] [--target-is-zero]
 * [--bitmaps [--skip-broken-bitmaps]] [--image-opts]
 * [--target-image-opts] FILE [FILE2 ...] OUTPUT
 */
export async function convertCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options(
    ...['f:', 'O:', 'o:', 'B:', 'F:', 'S:', 'l:', 'm:', 't:', 'T:', 'r:'],
    ...[
      'n',
      'p',
      'q',
      'c',
      'W',
      'C',
      'U|force-share',
      '|salvage',
      '|checksum:',
      '|manifest:',
      '|verify',
      '|target-is-zero',
      '|bitmaps',
      '|skip-broken-bitmaps',
      '|image-opts',
      '|target-image-opts',
    ],
  );
  const args = new Arguments(words, taken, {
    l: parseSnapshot,
    m: parallelOf,
    o: (text) => splitOptions([text]),
    r: (text) => sizeOf(text, 'rate limit'),
    S: sparseOf,
  });
  if (asksForHelp(args.values('o'))) {
    await printOptionHelp(tool, args.value('O') ?? 'raw', args.operands.at(-1));
    return 0;
  }
  const bitmaps = BitmapCopy.of(tool, args);
  const plan = planOf(args);
  const isQuiet = args.has('q');
  const progress = tool.progress(args.has('p') && !isQuiet).begin();
  const images = await openSources(tool, args, plan);
  await showSnapshots(images, plan);
  checkTarget(tool, args, plan);
  // Before a file that is there is lost to it.
  cacheMode(args, 't', 'unsafe', 'cache');
  bitmaps?.checkSources(images.map(({ node }) => node));
  const source = new SourceImages(
    images,
    args.has('salvage') ? (text) => warn(tool, isQuiet, text) : undefined,
  );
  const check = await ConvertCheck.of(tool, args, source, plan.backingFile !== undefined);
  if (!args.has('n')) await createTarget(tool, plan, source.lengthBytes);
  const target = await openTarget(tool, args, plan);
  bitmaps?.checkTarget(target.node);
  if (args.has('target-is-zero') && plan.backingFile !== undefined)
    throw new ToolFailure('Cannot use --target-is-zero when the destination image has a backing file');
  if (target.lengthBytes < source.lengthBytes)
    throw new ToolFailure('output file is smaller than input file');
  const isNew = !args.has('n') && readsZeroWhenNew(target.node);
  const backing = target.node.backingNode();
  const { hash } = plan;
  const sink = sinkOf([hash, check?.stream]);
  await new ImageCopy(source, target, {
    parallel: plan.parallel,
    sparseBytes: plan.sparseBytes,
    targetIsZero: (isNew && plan.backingFile === undefined) || args.has('target-is-zero'),
    // What was there before may have none.
    targetHasBacking: plan.backingFile !== undefined && backing !== undefined,
    targetBackingEnd: args.has('n') ? undefined : backing?.lengthBytes,
    // Where a byte lies is decided by the order of writes only in an image that gives out clusters.
    inOrder: sink !== undefined || (target.node.instance.map !== undefined && !args.has('W')),
    compressedUnitBytes: args.has('c') ? compressedUnit(target) : 0,
    offload: args.has('C'),
    bytesPerSecond: plan.bytesPerSecond,
    hash: sink,
    progress: (done, total) => progress.update(done, total),
    buffer: (lengthBytes) => tool.host.files.buffer(lengthBytes),
  }).run();
  const [image] = images;
  if (image) bitmaps?.copy(image.node, target.node);
  progress.complete();
  progress.finish();
  await finish(tool, target, check && (() => check.finish(source, target)));
  if (hash) tool.out.print(`${hash.digest()}  ${plan.output}\n`);
  return 0;
}

/** One that feeds all that there are. */
function sinkOf(all: ReadonlyArray<ContentSink | undefined>): ContentSink | undefined {
  const sinks = all.filter((sink) => sink !== undefined);
  if (sinks.length < 2) return sinks[0];
  return {
    add: (bytes) => sinks.forEach((sink) => sink.add(bytes)),
    addZeroes: (lengthBytes) => sinks.forEach((sink) => sink.addZeroes(lengthBytes)),
  };
}

function warn(tool: Tool, isQuiet: boolean, text: string): void {
  if (!isQuiet) tool.out.error(`qemu-img: warning: ${text}\n`);
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
  sourceCache: NonNullable<ReturnType<typeof cacheOptions>>;
  bytesPerSecond: number;
  /** Of what is copied. */
  hash: ContentHash | undefined;
  /** What of the input is read: the disk as it was then. */
  snapshot: LoadSnapshot | undefined;
}

function planOf(args: Arguments): Plan {
  const snapshot = snapshotOf(args);
  const sparseText = args.value('S');
  const sparseBytes = sparseText === undefined ? DEFAULT_SPARSE_BYTES : sparseOf(sparseText);
  const bytesPerSecond = args.size('r', 'rate limit') ?? 0;
  if (args.has('C') && args.has('c')) throw new ToolFailure('Cannot enable copy offloading when -c is used');
  if (args.has('C') && args.has('S')) throw new ToolFailure('Cannot enable copy offloading when -S is used');
  if (args.has('C') && args.has('salvage'))
    throw new ToolFailure('Cannot use copy offloading in salvaging mode');
  const parallelText = args.value('m');
  const parallel = parallelText === undefined ? DEFAULT_PARALLEL : parallelOf(parallelText);
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
  const sourceCache = cacheOptions(args.value('T') ?? 'writeback');
  if (!sourceCache) throw new ToolFailure(`Invalid source cache option: ${args.value('T')}`);
  const backingFile = args.value('B') ?? optionTexts.get('backing_file');
  const backingFormat = args.value('F') ?? optionTexts.get('backing_fmt');
  const plan = { inputs, output, byOptions, format, optionTexts, backingFile, backingFormat };
  const hash = parseChecksum(args, backingFile !== undefined);
  return { ...plan, sparseBytes, parallel, sourceCache, bytesPerSecond, hash, snapshot };
}

/** Errors: ToolFailure where not all that is copied is read, or not in order. */
function parseChecksum(args: Arguments, hasBacking: boolean): ContentHash | undefined {
  const text = args.value('checksum');
  if (text === undefined) return undefined;
  const other = [args.has('C') && '-C', args.has('W') && '-W', hasBacking && '-B'].find(
    (one) => one !== false,
  );
  if (other !== undefined) throw new ToolFailure(`--checksum and ${other} are mutually exclusive`);
  return new ContentHash(hashAlgorithm(text));
}

function sparseOf(text: string): number {
  const bytes = sizeOf(text, 'buffer size for sparse output');
  if (bytes % 512 !== 0 || bytes > MAX_SPARSE_BYTES)
    throw new ToolFailure(
      'Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to ' +
        `${MAX_SPARSE_BYTES}. Select 0 to disable sparse detection (fully allocates output).`,
    );
  return bytes;
}

function parallelOf(text: string): number {
  const parallel = Number(text);
  if (Number.isInteger(parallel) && parallel >= 1 && parallel <= MAX_PARALLEL) return parallel;
  throw new ToolFailure(
    `Invalid number of coroutines. Allowed number of coroutines is between 1 and ${MAX_PARALLEL}`,
  );
}

function checkTarget(
  tool: Tool,
  args: Arguments,
  { inputs, byOptions, output, format, optionTexts, backingFile, backingFormat }: Plan,
): void {
  const severalAsOverlay = inputs.length > 1 && backingFile !== undefined;
  if (args.has('n')) {
    if (severalAsOverlay) throw noSeveralAsOverlay();
    if (!byOptions && !tool.opener.drivers.find(format))
      throw new ToolFailure(`Could not open '${output}': Unknown driver '${format}'`);
    return;
  }
  const driver = tool.opener.drivers.find(format);
  if (!driver) throw new ToolFailure(`Unknown file format '${format}'`);
  if (!driver.create) throw new ToolFailure(`Format driver '${format}' does not support image creation`);
  checkOptionTexts(driver, optionTexts);
  checkTakesBacking(driver, backingFile, backingFormat);
  if (severalAsOverlay) throw noSeveralAsOverlay();
  if (backingFile !== undefined && backingFormat === undefined)
    throw new ToolFailure('Use of backing file requires explicit backing format');
  if (args.has('c')) checkCompresses(driver);
  if (args.has('c') && (optionTexts.has('encrypt.format') || optionTexts.get('encryption') === 'on'))
    throw new ToolFailure('Compression and encryption not supported at the same time');
}

function noSeveralAsOverlay(): ToolFailure {
  return new ToolFailure(
    'Having a backing file for the target makes no sense when concatenating multiple input images',
  );
}

function checkCompresses({ compresses }: DriverDescription): void {
  if (compresses !== true) throw new ToolFailure('Compression not supported for this file format');
}

/** Clusters are compressed whole. Errors: ToolFailure where there are none. */
function compressedUnit(target: BlockBackend): number {
  const unitBytes = target.node.skipFilters().instance.info().clusterSizeBytes ?? 0;
  if (unitBytes === 0) throw new ToolFailure('invalid cluster size');
  return unitBytes;
}

async function openSources(tool: Tool, args: Arguments, plan: Plan): Promise<BlockBackend[]> {
  const images: BlockBackend[] = [];
  for (const input of plan.inputs) {
    const image = await tool.open(input, {
      format: args.value('f'),
      forceShare: args.has('force-share'),
      imageOpts: args.has('image-opts'),
      alone: true,
      cache: plan.sourceCache.options,
    });
    images.push(image);
  }
  return images;
}

async function showSnapshots(images: readonly BlockBackend[], { snapshot }: Plan): Promise<void> {
  if (!snapshot) return;
  const [first] = images;
  if (images.length > 1 && 'idOrName' in snapshot)
    throw new ToolFailure('No support for concatenating multiple snapshot');
  if (first) await loadSnapshot(first.node, snapshot);
}

async function createTarget(tool: Tool, plan: Plan, sizeBytes: number): Promise<void> {
  const { output, format, backingFile, backingFormat, optionTexts } = plan;
  const where = `${output}: error while converting ${format}: `;
  const create = given({
    sizeBytes,
    backingFile,
    backingFormat,
    options: optionsOf(tool.opener.drivers.format(format), optionTexts, where),
    file: fileTraits(optionTexts),
  });
  await protocolFor(tool.opener, output);
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

function optionsOf(driver: DriverDescription, texts: OptionTexts, where: string): NodeOptions {
  try {
    return driverOptions(driver, texts);
  } catch (error) {
    if (!(error instanceof ToolFailure)) throw error;
    throw new ToolFailure(`${where}${error.message}`, { hint: error.hint });
  }
}

/** What a new image is encrypted with opens it too. */
function secretsOf(texts: ReadonlyMap<string, string>): NodeOptions {
  const keys = [...texts].filter(([name]) => name.endsWith('key-secret') || name === 'encrypt.format');
  return FlatOptions.of(Object.fromEntries(keys)).nested();
}

/** A new image's backing file is only opened to see that it is there: nothing is read from it. */
async function openTarget(tool: Tool, args: Arguments, plan: Plan): Promise<BlockBackend> {
  const { output, byOptions, format } = plan;
  const cache = cacheMode(args, 't', 'unsafe', 'cache');
  const target = await tool.open(output, {
    options: byOptions ? undefined : secretsOf(plan.optionTexts),
    format: byOptions ? args.value('O') : format,
    imageOpts: byOptions,
    write: true,
    // What somebody else may be using keeps its size.
    resize: !args.has('n'),
    cache: cache.options,
    discard: plan.sparseBytes > 0 ? 'unmap' : 'ignore',
    writethrough: cache.writethrough,
  });
  if (args.has('c') && args.has('n')) checkCompresses(target.node.driver);
  // With -U no lock keeps a file of the target from being a source.
  const shared = args.has('force-share') ? await tool.sharedFile(target.node) : undefined;
  if (shared === undefined) return target;
  throw new ToolFailure(`Could not open '${output}': Failed to get "write" lock`, {
    hint: `Is another process using the image [${shared}]?`,
  });
}

async function finish(tool: Tool, target: BlockBackend, check?: () => Promise<void>): Promise<void> {
  try {
    await target.flush();
    await check?.();
    await tool.close(target);
  } catch (error) {
    if (error instanceof BlockError) throw explain(error, 'error while writing: ');
    throw error;
  }
}
