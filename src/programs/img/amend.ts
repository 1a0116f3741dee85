import type { BlockBackend } from '../../block/backend.js';
import type { DriverDescription, ImageAmendment } from '../../block/driver.js';
import { LUKS_AMEND_MEMBERS, type LuksAmendment } from '../../schema/encryption-options.js';
import { bool, int, struct } from '../../schema/types.js';
import { cacheOptions } from '../io/cache.js';
import { Arguments, options } from './arguments.js';
import { type OptionTexts, sizeValue, splitOptions } from './create-options.js';
import { asksForHelp, optionLines } from './option-help.js';
import type { Progress } from './progress.js';
import { explain, type Tool, ToolFailure, UsageError } from './tool.js';

const VERSIONS: Readonly<Record<string, 2 | 3>> = { '0.10': 2, v2: 2, '1.1': 3, v3: 3 };
/** What QEMU changes of an image that is there. */
const AMENDABLE = new Set([
  'size',
  'compat',
  'lazy_refcounts',
  'refcount_bits',
  'backing_file',
  'backing_fmt',
  'data_file',
  'data_file_raw',
]);

/** amend [-p] [-q] [-f FMT] [-t CACHE] [--force] [--image-opts] -o OPTIONS FILE */
export async function amendCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('o:', 'f:', 't:', 'p', 'q', '|force', '|image-opts');
  const args = new Arguments(words, taken, { o: (text) => splitOptions([text]) });
  if (!args.has('o')) throw new UsageError('Must specify options (-o)');
  const [filename] = args.operands;
  const [format, asksHelp] = [args.value('f'), asksForHelp(args.values('o'))];
  if (asksHelp && format !== undefined) return printAmendHelp(tool, format);
  if (filename === undefined || args.operands.length !== 1)
    throw new ToolFailure('Expecting one image file name');
  const progress = tool.progress(args.has('p') && !args.has('q'));
  const cache = cacheOptions(args.value('t') ?? 'writeback');
  if (!cache) throw new ToolFailure(`Invalid cache option: ${args.value('t')}`);
  const backend = await tool.open(filename, {
    format,
    imageOpts: args.has('image-opts'),
    write: true,
    resize: true,
    cache: cache.options,
    writethrough: cache.writethrough,
  });
  if (asksHelp) return printAmendHelp(tool, backend.node.driver.name);
  try {
    await amend(backend, splitOptions(args.values('o')), args.has('force'), progress);
  } catch (error) {
    throw explain(error, '');
  }
  progress.finish();
  await tool.close(backend);
  return 0;
}

/** Errors: ToolFailure, those of the image. */
async function amend(
  backend: BlockBackend,
  texts: OptionTexts,
  isForced: boolean,
  progress: Progress,
): Promise<void> {
  const { driver, instance } = backend.node;
  if (!instance.amend)
    throw new ToolFailure(`Format driver '${driver.name}' does not support option amendment`);
  const changes: ImageAmendment = {};
  for (const [name, text] of texts) {
    checkOption(driver, name, texts);
    takeOption(backend, changes, name, text);
  }
  const keyOptions = [...texts].filter(([name]) => driver.amendOptions?.includes(name));
  progress.begin();
  try {
    const compat = texts.get('compat');
    if (compat !== undefined && changes.version === undefined)
      throw new ToolFailure(`Unknown compatibility level ${compat}`);
    if (keyOptions.length > 0) changes.keySlots = { amendment: keySlotsOf(keyOptions), isForced };
    await instance.amend(changes);
  } finally {
    // As far as it goes, it has come, in QEMU's eyes.
    progress.complete();
  }
}

/** Errors: ToolFailure when the text is none of the option's values. */
function takeOption(backend: BlockBackend, changes: ImageAmendment, name: string, text: string): void {
  switch (name) {
    case 'size': {
      const sizeBytes = sizeValue('size', text);
      if (sizeBytes !== backend.lengthBytes) changes.resize = () => backend.truncate(sizeBytes);
      break;
    }
    case 'compat': {
      const version = VERSIONS[text];
      if (version !== undefined) changes.version = version;
      break;
    }
    case 'lazy_refcounts':
      changes.lazyRefcounts = bool.parse(text, name, 'flat');
      break;
    case 'refcount_bits':
      changes.refcountBits = int.parse(text, name, 'flat');
      break;
    case 'backing_file':
      changes.backing = { format: undefined, ...changes.backing, filename: text };
      break;
    case 'backing_fmt':
      changes.backing = { filename: undefined, ...changes.backing, format: text };
      break;
    case 'data_file':
      changes.dataFile = text;
      break;
    case 'data_file_raw':
      changes.dataFileRaw = bool.parse(text, name, 'flat');
      break;
  }
}

/** Errors: invalid, in QEMU's words. */
function keySlotsOf(texts: ReadonlyArray<[name: string, text: string]>): LuksAmendment {
  const numbers = new Set(['keyslot', 'iter-time', 'encrypt.keyslot', 'encrypt.iter-time']);
  const values = texts.map(([name, text]): [string, string | number] => [
    name.replace(/^encrypt\./, ''),
    numbers.has(name) ? int.parse(text, name, 'flat') : text,
  ]);
  return struct('', LUKS_AMEND_MEMBERS).parse(Object.fromEntries(values), '', 'qmp');
}

/** What `amend` takes of an image of that format. */
function amendableNames({ name, toolOptions = [], amendOptions = [] }: DriverDescription): string[] {
  const ofNew = name === 'luks' ? [] : toolOptions.filter((option) => AMENDABLE.has(option.name));
  return [...amendOptions, ...ofNew.map((option) => option.name)];
}

/** Errors: ToolFailure for formats of which nothing is changed. */
function printAmendHelp(tool: Tool, format: string): number {
  const driver = tool.opener.drivers.find(format);
  if (!driver) throw new ToolFailure(`Unknown file format '${format}'`);
  if (!driver.amendOptions)
    throw new ToolFailure(`Format driver '${format}' does not support option amendment`);
  tool.out.print(`Amend options for '${format}':\n${optionLines(driver, amendableNames(driver)).join('')}`);
  return 0;
}

/** The hint is given where all of the options are known. */
function checkOption(driver: DriverDescription, name: string, all: OptionTexts): void {
  const { toolOptions = [] } = driver;
  const amendable = amendableNames(driver);
  if (amendable.includes(name)) return;
  const known = new Set([...amendable, ...toolOptions.map((one) => one.name)]);
  if ([...all.keys()].some((one) => !known.has(one))) throw new ToolFailure(`Invalid parameter '${name}'`);
  throw new ToolFailure(`Invalid parameter '${name}'`, {
    hint: 'This option is only supported for image creation',
  });
}
