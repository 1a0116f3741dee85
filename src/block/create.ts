import { assert } from '../base/assert.js';
import { alignUp } from '../base/align.js';
import { BlockError } from '../base/error.js';
import { MAX_IMAGE_BYTES } from '../base/limits.js';
import type { Host } from '../host/host.js';
import { parseSize } from '../schema/size.js';
import { size, struct } from '../schema/types.js';
import type { BlockBackend } from './backend.js';
import type {
  ChildIo,
  CreateOptions,
  DriverDescription,
  DriverInfo,
  NewImage,
  NewImageContext,
  NodeOptions,
} from './driver.js';
import { checkUnused, fileIdentity, inUse } from './file-identity.js';
import { folderOf, hasProtocol, resolveBacking } from './filename.js';
import type { Opener } from './open.js';
import { ALL_PERMISSIONS, Permission } from './permissions.js';

/**
 * Makes an image: the protocol's file, then the format in it; of a protocol, the file alone. Durable on return (file and folder entry). Nothing is
 * left behind when it fails, except that a file that was there is replaced; wrong options replace none.
 */
export async function createImage(
  opener: Opener,
  filename: string,
  format: string,
  options: CreateOptions,
): Promise<void> {
  const { graph, drivers } = opener;
  const named = drivers.find(format);
  const driver = named?.createFile ? named : drivers.format(format);
  if (!driver.create && !driver.createFile)
    throw new BlockError('unsupported', `Format driver '${format}' does not support image creation`);
  if (options.sizeBytes > MAX_IMAGE_BYTES)
    throw new BlockError('limit', 'Image is too big', { path: filename });
  // Before a file that is there is lost to wrong options.
  const image = newImage(driver, options);
  driver.checkNew?.(image);
  const { protocol, protocolOptions } = await protocolFor(opener, filename);
  if (options.file?.noCopyOnWrite === true && protocol.takesFileTraits !== true)
    throw new BlockError('invalid', "Invalid parameter 'nocow'");
  const { filename: path } = { filename, ...protocolOptions };
  const isNew = protocol.createFile !== undefined && !hasProtocol(path) && (await isAbsent(graph.host, path));
  try {
    // A protocol has no format to put into its file.
    const plainBytes = driver.createFile ? alignUp(options.sizeBytes, 512) : 0;
    await checkUnused(opener, filename);
    await checkDataFile(opener, driver, image, filename);
    await protocol.createFile?.(graph.host, path, plainBytes, options.file);
    const files = new BesideFiles(opener, filename);
    try {
      await withDataFile(opener, driver, image, async (whole) =>
        fill(opener, protocolOptions, async (file) => driver.create?.(file, whole, graph.host, files)),
      );
    } catch (error) {
      await files.remove();
      throw error;
    } finally {
      await files.close();
    }
    if (!hasProtocol(filename)) await graph.host.files.syncDirectory(folderOf(filename) || '.');
  } catch (error) {
    if (isNew) await graph.host.files.unlink(path).catch(() => undefined);
    throw error;
  }
}

/** The same image with the file for its data, where its options name one; a file that is there is replaced. */
async function withDataFile(
  opener: Opener,
  { dataFileOption }: DriverDescription,
  image: NewImage,
  body: (image: NewImage) => Promise<void>,
): Promise<void> {
  const { [dataFileOption ?? '']: filename } = image.options as NodeOptions;
  if (typeof filename !== 'string') return body(image);
  const { protocol, protocolOptions } = await protocolFor(opener, filename);
  const { filename: path } = { filename, ...protocolOptions };
  await protocol.createFile?.(opener.graph.host, path, 0);
  await fill(opener, protocolOptions, (io) => body({ ...image, dataFile: { io, filename } }));
}

/** Before either is emptied. Errors: busy for a data file that is the image itself, or that an open image reads. */
async function checkDataFile(
  opener: Opener,
  { dataFileOption }: DriverDescription,
  image: NewImage,
  filename: string,
): Promise<void> {
  const { [dataFileOption ?? '']: named } = image.options as NodeOptions;
  if (typeof named !== 'string') return;
  await checkUnused(opener, named);
  const identity = await fileIdentity(opener, named);
  if (identity !== undefined && identity === (await fileIdentity(opener, filename))) throw inUse(named);
}

/** In what a new image of that name would be. Errors: kind unsupported where there can be none. */
export async function protocolFor(
  opener: Opener,
  filename: string,
): Promise<{ protocol: DriverDescription; protocolOptions: NodeOptions }> {
  const protocolOptions = await opener.parseFilename(filename);
  const protocol = opener.drivers.get(protocolOptions['driver'] as string);
  if (protocol.createFile || protocol.takesImages === true) return { protocol, protocolOptions };
  throw new BlockError('unsupported', `Protocol driver '${protocol.name}' does not support image creation`);
}

