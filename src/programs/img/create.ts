import { alignUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { assertOverlayFits } from '../../block/chain-limit.js';
import { createImage, formattingText, protocolFor } from '../../block/create.js';
import type { DriverDescription } from '../../block/driver.js';
import { isOpenHere } from '../../block/file-identity.js';
import { resolveBacking } from '../../block/filename.js';
import { Arguments, options, sizeOf } from './arguments.js';
import {
  checkOptionTexts,
  checkTakesBacking,
  driverOptions,
  fileTraits,
  invalidBackingFormat,
  sizeValue,
  splitOptions,
} from './create-options.js';
import { asksForHelp, printOptionHelp } from './option-help.js';
import { explain, type Tool, ToolFailure, UsageError } from './tool.js';

const SECTOR_BYTES = 512;

/** create [-q] [-f FMT] [-b BACKING [-F FMT]] [-u] [-o OPTIONS] FILE [SIZE] */
export async function createCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f:', 'F:', 'b:', 'u', 'q', 'o:');
  const args = new Arguments(words, taken, { o: (text) => splitOptions([text]) });
  const [filename, sizeText, extra] = args.operands;
  if (asksForHelp(args.values('o'))) {
    await printOptionHelp(tool, args.value('f') ?? 'raw', filename);
    return 0;
  }
  if (filename === undefined) throw new UsageError('Expecting image file name');
  if (extra !== undefined) throw new UsageError(`Unexpected argument: ${extra}`);
  const sizeGiven = sizeText === undefined ? undefined : sizeOf(sizeText, 'image size');
  const format = args.value('f') ?? 'raw';
  const texts = splitOptions(args.values('o'));
  try {
    const { text, create } = await prepare(tool, args, filename, { format, texts, sizeGiven });
    if (!args.has('q')) tool.out.print(text);
    await create();
    return 0;
  } catch (error) {
    if (error instanceof ToolFailure)
      throw new ToolFailure(`${filename}: ${error.message}`, { hint: error.hint });
    throw explain(sizeError(error, tool, format), `${filename}: `);
  }
}

/** Of an image that is too large for its tables, with what may help. */
function sizeError(error: unknown, tool: Tool, format: string): unknown {
  if (!(error instanceof BlockError) || error.kind !== 'limit' || error.errno !== 'EFBIG') return error;
  const hasClusters = tool.opener.drivers.find(format)?.createOptions?.['cluster-size'] !== undefined;
  const hint = hasClusters ? ' (try using a larger cluster size)' : '';
  return new BlockError('limit', `The image size is too large for file format '${format}'${hint}`);
}

interface NewImage {
  format: string;
  texts: Map<string, string>;
  sizeGiven: number | undefined;
}

async function prepare(
  tool: Tool,
  args: Arguments,
  filename: string,
  { format, texts, sizeGiven }: NewImage,
): Promise<{ text: string; create: () => Promise<void> }> {
  const driver = formatOf(tool, format);
  await protocolFor(tool.opener, filename);
  checkOptionTexts(driver, texts);
  const sizeOption = texts.get('size');
  const sizeAmongOptions = sizeOption === undefined ? undefined : sizeValue('size', sizeOption);
  if (sizeAmongOptions !== undefined && sizeGiven !== undefined)
    throw new ToolFailure('The image size must be specified only once');
  // The same option in two spellings; -b and -F come last in QEMU.
  const [backing, backingFormat] = [args.value('b'), args.value('F')];
  checkTakesBacking(driver, backing, backingFormat);
  if (backing !== undefined) texts.set('backing_file', backing);
  if (backingFormat !== undefined) texts.set('backing_fmt', backingFormat);
  const size = await withBacking(tool, filename, texts, sizeAmongOptions ?? sizeGiven, args.has('u'));
  return {
    text: `Formatting '${filename}', ${formattingText(driver, size, texts)}\n`,
    create: () => {
      const image = {
        // Formats count in sectors, as QEMU's do.
        sizeBytes: alignUp(size, SECTOR_BYTES),
        ...backingOf(tool, texts),
        options: driverOptions(driver, texts),
        file: fileTraits(texts),
      };
      return createImage(tool.opener, filename, format, given(image));
    },
  };
}

/** Errors: ToolFailure; a name without a format was refused before. */
function backingOf(
  tool: Tool,
  texts: ReadonlyMap<string, string>,
): { backingFile: string | undefined; backingFormat: string | undefined } {
  const [backingFile, backingFormat] = [texts.get('backing_file'), texts.get('backing_fmt')];
  if (backingFormat !== undefined && !tool.opener.drivers.find(backingFormat))
    throw new ToolFailure(invalidBackingFormat(backingFormat));
  if (backingFormat !== undefined && backingFile === undefined)
    throw new ToolFailure('Backing format cannot be used without backing file');
  return { backingFile, backingFormat };
}

/** Errors: ToolFailure in QEMU's words. */
function formatOf(tool: Tool, format: string): DriverDescription {
  const driver = tool.opener.drivers.find(format);
  if (!driver) throw new ToolFailure(`Unknown file format '${format}'`);
  if (!driver.create) throw new ToolFailure(`Format driver '${format}' does not support image creation`);
  return driver;
}

/** Looks at the backing file, unless told not to; answers the size of the new image. */
async function withBacking(
  tool: Tool,
  filename: string,
  texts: ReadonlyMap<string, string>,
  sizeBytes: number | undefined,
  unsafe: boolean,
): Promise<number> {
  const backing = texts.get('backing_file');
  const noSize = (): ToolFailure => new ToolFailure('Image creation needs a size parameter');
  if (backing === '') throw new ToolFailure('Expected backing file name, got empty string');
  if (backing === undefined) {
    if (sizeBytes === undefined) throw noSize();
    return sizeBytes;
  }
  if (backing === filename) throw sameFile();
  const format = texts.get('backing_fmt');
  if (unsafe) {
    if (format === undefined) throw new ToolFailure('Backing file specified without backing format');
    if (sizeBytes === undefined) throw noSize();
    if (!tool.opener.drivers.find(format)) throw new ToolFailure(invalidBackingFormat(format));
    return sizeBytes;
  }
  const name = resolveBacking(filename, backing);
  const { length, hasTarget } = await lookAtBacking(tool, filename, name, format);
  if (hasTarget) throw sameFile();
  if (format === undefined) {
    const found = await tool.opener.probeFormat(name);
    throw new ToolFailure('Backing file specified without backing format', {
      hint: `Detected format of ${found}.`,
    });
  }
  return sizeBytes ?? length;
}

function sameFile(): ToolFailure {
  return new ToolFailure('Error: Trying to create an image with the same filename as the backing file');
}

/**
 * The backing file's size, and whether it or what is below it is the file that is to be made. It stays open, so that
 * nothing that it reads is emptied.
 */
async function lookAtBacking(
  tool: Tool,
  filename: string,
  name: string,
  format: string | undefined,
): Promise<{ length: number; hasTarget: boolean }> {
  try {
    const look = { readOnly: true, forceShare: true, onlyLook: true };
    const node = await tool.opener
      .openImage(name, format, { ...look, opensNamedFiles: true })
      // A file that it names may be missing.
      .catch(() => tool.opener.openImage(name, format, look));
    const { lengthBytes: length } = (await tool.use(node, { onlyLook: true })).node;
    assertOverlayFits(node);
    return { length, hasTarget: await isOpenHere(tool.opener, filename) };
  } catch (error) {
    const failure = explain(error, '');
    const hint = [failure.hint, 'Could not open backing image.'].filter((line) => line !== undefined);
    throw new ToolFailure(failure.message, { hint: hint.join('\n') });
  }
}
