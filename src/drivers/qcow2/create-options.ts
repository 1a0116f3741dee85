import { isPowerOfTwo } from '../../base/align.js';
import { BlockError, errnoText } from '../../base/error.js';
import { KiB, MAX_BACKING_NAME_BYTES, MiB } from '../../base/limits.js';
import type { CreateOptions, Json } from '../../block/driver.js';

const DEFAULT_CLUSTER_BYTES = 64 * KiB;

/** CreateOptions with every default filled in. */
export interface Qcow2CreateOptions {
  sizeBytes: number;
  version: 2 | 3;
  clusterBytes: number;
  refcountBits: number;
  lazyRefcounts: boolean;
  backingFile: string | undefined;
  backingFormat: string | undefined;
}

/** Checks the options of a new image. Errors: invalid or unsupported, in QEMU's words. */
export function resolveCreateOptions(options: CreateOptions): Qcow2CreateOptions {
  const given = options.options ?? {};
  for (const [key, value] of Object.entries(given)) checkOption(key, value);
  const v2 = given['version'] === 'v2';
  const clusterBytes = Number(given['cluster-size'] ?? DEFAULT_CLUSTER_BYTES);
  if (!isPowerOfTwo(clusterBytes) || clusterBytes < 512 || clusterBytes > 2 * MiB)
    throw new BlockError('invalid', 'Cluster size must be a power of two between 512 and 2048k');
  const refcountBits = Number(given['refcount-bits'] ?? 16);
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64)
    throw new BlockError('invalid', 'Refcount width must be a power of two and may not exceed 64 bits');
  if (v2 && refcountBits !== 16) {
    const hint = 'Different refcount widths than 16 bits require compatibility level 1.1 or above';
    throw new BlockError('invalid', `${hint} (use version=v3 or greater)`);
  }
  const lazyRefcounts = given['lazy-refcounts'] === true;
  if (v2 && lazyRefcounts) {
    throw new BlockError('invalid', 'Lazy refcounts only supported with compatibility level 1.1 and above');
  }
  if (options.sizeBytes % 512 !== 0)
    throw new BlockError('invalid', 'Image size must be a multiple of 512 bytes');
  if (Buffer.byteLength(options.backingFile ?? '', 'utf8') > MAX_BACKING_NAME_BYTES)
    throw notAssigned(options, 'EINVAL');
  return {
    sizeBytes: options.sizeBytes,
    version: v2 ? 2 : 3,
    clusterBytes,
    refcountBits,
    lazyRefcounts,
    backingFile: options.backingFile,
    backingFormat: options.backingFormat,
  };
}

/** Options whose other values livedisk does not do yet. */
const ONLY: Record<string, Json> = {
  'extended-l2': false,
  'compression-type': 'zlib',
  preallocation: 'off',
  'data-file-raw': false,
};

function checkOption(key: string, value: Json): void {
  switch (key) {
    case 'cluster-size':
    case 'refcount-bits':
      if (typeof value !== 'number') throw new BlockError('invalid', `Parameter '${key}' expects a number`);
      return;
    case 'lazy-refcounts':
      if (typeof value !== 'boolean') throw new BlockError('invalid', `Parameter '${key}' expects a boolean`);
      return;
    case 'version':
      if (value !== 'v2' && value !== 'v3')
        throw new BlockError(
          'invalid',
          `Parameter 'version' does not accept value '${JSON.stringify(value)}'`,
        );
      return;
    default:
      if (!(key in ONLY)) throw new BlockError('unsupported', `qcow2: option '${key}' is not supported`);
      if (value !== ONLY[key])
        throw new BlockError('unsupported', `qcow2: ${key}=${JSON.stringify(value)} is not supported`);
  }
}

/** What follows "Formatting 'FILE', " when an image is made, as qemu-img prints it. */
export function formattingText(options: CreateOptions): string {
  const o = resolveCreateOptions(options);
  const parts = [
    'fmt=qcow2',
    `cluster_size=${o.clusterBytes}`,
    'extended_l2=off',
    'compression_type=zlib',
    `size=${o.sizeBytes}`,
  ];
  if (o.backingFile !== undefined) parts.push(`backing_file=${o.backingFile}`);
  if (o.backingFormat !== undefined) parts.push(`backing_fmt=${o.backingFormat}`);
  parts.push(`lazy_refcounts=${o.lazyRefcounts ? 'on' : 'off'}`, `refcount_bits=${o.refcountBits}`);
  return parts.join(' ');
}

/** The backing file cannot be named in the header. */
export function notAssigned(
  { backingFile, backingFormat }: Pick<Qcow2CreateOptions | CreateOptions, 'backingFile' | 'backingFormat'>,
  errno: 'EINVAL' | 'ENOSPC',
): BlockError {
  const format = backingFormat === undefined ? '' : ` with format '${backingFormat}'`;
  const text = `Could not assign backing file '${backingFile ?? ''}'${format}: ${errnoText(errno)}`;
  return new BlockError('invalid', text);
}
