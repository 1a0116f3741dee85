import { alignUp } from '../../base/align.js';
import { newImage } from '../../block/create.js';
import type { DriverDescription, Measurement, NewImage, NodeOptions } from '../../block/driver.js';
import { measureImage } from '../../library/images/measure.js';
import { loadSnapshot } from '../arguments/load-snapshot.js';
import { Arguments, options, outputIsJson, parseSnapshot, sizeOf, snapshotOf } from './arguments.js';
import { driverOptions, type OptionTexts, sizeValue, splitOptions } from './create-options.js';
import { explain, type Tool, ToolFailure } from './tool.js';

const SECTOR_BYTES = 512;

/** measure [--output=human|json] [-O FMT] [-o OPTIONS] [--size N | [-f FMT] [-l SNAPSHOT] [--image-opts] [-U] FILE] */
export async function measureCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f:', 'O:', 'o:', 'l:', 'U|force-share', '|image-opts', '|output:', '|size:');
  const args = new Arguments(words, taken, {
    l: parseSnapshot,
    o: (text) => splitOptions([text]),
    output: outputIsJson,
    size: (text) => sizeOf(text, 'image size'),
  });
  const json = args.wantsJson();
  const snapshot = snapshotOf(args);
  const sizeBytes = args.size('size', 'image size');
  const [filename] = args.operands;
  if (args.operands.length > 1) throw new ToolFailure('At most one filename argument is allowed.');
  if (filename === undefined && (args.has('image-opts') || args.has('f') || args.has('l')))
    throw new ToolFailure('--image-opts, -f, and -l require a filename argument.');
  if (filename === undefined && sizeBytes === undefined)
    throw new ToolFailure('Either --size N or one filename must be specified.');
  if (filename !== undefined && sizeBytes !== undefined)
    throw new ToolFailure('--size N cannot be used together with a filename.');
  const source =
    filename === undefined
      ? undefined
      : await tool.open(filename, {
          format: args.value('f'),
          imageOpts: args.has('image-opts'),
          forceShare: args.has('force-share'),
        });
  if (source && snapshot) await loadSnapshot(source.node, snapshot);
  const driver = driverOf(tool, args.value('O') ?? 'raw');
  try {
    const image = plannedImage(driver, args.values('o'), sizeBytes ?? source?.lengthBytes ?? 0);
    print(
      tool,
      await measureImage(driver, image, { source: source?.node, objects: tool.graph.objects }),
      json,
    );
  } catch (error) {
    throw explain(error, '');
  }
  return 0;
}

/** Errors: ToolFailure. */
function driverOf(tool: Tool, format: string): DriverDescription {
  const driver = tool.opener.drivers.find(format);
  if (!driver) throw new ToolFailure(`Unknown file format '${format}'`);
  if (!driver.create && !driver.createFile && driver.takesImages !== true)
    throw new ToolFailure(`Format driver '${format}' does not support image creation`);
  return driver;
}

/** The image that would be made. A size among the options counts for nothing beside one that was given. */
function plannedImage(
  driver: DriverDescription,
  optionTexts: readonly string[],
  sizeBytes: number,
): NewImage {
  const { texts, options } = parsedOptions(driver, optionTexts);
  const [backingFile, backingFormat] = [texts.get('backing_file'), texts.get('backing_fmt')];
  return newImage(driver, {
    sizeBytes: alignUp(sizeBytes, SECTOR_BYTES),
    options,
    ...(backingFile !== undefined && { backingFile }),
    ...(backingFile !== undefined && backingFormat !== undefined && { backingFormat }),
  });
}

/** Errors: ToolFailure, of two lines. */
function parsedOptions(
  driver: DriverDescription,
  optionTexts: readonly string[],
): { texts: OptionTexts; options: NodeOptions } {
  const texts = splitOptions(optionTexts);
  try {
    const size = texts.get('size');
    if (size !== undefined) sizeValue('size', size);
    return { texts, options: driverOptions(driver, texts) };
  } catch (error) {
    if (!(error instanceof ToolFailure)) throw error;
    const hint = [error.hint, `qemu-img: Invalid options for file format '${driver.name}'`];
    throw new ToolFailure(error.message, { hint: hint.filter((line) => line !== undefined).join('\n') });
  }
}

function print(tool: Tool, measured: Measurement, json: boolean): void {
  const { bitmapsBytes, requiredBytes, fullyAllocatedBytes } = measured;
  if (json) {
    tool.printJson({
      ...(bitmapsBytes !== undefined && { bitmaps: bitmapsBytes }),
      required: requiredBytes,
      'fully-allocated': fullyAllocatedBytes,
    });
    return;
  }
  tool.out.print(`required size: ${requiredBytes}\nfully allocated size: ${fullyAllocatedBytes}\n`);
  if (bitmapsBytes !== undefined) tool.out.print(`bitmaps size: ${bitmapsBytes}\n`);
}
