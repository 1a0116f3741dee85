import { BlockError } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import type { NodeOptions } from '../../block/driver.js';
import type { DiscardMode } from '../../block/modes.js';
import type { Node } from '../../block/node.js';
import type { FileAio, OpenContext } from '../../block/open-context.js';
import type { Opener } from '../../block/open.js';
import { ALL_PERMISSIONS, Permission, unitePermissions } from '../../block/permissions.js';
import { FlatOptions } from '../../schema/flat.js';
import { parseImageOpts } from '../arguments/image-opts.js';
import { openAbove } from '../arguments/temporary-image.js';
import { CommandLine } from './arguments.js';
import { type CacheMode, cacheOptions, isFileAio } from './cache.js';
import { CommandFailure, type DiskSource, type OpenDisk, UsageFailure } from './session.js';

/** How a disk is to be opened. */
export interface DiskArguments {
  filename: string | undefined;
  format?: string | undefined;
  /** A list `key=value,...`: beside a file name, or in its place. */
  options?: string | undefined;
  readOnly: boolean;
  forceShare: boolean;
  cache: CacheMode;
  discard: DiscardMode;
  copyOnRead: boolean;
  /** What is written goes to a file above the image, which is gone when the disk is closed. */
  isTemporary: boolean;
  aio: FileAio;
}

/** What nobody has said anything about. */
export const UNSAID: DiskArguments = {
  filename: undefined,
  ...{ readOnly: false, forceShare: false, copyOnRead: false, isTemporary: false },
  cache: parseCache('writethrough'),
  discard: 'unmap',
  aio: 'threads',
};

/** Opens disks for `open` and its words. */
export class Disks implements DiskSource {
  readonly #opener: Opener;
  /** Names are options. */
  readonly #imageOpts: boolean;

  constructor(opener: Opener, imageOpts: boolean) {
    this.#opener = opener;
    this.#imageOpts = imageOpts;
  }

