import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { BlockBackend } from '../block/backend.js';
import { createImage as create, newImage } from '../block/create.js';
import type { DriverDescription, Measurement, NodeOptions } from '../block/driver.js';
import { resolveBackingOf } from '../block/full-filename.js';
import { Graph } from '../block/graph.js';
import { Opener } from '../block/open.js';
import { ALL_PERMISSIONS, Permission } from '../block/permissions.js';
import { DriverRegistry } from '../block/registry.js';
import { useNode } from '../block/with-backend.js';
import { allDrivers } from '../drivers/index.js';
import type { Host } from '../host/host.js';
import { createRealHost } from '../host/real.js';
import { commitImage as commit, findInChain } from './images/commit.js';
import { ContentHash, type HashAlgorithm, hashContent } from './images/content-hash.js';
import { ImageCopy } from './images/copy.js';
import { measureImage as measure } from './images/measure.js';
import { NO_PROGRESS, type OnProgress } from './images/progress.js';
import { keepContent } from './images/rebase.js';
import { type Preallocation, resizeImage as resize } from '../block/resize.js';
import { SourceImages } from './images/source-images.js';

/** An image in a file. A format that is not given is guessed. */
export interface ImageFile {
  filename: string;
  format?: string;
}

/** What every function here takes besides. */
export interface ImageWork {
  /** Told how far it is, in bytes of the disk. */
  onProgress?: OnProgress;
  /** Ends it, with the signal's reason; what is written by then stays. */
  signal?: AbortSignal;
  /** Default: the machine that Node.js runs on, and all drivers. */
  host?: Host;
  drivers?: Iterable<DriverDescription>;
}

export interface NewImageFile {
  filename: string;
  format: string;
  /** What it shows where it holds nothing itself. */
  backing?: { filename: string; format: string };
  /** The format's own, by QMP name: 'cluster-size', 'version' ... */
  options?: NodeOptions;
}

type Access = 'read' | 'write' | 'resize';

/** A graph for one piece of work: nothing of it is open afterwards. */
class Workplace {
  readonly host: Host;
  readonly graph: Graph;
  readonly opener: Opener;
  readonly #open: BlockBackend[] = [];

  constructor({ host = createRealHost(), drivers = allDrivers }: ImageWork) {
    this.host = host;
    this.graph = new Graph(host);
    this.opener = new Opener(this.graph, new DriverRegistry(drivers));
  }

  static async run<T>(work: ImageWork, body: (place: Workplace) => Promise<T>): Promise<T> {
    const place = new Workplace(work);
    try {
      return await body(place);
    } finally {
      for (const backend of place.#open.reverse()) await place.#close(backend);
    }
  }

  async open({ filename, format }: ImageFile, access: Access = 'read'): Promise<BlockBackend> {
    const readOnly = access === 'read';
    return this.use(await this.opener.openImage(filename, format, { readOnly, discard: 'unmap' }), access);
  }

  /** A user of a node that is open. */
  async use(node: BlockBackend['node'], access: Access = 'read'): Promise<BlockBackend> {
    const write = access === 'read' ? 0 : Permission.write;
    const backend = await useNode(this.graph, node, {
      description: 'a piece of work on an image',
      perm: Permission.consistentRead + write + (access === 'resize' ? Permission.resize : 0),
      shared: ALL_PERMISSIONS,
    });
    this.#open.push(backend);
    return backend;
  }

  async #close(backend: BlockBackend): Promise<void> {
    const { node, root } = backend;
    if (root) await this.graph.transaction((transaction) => transaction.detach(root));
    await this.graph.collect([node]);
  }

  readonly buffer = (lengthBytes: number): Buffer => this.host.files.buffer(lengthBytes);
}

function createOptions(target: NewImageFile, sizeBytes: number): Parameters<typeof create>[3] {
  const { backing, options } = target;
  const named = backing && { backingFile: backing.filename, backingFormat: backing.format };
  return given({ sizeBytes, ...named, options });
}

/** Makes an image file; durable on return. Errors: invalid, unsupported, limit, exists, those of the host. */
export function createImage(
  image: NewImageFile & { sizeBytes: number },
  work: ImageWork = {},
): Promise<void> {
  return Workplace.run(work, ({ opener }) =>
    create(opener, image.filename, image.format, createOptions(image, image.sizeBytes)),
  );
}

export interface ConvertOptions extends ImageWork {
  /** Data is written compressed. */
  compress?: boolean;
  /** Of the disk's bytes, without reading them again. */
  checksum?: HashAlgorithm;
  /** Bytes per second; 0: as fast as it goes. */
  bytesPerSecond?: number;
  /** Told of each stretch that could not be read; zeroes take its place. Absent: that is an error. */
  onLost?: (text: string) => void;
}

/**
 * Copies what one image shows, or several one behind the other, into a new one; durable on return. Over a backing file what
 * the source shows of its own is not copied. Errors: io, no-space ...; those of opening and making images.
 */
