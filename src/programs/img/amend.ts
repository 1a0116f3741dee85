import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { BlockBackend } from '../../block/backend.js';
import type { DriverDescription, ImageAmendment } from '../../block/driver.js';
import { LUKS_AMEND_MEMBERS, type LuksAmendment } from '../../schema/encryption-options.js';
import { bool, int, struct } from '../../schema/types.js';
import { cacheOptions } from '../io/cache.js';
import { Arguments, options } from './arguments.js';
import { type OptionTexts, sizeValue, splitOptions } from './create-options.js';
import { asksForHelp, optionLines } from './option-help.js';
import { Progress } from './progress.js';
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
]);

/** amend [-p] [-q] [-f FMT] [-t CACHE] [--force] [--image-opts] -o OPTIONS FILE */
export async function amendCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('o:', 'f:', 't:', 'p', 'q', '|force', '|image-opts');
  const args = new Arguments('amend', words, taken, []);
  if (!args.has('o')) throw new UsageError('Must specify options (-o)');
  const [filename] = args.operands;
  const [format, asksHelp] = [args.value('f'), asksForHelp(args.values('o'))];
  if (asksHelp && format !== undefined) return printAmendHelp(tool, format);
  if (filename === undefined || args.operands.length !== 1)
    throw new ToolFailure('Expecting one image file name');
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
  const progress = new Progress(tool.out, args.has('p') && !args.has('q'));
  try {
    await amend(backend, splitOptions(args.values('o')), args.has('force'));
  } catch (error) {
    throw explain(error, '');
  }
  progress.update(1, 1);
  progress.finish();
  await tool.close(backend);
  return 0;
}

/** What needs a newer version comes after it, and an older one last. Errors: ToolFailure, those of the image. */
async function amend(backend: BlockBackend, texts: OptionTexts, isForced: boolean): Promise<void> {
  const { driver, instance } = backend.node;
  if (!instance.amend)
    throw new ToolFailure(`Format driver '${driver.name}' does not support option amendment`);
  for (const name of texts.keys()) checkOption(driver, name);
  if ([...texts.keys()].some((name) => driver.amendOptions?.includes(name))) {
    return instance.amend({ keySlots: { amendment: keySlotsOf(texts), isForced } });
  }
  if (texts.has('backing_file') || texts.has('backing_fmt'))
    throw new ToolFailure('Cannot amend the backing file', {
      hint: "You can use 'qemu-img rebase' instead.",
    });
  const changes = changesOf(texts);
  const size = texts.get('size');
  const sizeBytes = size === undefined ? undefined : sizeValue('size', size);
  checkRefcountBits(backend, texts.get('refcount_bits'));
  if (changes.version !== 2) await instance.amend(changes);
  if (sizeBytes !== undefined && sizeBytes !== backend.lengthBytes) await backend.truncate(sizeBytes);
  if (changes.version === 2) await instance.amend(changes);
}

/** Errors: invalid, in QEMU's words. */
function keySlotsOf(texts: OptionTexts): LuksAmendment {
  const numbers = new Set(['keyslot', 'iter-time', 'encrypt.keyslot', 'encrypt.iter-time']);
  const values = [...texts].map(([name, text]): [string, string | number] => [
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

function checkOption(driver: DriverDescription, name: string): void {
  const { toolOptions = [] } = driver;
  if (amendableNames(driver).includes(name)) return;
  const isKnown = toolOptions.some((one) => one.name === name);
  if (!isKnown) throw new ToolFailure(`Invalid parameter '${name}'`);
  if (name === 'data_file' || name === 'data_file_raw')
    throw new ToolFailure(`amend: option '${name}' is not supported by livedisk`);
  throw new ToolFailure(`Invalid parameter '${name}'`, {
    hint: 'This option is only supported for image creation',
  });
}

function changesOf(texts: OptionTexts): ImageAmendment {
  const compat = texts.get('compat');
  const version = VERSIONS[compat ?? ''];
  if (compat !== undefined && version === undefined)
    throw new ToolFailure(`Unknown compatibility level ${compat}`);
  const lazy = texts.get('lazy_refcounts');
  const lazyRefcounts = lazy === undefined ? undefined : bool.parse(lazy, 'lazy_refcounts', 'flat');
  return given({ version, lazyRefcounts });
}

/** Another width is not to be had. */
function checkRefcountBits({ node }: BlockBackend, text: string | undefined): void {
  const now = (node.instance.info().formatSpecific?.['data'] as { [key: string]: unknown } | undefined)?.[
    'refcount-bits'
  ];
  if (text === undefined || Number(text) === now) return;
  throw new BlockError('unsupported', "amend: another 'refcount_bits' is not supported by livedisk");
}