  prepare(words: readonly string[]): () => Promise<OpenDisk> {
    const line = new CommandLine('open', words, 'snCro:ki:t:d:U');
    if (line.operands.length > 1) throw new UsageFailure();
    const args: DiskArguments = { ...UNSAID };
    for (const { name, value } of line.given) {
      if (name === 'o' && this.#imageOpts)
        throw new CommandFailure("--image-opts and 'open -o' are mutually exclusive");
      takeOption(args, name, value);
    }
    const [name] = line.operands;
    const imageOpts = this.#imageOpts;
    const lists = [...line.values('o'), ...(imageOpts && name !== undefined ? [name] : [])];
    args.filename = imageOpts ? undefined : name;
    if (lists.length > 0) args.options = lists.join(',');
    return prepareDisk(this.#opener, args);
  }
}

/** Errors: invalid. */
function takeOption(args: DiskArguments, letter: string, value: string): void {
  if (letter === 'r') args.readOnly = true;
  else if (letter === 'U') args.forceShare = true;
  else if (letter === 'C') args.copyOnRead = true;
  else if (letter === 's') args.isTemporary = true;
  else if (letter === 'n') args.cache = parseCache('none');
  else if (letter === 't') args.cache = parseCache(value);
  else if (letter === 'k') args.aio = 'native';
  else if (letter === 'i') args.aio = parseAio(value);
  else if (letter === 'd') args.discard = parseDiscard(value);
}

/** Errors: invalid. */
export function parseAio(mode: string): FileAio {
  if (isFileAio(mode)) return mode;
  throw new BlockError('invalid', `Invalid aio option: ${mode}`);
}

/** Errors: invalid. */
export function parseCache(mode: string): CacheMode {
  const cache = cacheOptions(mode);
  if (cache) return cache;
  throw new BlockError('invalid', `Invalid cache option: ${mode}`);
}

/** Errors: invalid. */
export function parseDiscard(mode: string): DiscardMode {
  if (mode === 'unmap' || mode === 'on') return 'unmap';
  if (mode === 'ignore' || mode === 'off') return 'ignore';
  throw new BlockError('invalid', `Invalid discard option: ${mode}`);
}

/** What opens it. Errors: those of its options, before; "can't open ...: TEXT", in qemu-io's words. */
export function prepareDisk(opener: Opener, args: DiskArguments): () => Promise<OpenDisk> {
  const options = optionsOf(args, opener.onWarning);
  return () => openDisk(opener, args, options);
}

async function openDisk(
  opener: Opener,
  args: DiskArguments,
  options: FlatOptions | undefined,
): Promise<OpenDisk> {
  const { readOnly, forceShare, filename, cache, discard, aio } = args;
  const where = filename === undefined ? "can't open" : `can't open device ${filename}`;
  const { graph } = opener;
  const context: OpenContext = { readOnly, forceShare, discard, cache: cache.options, aio };
  const node = await openTop(opener, args, options, context).catch((error: unknown) => failed(where, error));
  const backend = graph.createBackend({
    description: 'an unnamed block device',
    perm: Permission.consistentRead | (readOnly ? 0 : Permission.write),
    shared: ALL_PERMISSIONS,
  });
  backend.writethrough = cache.writethrough;
  try {
    if (args.copyOnRead && readOnly)
      throw new BlockError('invalid', "Can't use copy-on-read on read-only device");
    node.skipFilters().io.copiesOnRead = args.copyOnRead;
    await graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
  } catch (error) {
    await release(opener, backend, node);
    return failed(where, error);
  }
  return {
    backend,
    acquire: (perm) =>
      graph.transaction((transaction) =>
        transaction.setPermissions(backend, unitePermissions(backend.perm, perm), backend.shared),
      ),
    close: () => release(opener, backend, node),
  };
}

function failed(where: string, error: unknown): never {
  if (!(error instanceof BlockError)) throw error;
  throw new BlockError(error.kind, `${where}: ${error.message}`, {
    cause: error,
    ...(error.hint !== undefined && { hint: error.hint }),
  });
}

/** Errors: those of parseImageOpts; invalid for a share that contradicts. */
function optionsOf(
  { options: text, forceShare }: DiskArguments,
  warn: (text: string) => void,
): FlatOptions | undefined {
  if (text === undefined) return undefined;
  const options = parseImageOpts(text, { warn });
  const share = options.get('force-share');
  if (forceShare && share !== undefined && share !== 'on')
    throw new BlockError('invalid', '-U conflicts with image options');
  return options;
}

/** The image, or a temporary one above it. */
async function openTop(
  opener: Opener,
  args: DiskArguments,
  options: FlatOptions | undefined,
  context: OpenContext,
): Promise<Node> {
  if (!args.isTemporary) return openNode(opener, args, options, context);
  const image = await openNode(opener, args, options, { ...context, readOnly: true });
  return openAbove(opener, image, context);
}

async function openNode(
  opener: Opener,
  { filename, format }: DiskArguments,
  options: FlatOptions | undefined,
  context: OpenContext,
): Promise<Node> {
  if (!options) return opener.openImage(filename ?? '', format, context);
  if (filename === undefined) return opener.openFlat(options, context);
  if (typeof options.get('file') === 'string' || options.get('file.filename') !== undefined)
    throw new BlockError('invalid', "Can't specify 'file' and 'filename' options at the same time");
  const named = FlatOptions.of(await namedOptions(opener, options, filename));
  return opener.openFlat(named.withOverrides(Object.fromEntries(options.entries())), context);
}

/** What a file name beside options stands for: the file of a format, a protocol itself, or the child of a filter of files. */
async function namedOptions(opener: Opener, options: FlatOptions, filename: string): Promise<NodeOptions> {
  const named = await opener.parseFilename(filename);
  for (const [key, isTop] of [
    ['file.driver', false],
    ['driver', true],
  ] as const) {
    const driver = options.get(key);
    if (typeof driver !== 'string') continue;
    const description = opener.drivers.get(driver);
    const { kind, options: own } = description;
    const child = kind === 'filter' && description.parseFilename ? own.children.at(-1) : undefined;
    if (child) {
      const image =
        child.isImage === true ? { driver: await opener.probeFormat(filename), file: named } : named;
      return isTop ? { [child.role]: image } : { file: { [child.role]: image } };
    }
    if (isTop && kind === 'protocol' && driver === named['driver']) return named;
  }
  return { file: named };
}

async function release({ graph }: Opener, backend: BlockBackend, node: Node): Promise<void> {
  const { root } = backend;
  if (root) await graph.transaction((transaction) => transaction.detach(root));
  await graph.collect([node]);
}