export function convertImage(
  source: ImageFile | readonly ImageFile[],
  target: NewImageFile,
  options: ConvertOptions = {},
): Promise<{ lengthBytes: number; checksum?: string }> {
  const { onProgress = NO_PROGRESS, signal, checksum, compress = false, bytesPerSecond = 0 } = options;
  return Workplace.run(options, async (place) => {
    const inputs: BlockBackend[] = [];
    for (const image of [source].flat()) inputs.push(await place.open(image));
    const images = new SourceImages(inputs, options.onLost);
    const hasBacking = target.backing !== undefined;
    if (hasBacking && (inputs.length > 1 || checksum !== undefined))
      throw new BlockError('invalid', 'Over a backing file one image is copied, and not all of it is read');
    const hash = checksum === undefined ? undefined : new ContentHash(checksum);
    await create(place.opener, target.filename, target.format, createOptions(target, images.lengthBytes));
    const output = await place.open(target, 'resize');
    const { clusterSizeBytes = 0 } = output.node.instance.info();
    const readsZero = output.node.instance.readsZeroWhenNew === true && !hasBacking;
    await new ImageCopy(images, output, {
      parallel: 8,
      sparseBytes: 4096,
      targetIsZero: readsZero && output.node.storage.driver.takesImages !== true,
      targetHasBacking: hasBacking,
      targetBackingEnd: output.node.backingNode()?.lengthBytes,
      inOrder: true,
      compressedUnitBytes: compress ? clusterSizeBytes : 0,
      offload: false,
      bytesPerSecond,
      hash,
      progress: onProgress,
      signal,
      buffer: place.buffer,
    }).run();
    await output.flush();
    return given({ lengthBytes: images.lengthBytes, checksum: hash?.digest() });
  });
}

/** The hash of what a disk shows, as of its raw image. Errors: as of reading. */
export function hashImage(
  image: ImageFile,
  options: ImageWork & { algorithm?: HashAlgorithm } = {},
): Promise<string> {
  const { algorithm = 'sha256', onProgress, signal } = options;
  return Workplace.run(options, async (place) =>
    hashContent(await place.open(image), given({ algorithm, buffer: place.buffer, onProgress, signal })),
  );
}

/**
 * Gives an image another virtual size; durable on return. Errors: invalid for a smaller one without `shrink`; limit,
 * unsupported.
 */
export function resizeImage(
  image: ImageFile,
  sizeBytes: number,
  options: ImageWork & { shrink?: boolean; preallocation?: Preallocation } = {},
): Promise<void> {
  return Workplace.run(options, async (place) => {
    const backend = await place.open(image, 'resize');
    if (sizeBytes < backend.lengthBytes && options.shrink !== true)
      throw new BlockError('invalid', 'A smaller size loses what lies beyond it: shrink says that it may');
    await resize(backend, sizeBytes, options.preallocation);
  });
}

/**
 * How large the file of a new image would be, with the content of an image, or of a size with nothing in it. Errors:
 * unsupported for formats that cannot tell.
 */
export function measureImage(
  source: ImageFile | { sizeBytes: number },
  target: { format: string; options?: NodeOptions },
  work: ImageWork = {},
): Promise<Measurement> {
  return Workplace.run(work, async (place) => {
    const input = 'sizeBytes' in source ? undefined : await place.open(source);
    const driver = place.opener.drivers.format(target.format);
    const sizeBytes = 'sizeBytes' in source ? source.sizeBytes : (input?.lengthBytes ?? 0);
    const image = newImage(driver, given({ sizeBytes, options: target.options }));
    return measure(driver, image, { source: input?.node, objects: place.opener.graph.objects });
  });
}

/**
 * Brings what an image holds into the next layer of its chain, or with `base` (a name as the chain has it) into a deeper
 * one; then the image is empty, unless `keep` says else or it is a deeper one. Errors: not-found, invalid; as of a commit job.
 */
export function commitImage(
  image: ImageFile,
  options: ImageWork & {
    base?: string;
    keep?: boolean;
    bytesPerSecond?: number;
    /** Refuses it (busy) where other images stand on what it changes; folders to look into besides the chain's. */
    protectsSharedBases?: boolean | { folders: readonly string[] };
  } = {},
): Promise<void> {
  const { base: name, keep = name !== undefined, bytesPerSecond, onProgress, signal } = options;
  const { protectsSharedBases: protects = false } = options;
  const protection =
    protects === false ? undefined : { refuses: true, folders: protects === true ? [] : protects.folders };
  return Workplace.run(options, async (place) => {
    const top = (await place.open(image, 'write')).node;
    const base = name === undefined ? top.backingNode() : await findInChain(place.opener, top, name);
    if (name !== undefined && !base)
      throw new BlockError('not-found', `Did not find '${name}' in the backing chain of '${image.filename}'`);
    await commit(place.opener, top, given({ base, keep, bytesPerSecond, protection, onProgress, signal }));
  });
}

/**
 * Puts another backing file behind an image, or none, which shows afterwards what it did before; durable on return. Errors:
 * unsupported for formats without backing files; those of opening and copying.
 */
export function rebaseImage(
  image: ImageFile,
  backing: { filename: string; format: string } | undefined,
  options: ImageWork = {},
): Promise<void> {
  return Workplace.run(options, async (place) => {
    const overlay = await place.open(image, 'write');
    const { node } = overlay;
    const { instance } = node;
    if (!instance.changeBacking) throw new BlockError('unsupported', 'The format has no backing files');
    const old = node.backingNode();
    const oldBacking = old && (await place.use(old));
    const known = backing && (await findInChain(place.opener, node, backing.filename));
    const newBacking =
      backing &&
      (known
        ? await place.use(known)
        : await place.open({ ...backing, filename: resolveBackingOf(node, backing.filename) }));
    const { onProgress, signal } = options;
    await keepContent(
      { overlay, oldBacking, newBacking },
      given({ buffer: place.buffer, onProgress, signal }),
    );
    await instance.changeBacking(backing?.filename, backing?.format);
  });
}