/** Creation options, checked and with the format's defaults. Errors: invalid or unsupported. */
export function newImage(
  driver: DriverDescription,
  { options = {}, file: _file, ...image }: CreateOptions,
): NewImage {
  if (image.backingFile !== undefined && !driver.options.backing)
    throw new BlockError('unsupported', `Backing file not supported for file format '${driver.name}'`);
  const type = struct('CreateOptions', driver.createOptions ?? {});
  return { ...image, options: type.fill(type.parse(options, '', 'qmp')) };
}

/**
 * What follows "Formatting 'FILE', " when an image is made, as qemu-img prints it: `texts` are its -o options, with
 * backing_file and backing_fmt.
 */
export function formattingText(
  driver: DriverDescription,
  sizeBytes: number,
  texts: ReadonlyMap<string, string> = new Map(),
): string {
  const parts = [`fmt=${driver.name}`];
  for (const { name, member = '', isAlwaysShown, shownAs } of driver.toolOptions ?? []) {
    const { type, default: usual } = driver.createOptions?.[member] ?? {};
    const given = texts.get(name) ?? (isAlwaysShown === true ? (shownAs ?? textOf(usual)) : undefined);
    if (name === 'nocow') continue;
    if (name === 'size') parts.push(`size=${sizeBytes}`);
    else if (given !== undefined)
      parts.push(`${name}=${type === size ? parseSize(given) : given.replaceAll(',', ',,')}`);
  }
  // The file's come last.
  const noCopyOnWrite = texts.get('nocow');
  if (noCopyOnWrite !== undefined) parts.push(`nocow=${noCopyOnWrite}`);
  return parts.join(' ');
}

function textOf(value: unknown): string {
  if (typeof value === 'boolean') return value ? 'on' : 'off';
  return `${value as string | number}`;
}

function isAbsent(host: Host, path: string): Promise<boolean> {
  return host.files.stat(path).then(
    (found) => found === undefined,
    // Making it will tell what is wrong.
    () => false,
  );
}

/** What its driver says of an image that the new one `image` is to name as its backing file. */
export async function lookAtBacking(
  opener: Opener,
  image: string,
  backing: string,
  format: string | undefined,
): Promise<DriverInfo> {
  const context = { readOnly: true, forceShare: true, onlyLook: true, noBacking: true };
  const node = await opener.openImage(resolveBacking(image, backing), format, context);
  try {
    return node.instance.info();
  } finally {
    await opener.graph.collect([node]);
  }
}

/** Files of a new image beside its own. */
class BesideFiles implements NewImageContext {
  readonly filename: string;
  readonly #opener: Opener;
  readonly #paths: string[] = [];
  readonly #backends: BlockBackend[] = [];

  constructor(opener: Opener, filename: string) {
    this.#opener = opener;
    this.filename = filename;
  }

  /** Errors: invalid where an image has no folder. */
  async create(name: string): Promise<ChildIo> {
    const path = resolveBacking(this.filename, name);
    const { protocol, protocolOptions } = await protocolFor(this.#opener, path);
    await checkUnused(this.#opener, path);
    await protocol.createFile?.(this.#opener.graph.host, path, 0);
    this.#paths.push(path);
    const backend = await openToFill(this.#opener, protocolOptions);
    this.#backends.push(backend);
    assert(backend.root, 'a backend that was attached has a node');
    return backend.root;
  }

  lookAt(filename: string, format: string | undefined): Promise<DriverInfo> {
    return lookAtBacking(this.#opener, this.filename, filename, format);
  }

  secret(id: string): Uint8Array {
    return this.#opener.graph.objects.secret(id);
  }

  async close(): Promise<void> {
    for (const backend of this.#backends.splice(0)) await closeFilled(this.#opener, backend);
  }

  async remove(): Promise<void> {
    await this.close();
    for (const path of this.#paths) await this.#opener.graph.host.files.unlink(path).catch(() => undefined);
  }
}

/** Opens the file for one user that changes all of it. */
async function fill(
  opener: Opener,
  protocolOptions: NodeOptions,
  write: (file: ChildIo) => Promise<void>,
): Promise<void> {
  const backend = await openToFill(opener, protocolOptions);
  try {
    if (backend.root) await write(backend.root);
  } finally {
    await closeFilled(opener, backend);
  }
}

async function openToFill(opener: Opener, protocolOptions: NodeOptions): Promise<BlockBackend> {
  const { graph } = opener;
  const node = await opener.open(protocolOptions, { readOnly: false });
  const backend = graph.createBackend({
    description: 'an unnamed block device',
    perm: Permission.write | Permission.resize,
    shared: ALL_PERMISSIONS - Permission.write - Permission.resize,
  });
  try {
    await graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
  } catch (error) {
    await graph.collect([node]);
    throw error;
  }
  return backend;
}

async function closeFilled({ graph }: Opener, backend: BlockBackend): Promise<void> {
  const { root } = backend;
  if (!root) return;
  const { node } = root;
  await graph.transaction((transaction) => transaction.detach(root));
  await graph.collect([node]);
}
