import { alignDown, alignUp } from '../../../base/align.js';
import { BlockError, errnoError } from '../../../base/error.js';
import { MAX_BACKING_NAME_BYTES } from '../../../base/limits.js';
import {
  defaultFeatureNames,
  encodeExtensions,
  ExtensionType,
  type HeaderExtension,
  rebuildExtensions,
} from '../disk/header-extensions.js';
import { FieldOffset, type Header, NEW_HEADER_BYTES, V2_HEADER_BYTES } from '../disk/header.js';
import type { ByteRange, ImageContext } from '../image.js';
import { SECTOR_BYTES, writeU64 } from '../disk/layout.js';

/** What the header is to say instead; what is not given stays. */
export interface HeaderChange {
  backing?: { filename: string | undefined; format: string | undefined };
  extensions?: readonly HeaderExtension[];
  autoclear?: bigint;
  /** Features of the old version go with it. */
  version?: Header['version'];
  compatible?: bigint;
}

/**
 * Changes the header as one; durable on return. The extensions end in the first sector, which the disk writes whole or not
 * at all; a backing file's name that does not fit there is made durable first, away from the old one.
 * Errors: invalid (name too long), unsupported (no room in the header cluster); else see ImageContext.switchHeader.
 */
export async function changeHeader(context: ImageContext, change: HeaderChange): Promise<void> {
  await context.headerLock.run(async () => {
    const { header } = context;
    const plan = planHeader(header, context.staleNames, change);
    if (plan.nameAt >= SECTOR_BYTES && !plan.isNameThere) {
      await context.meta.write(plan.nameAt, plan.name, 0);
      await context.meta.flush();
    }
    // Until the header is durable, the disk may have either: should this fail, the next change spares both names.
    context.staleNames.push({ from: plan.nameAt, end: plan.nameAt + plan.name.length });
    await context.switchHeaderHeld((sector) => writePlan(sector, header, plan));
    header.extensions = plan.extensions;
    header.backingOffset = plan.nameAt;
    header.backing = plan.backing;
    header.autoclear = plan.autoclear;
    header.compatible = plan.compatible;
    if (plan.version !== header.version) header.incompatible = 0n;
    header.version = plan.version;
    header.headerBytes = plan.headerBytes;
    context.staleNames = [];
  });
}

/** Errors: those of a change that cannot be made. */
export function checkHeaderChange({ header, staleNames }: ImageContext, change: HeaderChange): void {
  planHeader(header, staleNames, change);
}

interface HeaderPlan {
  extensions: HeaderExtension[];
  name: Buffer;
  /** 0: no backing file. */
  nameAt: number;
  /** The same name is there already, by itself. */
  isNameThere: boolean;
  backing: Header['backing'];
  autoclear: bigint;
  version: Header['version'];
  headerBytes: number;
  compatible: bigint;
}

function planHeader(header: Header, staleNames: readonly ByteRange[], change: HeaderChange): HeaderPlan {
  const { filename, format } = change.backing ?? {
    filename: header.backing?.filename,
    format: header.backing?.format,
  };
  const { version = header.version } = change;
  const isOther = version !== header.version;
  const headerBytes = isOther ? (version === 2 ? V2_HEADER_BYTES : NEW_HEADER_BYTES) : header.headerBytes;
  const autoclear = isOther ? 0n : (change.autoclear ?? header.autoclear);
  const compatible = change.compatible ?? (isOther ? 0n : header.compatible);
  const name = Buffer.from(filename ?? '', 'utf8');
  if (name.length > MAX_BACKING_NAME_BYTES) throw errnoError('EINVAL');
  const hasName = filename !== undefined && name.length > 0;
  const kept = hasName ? format : undefined;
  const given = change.extensions ?? header.extensions;
  const old = isOther ? withNamesOf(version, given) : given;
  const extensions = rebuildExtensions(old, kept, SECTOR_BYTES - headerBytes);
  if (!extensions) throw noRoom(change.extensions ? undefined : 'this backing file name');
  const common = { extensions, name, autoclear, version, headerBytes, compatible };
  if (!hasName) return { ...common, nameAt: 0, isNameThere: false, backing: undefined };
  const backing = { filename, ...(kept === undefined ? {} : { format: kept }) };
  const isNameThere =
    filename === header.backing?.filename && header.backingOffset >= SECTOR_BYTES && staleNames.length === 0;
  if (isNameThere) return { ...common, nameAt: header.backingOffset, isNameThere, backing };
  const extensionsEnd = headerBytes + encodeExtensions(extensions).length;
  const nameAt =
    extensionsEnd + name.length <= SECTOR_BYTES
      ? extensionsEnd
      : placeOutside(header, staleNames, name.length);
  return { ...common, nameAt, isNameThere, backing };
}

/** Version 2 has no features to name. */
function withNamesOf(version: Header['version'], extensions: readonly HeaderExtension[]): HeaderExtension[] {
  const others = extensions.filter(({ type }) => type !== ExtensionType.featureNames);
  if (version === 2) return others;
  return [...others, { type: ExtensionType.featureNames, data: defaultFeatureNames() }];
}

/** A place behind the first sector that shares no sector with what the header on disk may use there. */
function placeOutside(header: Header, staleNames: readonly ByteRange[], lengthBytes: number): number {
  const oldName = Buffer.byteLength(header.backing?.filename ?? '', 'utf8');
  const oldExtensionsEnd = header.headerBytes + encodeExtensions(header.extensions).length;
  const used = [
    { from: SECTOR_BYTES, end: alignUp(oldExtensionsEnd, SECTOR_BYTES) },
    ...[{ from: header.backingOffset, end: header.backingOffset + oldName }, ...staleNames].map(wholeSectors),
  ];
  for (let at = SECTOR_BYTES; at + lengthBytes <= header.clusterBytes; at += SECTOR_BYTES) {
    const end = alignUp(at + lengthBytes, SECTOR_BYTES);
    if (used.every((range) => end <= range.from || at >= range.end)) return at;
  }
  throw noRoom('this backing file name');
}

function wholeSectors({ from, end }: ByteRange): ByteRange {
  return { from: alignDown(from, SECTOR_BYTES), end: alignUp(end, SECTOR_BYTES) };
}

function noRoom(what = 'what it is to say'): BlockError {
  return new BlockError('unsupported', `No room in the qcow2 header for ${what}`, { errno: 'ENOSPC' });
}

function writePlan(sector: Buffer, header: Header, plan: HeaderPlan): void {
  const area = encodeExtensions(plan.extensions);
  if (plan.version !== header.version) {
    sector.fill(0, V2_HEADER_BYTES);
    sector.writeUInt32BE(plan.version, 4);
  }
  sector.fill(0, plan.headerBytes);
  area.copy(sector, plan.headerBytes);
  if (plan.nameAt > 0 && plan.nameAt < SECTOR_BYTES) plan.name.copy(sector, plan.nameAt);
  writeU64(sector, FieldOffset.backingOffset, plan.nameAt);
  sector.writeUInt32BE(plan.nameAt > 0 ? plan.name.length : 0, FieldOffset.backingSize);
  if (plan.version < 3) return;
  sector.writeBigUInt64BE(plan.compatible, FieldOffset.compatible);
  sector.writeBigUInt64BE(plan.autoclear, FieldOffset.autoclear);
  sector.writeUInt32BE(header.refcountOrder, FieldOffset.refcountOrder);
  sector.writeUInt32BE(plan.headerBytes, FieldOffset.headerBytes);
}
