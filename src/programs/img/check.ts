import { BlockError, errnoOf } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { ImageCheck, RepairMode } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import { cacheOptions } from '../io/cache.js';
import { fixed } from '../io/numbers.js';
import { Arguments, options } from './arguments.js';
import { explain, type Tool, ToolFailure, UsageError } from './tool.js';

/** Exit statuses of qemu-img check. */
const UNSUPPORTED = 63;
const CORRUPT = 2;
const LEAKY = 3;

/** check [-q] [-f FMT] [-T CACHE] [--output=human|json] [-r leaks|all] [-U] [--image-opts] FILE */
export async function checkCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f|format:', '|output:', 'r|repair:', 'q', 'U|force-share', '|image-opts', 'T:');
  const args = new Arguments(words, taken, { repair: repairMode });
  const repair = repairMode(args.value('repair'));
  const isQuiet = args.has('q');
  const cache = cacheOptions(args.value('T') ?? 'writeback');
  const filename = args.image();
  const json = args.wantsJson();
  if (!cache) throw new ToolFailure(`Invalid source cache option: ${args.value('T')}`);
  const backend = await tool.open(filename, {
    format: args.value('format'),
    imageOpts: args.has('image-opts'),
    forceShare: args.has('force-share'),
    write: repair !== 'none',
    cache: cache.options,
    writethrough: cache.writethrough,
    forCheck: true,
  });
  const { node } = backend;
  let result = await run(tool, node, repair);
  const { leaksFixed, corruptionsFixed } = result;
  if (leaksFixed > 0 || corruptionsFixed > 0) {
    if (!json && !isQuiet) tool.out.print(repairedText(result));
    result = { ...(await run(tool, node, 'none')), leaksFixed, corruptionsFixed };
  }
  if (!isQuiet) {
    if (json) tool.printJson(resultJson(result, filename, node.driver.name));
    else tool.out.print(resultText(result));
  }
  if (result.checkErrors > 0) throw new ToolFailure('Check failed');
  if (result.corruptions > 0) return CORRUPT;
  return result.leaks > 0 ? LEAKY : 0;
}

function repairMode(word: string | undefined): RepairMode {
  if (word === undefined) return 'none';
  if (word === 'leaks' || word === 'all') return word;
  throw new UsageError(`Unknown option value for -r (expecting 'leaks' or 'all'): ${word}`);
}

async function run(tool: Tool, node: Node, repair: RepairMode): Promise<ImageCheck> {
  const { instance } = node;
  const unsupported = (): ToolFailure =>
    new ToolFailure('This image format does not support checks', { status: UNSUPPORTED });
  if (!instance.check) throw unsupported();
  try {
    return await instance.check(repair, (line) => tool.out.error(`${line}\n`));
  } catch (error) {
    if (error instanceof BlockError && errnoOf(error) === 'ENOTSUP') throw unsupported();
    const why = error instanceof BlockError && error.kind === 'limit' ? error.cause : undefined;
    if (why instanceof BlockError) tool.out.error(`qemu-img: ${why.message}\n`);
    throw explain(error, 'Check failed: ');
  }
}

/** QAPI's ImageCheck, members in the order qemu-img prints them; counts of nothing are left out. */
function resultJson(result: ImageCheck, filename: string, format: string): object {
  const some = (count: number): number | undefined => (count === 0 ? undefined : count);
  return given({
    'image-end-offset': some(result.imageEndOffset),
    'compressed-clusters': some(result.compressedClusters),
    'total-clusters': some(result.totalClusters),
    corruptions: some(result.corruptions),
    'corruptions-fixed': some(result.corruptionsFixed),
    'check-errors': result.checkErrors,
    leaks: some(result.leaks),
    'leaks-fixed': some(result.leaksFixed),
    'allocated-clusters': some(result.allocatedClusters),
    filename,
    format,
    'fragmented-clusters': some(result.fragmentedClusters),
  });
}

function repairedText({ leaksFixed, corruptionsFixed }: ImageCheck): string {
  return (
    'The following inconsistencies were found and repaired:\n\n' +
    `    ${leaksFixed} leaked clusters\n    ${corruptionsFixed} corruptions\n\n` +
    'Double checking the fixed image now...\n'
  );
}

function resultText(result: ImageCheck): string {
  return findingsText(result) + statisticsText(result);
}

function findingsText({ corruptions, leaks, checkErrors }: ImageCheck): string {
  if (corruptions + leaks + checkErrors === 0) return 'No errors were found on the image.\n';
  let text = '';
  if (corruptions > 0) {
    text +=
      `\n${corruptions} errors were found on the image.\n` +
      'Data may be corrupted, or further writes to the image may corrupt it.\n';
  }
  if (leaks > 0) {
    text +=
      `\n${leaks} leaked clusters were found on the image.\n` +
      'This means waste of disk space, but no harm to data.\n';
  }
  if (checkErrors > 0) text += `\n${checkErrors} internal errors have occurred during the check.\n`;
  return text;
}

function statisticsText(result: ImageCheck): string {
  const { totalClusters, allocatedClusters, imageEndOffset } = result;
  let text = '';
  if (totalClusters > 0 && allocatedClusters > 0) {
    const percent = (part: number, whole: number): string => `${fixed((part * 100) / whole, 2)}%`;
    text +=
      `${allocatedClusters}/${totalClusters} = ${percent(allocatedClusters, totalClusters)} allocated, ` +
      `${percent(result.fragmentedClusters, allocatedClusters)} fragmented, ` +
      `${percent(result.compressedClusters, allocatedClusters)} compressed clusters\n`;
  }
  if (imageEndOffset > 0) text += `Image end offset: ${imageEndOffset}\n`;
  return text;
}
