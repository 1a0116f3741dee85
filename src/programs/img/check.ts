import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { checkQcow2, type Qcow2CheckResult } from '../../drivers/qcow2/check/check.js';
import { fixed } from '../io/numbers.js';
import { Arguments, options } from './arguments.js';
import { explain, type Tool, ToolFailure, UsageError } from './tool.js';

/** Exit statuses of qemu-img check. */
const UNSUPPORTED = 63;
const CORRUPT = 2;
const LEAKY = 3;

/** check [-q] [-f FMT] [--output=human|json] [-U] [--image-opts] FILE */
export async function checkCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f|format:', '|output:', 'r|repair:', 'q', 'U|force-share', '|image-opts');
  const args = new Arguments('check', words, taken, options('T:'));
  const repair = args.value('repair');
  if (repair !== undefined && repair !== 'leaks' && repair !== 'all')
    throw new UsageError(`Unknown option value for -r (expecting 'leaks' or 'all'): ${repair}`);
  if (repair !== undefined) throw new ToolFailure(`check: -r ${repair} is not supported by livedisk`);
  const json = args.wantsJson();
  const filename = args.image();
  const backend = await tool.open(filename, {
    format: args.value('format'),
    imageOpts: args.has('image-opts'),
    forceShare: args.has('force-share'),
  });
  const { node } = backend;
  if (node.driver.name !== 'qcow2')
    throw new ToolFailure('This image format does not support checks', { status: UNSUPPORTED });
  const result = await run(() => checkQcow2(node.child('file')));
  if (result.messages.length > 0) tool.out.error(`${result.messages.join('\n')}\n`);
  if (json) tool.printJson(resultJson(result, filename, node.driver.name));
  else if (!args.has('q')) tool.out.print(resultText(result));
  if (result.checkErrors > 0) return 1;
  if (result.corruptions > 0) return CORRUPT;
  return result.leaks > 0 ? LEAKY : 0;
}

async function run(check: () => Promise<Qcow2CheckResult>): Promise<Qcow2CheckResult> {
  try {
    return await check();
  } catch (error) {
    if (error instanceof BlockError) throw explain(error, 'Check failed: ');
    throw error;
  }
}

/** QAPI's ImageCheck, members in the order qemu-img prints them; counts of nothing are left out. */
function resultJson(result: Qcow2CheckResult, filename: string, format: string): object {
  const some = (count: number): number | undefined => (count === 0 ? undefined : count);
  return given({
    'image-end-offset': some(result.imageEndOffset),
    'total-clusters': some(result.totalClusters),
    corruptions: some(result.corruptions),
    'check-errors': result.checkErrors,
    leaks: some(result.leaks),
    'fragmented-clusters': some(result.fragmentedClusters),
    'allocated-clusters': some(result.allocatedClusters),
    filename,
    format,
    'compressed-clusters': some(result.compressedClusters),
  });
}

function resultText(result: Qcow2CheckResult): string {
  return findingsText(result) + statisticsText(result);
}

function findingsText({ corruptions, leaks, checkErrors }: Qcow2CheckResult): string {
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

function statisticsText(result: Qcow2CheckResult): string {
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
