import { isPowerOfTwo } from '../../base/align.js';
import { BlockError, errnoText } from '../../base/error.js';
import { MAX_BACKING_NAME_BYTES, MiB } from '../../base/limits.js';
import { checkZstdCompress } from '../../codec/index.js';
import type { NewImage } from '../../block/driver.js';
import { LUKS_CREATE_MEMBERS } from '../../schema/encryption-options.js';
import { noSecret } from './features/encryption.js';
import type { QCOW2_CREATE, ToolOption } from '../../schema/create-options.js';

/** 32 subclusters of a sector each. */
const MIN_EXTENDED_CLUSTER_BYTES = 16384;

export type NewQcow2 = NewImage<typeof QCOW2_CREATE>;

/** -o of the image tool, in qemu-img's order. */
export const QCOW2_TOOL_OPTIONS: readonly ToolOption[] = [
  { name: 'encryption', member: 'encrypt' },
  { name: 'encrypt.format', member: 'encrypt' },
  ...Object.keys(LUKS_CREATE_MEMBERS).map((name) => ({ name: `encrypt.${name}`, member: 'encrypt' })),
  { name: 'cluster_size', member: 'cluster-size', isAlwaysShown: true },
  { name: 'extended_l2', member: 'extended-l2', isAlwaysShown: true },
  { name: 'preallocation', member: 'preallocation' },
  { name: 'compression_type', member: 'compression-type', isAlwaysShown: true },
  { name: 'size' },
  { name: 'compat', member: 'version', aliases: { '0.10': 'v2', '1.1': 'v3' } },
  { name: 'backing_file' },
  { name: 'backing_fmt' },
  { name: 'data_file', member: 'data-file' },
  { name: 'data_file_raw', member: 'data-file-raw' },
  { name: 'lazy_refcounts', member: 'lazy-refcounts', isAlwaysShown: true },
  { name: 'refcount_bits', member: 'refcount-bits', isAlwaysShown: true },
  { name: 'nocow' },
  { name: 'extent_size_hint' },
];

/** What the options' types cannot say. Errors: invalid, in QEMU's words. */
export function checkNewImage({ sizeBytes, backingFile, backingFormat, options }: NewQcow2): void {
  const { version, 'cluster-size': clusterBytes, 'refcount-bits': refcountBits } = options;
  if (!isPowerOfTwo(clusterBytes) || clusterBytes < 512 || clusterBytes > 2 * MiB)
    throw invalid('Cluster size must be a power of two between 512 and 2048k');
  if (!isPowerOfTwo(refcountBits) || refcountBits > 64)
    throw invalid('Refcount width must be a power of two and may not exceed 64 bits');
  if (version === 'v2' && refcountBits !== 16) {
    const hint = 'Different refcount widths than 16 bits require compatibility level 1.1 or above';
    throw invalid(`${hint} (use version=v3 or greater)`);
  }
  if (version === 'v2' && options['lazy-refcounts']) {
    const hint = 'Lazy refcounts only supported with compatibility level 1.1 and above';
    throw invalid(`${hint} (use version=v3 or greater)`);
  }
  const needs3 = 'only supported with compatibility level 1.1 and above (use version=v3 or greater)';
  if (version === 'v2' && options['extended-l2']) throw invalid(`Extended L2 entries are ${needs3}`);
  if (options['extended-l2'] && clusterBytes < MIN_EXTENDED_CLUSTER_BYTES)
    throw invalid(
      `Extended L2 entries are only supported with cluster sizes of at least ${MIN_EXTENDED_CLUSTER_BYTES} bytes`,
    );
  if (version === 'v2' && options['compression-type'] !== 'zlib')
    throw invalid(`Non-zlib compression type is ${needs3}`);
  if (options['compression-type'] === 'zstd') checkZstdCompress();
  checkDataFile(options, backingFile !== undefined);
  if (options.encrypt && options.encrypt['key-secret'] === undefined) throw noSecret();
  if (sizeBytes % 512 !== 0) throw invalid('Image size must be a multiple of 512 bytes');
  if (backingFormat !== undefined && backingFile === undefined)
    throw invalid('Backing format cannot be used without backing file');
  if (Buffer.byteLength(backingFile ?? '', 'utf8') > MAX_BACKING_NAME_BYTES)
    throw notAssigned({ backingFile, backingFormat }, 'EINVAL');
}

function checkDataFile(options: NewQcow2['options'], hasBacking: boolean): void {
  const { version, preallocation } = options;
  if (options['data-file'] === undefined) {
    if (options['data-file-raw']) throw invalid('data-file-raw requires data-file');
  } else if (version === 'v2') {
    const levels = 'compatibility level 1.1 and above (use version=v3 or greater)';
    throw invalid(`External data files are only supported with ${levels}`);
  }
  if (options['data-file-raw'] && hasBacking)
    throw invalid('Backing file and data-file-raw cannot be used at the same time');
  if (preallocation !== 'off' && hasBacking && !options['extended-l2'])
    throw invalid('Backing file and preallocation can only be used at the same time if extended_l2 is on');
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}

/** The backing file cannot be named in the header. */
export function notAssigned(
  { backingFile, backingFormat }: { backingFile?: string | undefined; backingFormat?: string | undefined },
  errno: 'EINVAL' | 'ENOSPC',
): BlockError {
  const format = backingFormat === undefined ? '' : ` with format '${backingFormat}'`;
  const text = `Could not assign backing file '${backingFile ?? ''}'${format}: ${errnoText(errno)}`;
  return new BlockError('invalid', text);
}
