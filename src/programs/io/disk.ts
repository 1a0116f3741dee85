import { BlockError } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import type { NodeOptions } from '../../block/driver.js';
import type { DiscardMode } from '../../block/modes.js';
import type { Node } from '../../block/node.js';
import type { OpenContext, Opener } from '../../block/open.js';
import { ALL_PERMISSIONS, Permission, unitePermissions } from '../../block/permissions.js';
import { FlatOptions } from '../../schema/flat.js';
import { parseImageOpts } from '../arguments/image-opts.js';
import { CommandLine } from './arguments.js';
import { cacheOptions } from './cache.js';
import { type DiskSource, type OpenDisk, UsageFailure } from './session.js';

/** How a disk is to be opened: in words, as they were given. */
export interface DiskArguments {
  filename: string | undefined;
  format?: string | undefined;
  /** A list `key=value,...`: beside a file name, or in its place. */
  options?: string | undefined;
  readOnly: boolean;
  forceShare: boolean;
  cache: string;
  discard: string;
  copyOnRead: boolean;
}

/** Opens disks for `open` and its words. */
export class Disks implements DiskSource {
  readonly #opener: Opener;
  /** Names are options. */
  readonly #imageOpts: boolean;

  constructor(opener: Opener, imageOpts: boolean) {
    this.#opener = opener;
    this.#imageOpts = imageOpts;
  }

  open(words: readonly string[]): Promise<OpenDisk> {
    const line = new CommandLine('open', words, 'snCro:ki:t:d:U');
    if (line.operands.length > 1) throw new UsageFailure();
    for (const letter of ['s', 'k'])
      if (line.has(letter)) throw new BlockError('unsupported', `-${letter} is not supported by livedisk`);
    checkAio(line.value('i') ?? 'threads');
    const [name] = line.operands;
    const imageOpts = this.#imageOpts;
    const lists = [...line.values('o'), ...(imageOpts && name !== undefined ? [name] : [])];
    return openDisk(this.#opener, {
      filename: imageOpts ? undefined : name,
      ...(lists.length > 0 && { options: lists.join(',') }),
      readOnly: line.has('r'),
      forceShare: line.has('U'),
      copyOnRead: line.has('C'),
      cache: line.value('t') ?? (line.has('n') ? 'none' : 'writeback'),
      discard: line.value('d') ?? 'unmap',
    });
  }
}

/** Errors: invalid, unsupported. */
export function checkAio(mode: string): void {
  if (mode === 'threads') return;
  if (mode === 'native' || mode === 'io_uring')
    throw new BlockError('unsupported', `--aio=${mode} is not supported by livedisk; use 'threads'`);
  throw new BlockError('invalid', `Invalid aio option: ${mode}`);
}

/** Errors: "can't open ...: TEXT", in qemu-io's words. */
export async function openDisk(opener: Opener, args: DiskArguments): Promise<OpenDisk> {
  const cache = cacheOptions(args.cache);
  if (!cache) throw new BlockError('invalid', `Invalid cache option: ${args.cache}`);
  const { readOnly, forceShare, filename } = args;
  const discard = parseDiscard(args.discard);
  const where = filename === undefined ? "can't open" : `can't open device ${filename}`;
  const { graph } = opener;
  const context: OpenContext = { readOnly, forceShare, discard, cache: cache.options };
  const options = optionsOf(args, opener.onWarning);
  const node = await openNode(opener, args, options, context).catch((error: unknown) => failed(where, error));
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

function parseDiscard(mode: string): DiscardMode {
  if (mode === 'unmap' || mode === 'on') return 'unmap';
  if (mode === 'ignore' || mode === 'off') return 'ignore';
  throw new BlockError('invalid', `Invalid discard option: ${mode}`);
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
