import { alignUp } from '../../../base/align.js';
import { BlockError } from '../../../base/error.js';

/** Types of header extensions (qcow2 specification, "Header extensions"). */
export const ExtensionType = {
  end: 0,
  backingFormat: 0xe2792aca,
  featureNames: 0x6803f857,
  bitmaps: 0x23852875,
  encryption: 0x0537be77,
  dataFile: 0x44415441,
  /** Ours: which bitmaps a crash leaves right (durable-bitmaps.ts). */
  durableBitmaps: 0x6c646462,
} as const;

export interface HeaderExtension {
  type: number;
  data: Buffer;
}

const HEADER_BYTES = 8;
const FEATURE_NAME_BYTES = 48;
/** QEMU keeps the name of a backing file's format in so much memory, its end included. */
const FORMAT_NAME_LIMIT_BYTES = 16;
export const BITMAPS_BYTES = 24;

/** Extensions in [from, end) of the header cluster, in order. Errors: kind corrupt. */
export function parseExtensions(cluster: Buffer, from: number, end: number): HeaderExtension[] {
  const extensions: HeaderExtension[] = [];
  let at = from;
  while (at + HEADER_BYTES <= end) {
    const type = cluster.readUInt32BE(at);
    if (type === ExtensionType.end) break;
    const length = cluster.readUInt32BE(at + 4);
    at += HEADER_BYTES;
    if (length > end - at) throw new BlockError('corrupt', 'Header extension too large');
    checkLength(type, length);
    extensions.push({ type, data: Buffer.from(cluster.subarray(at, at + length)) });
    at += alignUp(length, 8);
  }
  return extensions;
}

/** Errors: corrupt, in QEMU's words. */
function checkLength(type: number, length: number): void {
  if (type === ExtensionType.backingFormat && length >= FORMAT_NAME_LIMIT_BYTES) {
    const text = `ERROR: ext_backing_format: len=${length} too large (>=${FORMAT_NAME_LIMIT_BYTES})`;
    throw new BlockError('corrupt', text);
  }
  if (type === ExtensionType.bitmaps && length !== BITMAPS_BYTES)
    throw new BlockError('corrupt', 'bitmaps_ext: Invalid extension length');
}

/** The extension area, its end marker included. */
export function encodeExtensions(extensions: readonly HeaderExtension[]): Buffer {
  const parts = extensions.map(({ type, data }) => {
    const part = Buffer.alloc(HEADER_BYTES + alignUp(data.length, 8));
    part.writeUInt32BE(type, 0);
    part.writeUInt32BE(data.length, 4);
    data.copy(part, HEADER_BYTES);
    return part;
  });
  return Buffer.concat([...parts, Buffer.alloc(HEADER_BYTES)]);
}

export function findExtension(extensions: readonly HeaderExtension[], type: number): Buffer | undefined {
  return extensions.find((extension) => extension.type === type)?.data;
}

/** Names of the bits of a feature bitmap (0 incompatible, 1 compatible, 2 autoclear) in a feature name table. */
export function featureNames(table: Buffer | undefined, bitmap: number): Map<number, string> {
  const names = new Map<number, string>();
  if (!table) return names;
  for (let at = 0; at + FEATURE_NAME_BYTES <= table.length; at += FEATURE_NAME_BYTES) {
    if (table[at] !== bitmap) continue;
    const name = table.toString('latin1', at + 2, at + FEATURE_NAME_BYTES);
    names.set(table[at + 1] ?? 0, name.split('\0', 1)[0] ?? '');
  }
  return names;
}

/** The feature name table that new images carry: [bitmap, bit, name]. */
const FEATURES: ReadonlyArray<readonly [number, number, string]> = [
  [0, 0, 'dirty bit'],
  [0, 1, 'corrupt bit'],
  [0, 2, 'external data file'],
  [0, 3, 'compression type'],
  [0, 4, 'extended L2 entries'],
  [1, 0, 'lazy refcounts'],
  [2, 0, 'bitmaps'],
  [2, 1, 'raw external data'],
];

export function defaultFeatureNames(): Buffer {
  const data = Buffer.alloc(FEATURES.length * FEATURE_NAME_BYTES);
  FEATURES.forEach(([bitmap, bit, name], index) => {
    const at = index * FEATURE_NAME_BYTES;
    data[at] = bitmap;
    data[at + 1] = bit;
    data.write(name, at + 2, 'latin1');
  });
  return data;
}

/**
 * The extension area for a changed backing format, at most `spaceBytes` long: the format first, what we do not know
 * kept in order, feature names (informative) last and cut to what fits. Undefined when the rest does not fit.
 */
export function rebuildExtensions(
  old: readonly HeaderExtension[],
  backingFormat: string | undefined,
  spaceBytes: number,
): HeaderExtension[] | undefined {
  const kept = old.filter(
    ({ type }) => type !== ExtensionType.backingFormat && type !== ExtensionType.featureNames,
  );
  if (backingFormat !== undefined)
    kept.unshift({ type: ExtensionType.backingFormat, data: Buffer.from(backingFormat, 'utf8') });
  const free = spaceBytes - encodeExtensions(kept).length;
  if (free < 0) return undefined;
  return [...kept, ...namesThatFit(wholeNames(findExtension(old, ExtensionType.featureNames)), free)];
}

/** What was left out of our own table for lack of room comes back. */
function wholeNames(names: Buffer | undefined): Buffer | undefined {
  const ours = defaultFeatureNames();
  return names?.equals(ours.subarray(0, names.length)) === true ? ours : names;
}

/** As many rows of a feature name table as there is room for: an extension, or none. */
export function namesThatFit(names: Buffer | undefined, spaceBytes: number): HeaderExtension[] {
  const rows = Math.floor((spaceBytes - HEADER_BYTES) / FEATURE_NAME_BYTES);
  if (!names || rows <= 0) return [];
  return [{ type: ExtensionType.featureNames, data: names.subarray(0, rows * FEATURE_NAME_BYTES) }];
}
