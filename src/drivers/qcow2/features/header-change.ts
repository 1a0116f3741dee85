import { alignDown, alignUp } from '../../../base/align.js';
import { BlockError, errnoError } from '../../../base/error.js';
import { MAX_BACKING_NAME_BYTES } from '../../../base/limits.js';
import { encodeExtensions, type HeaderExtension, rebuildExtensions } from '../disk/header-extensions.js';
import { FieldOffset, type Header } from '../disk/header.js';
import type { ByteRange, ImageContext } from '../image.js';
import { SECTOR_BYTES, writeU64 } from '../disk/layout.js';

/** What the header is to say instead; what is not given stays. */
export interface HeaderChange {
  backing?: { filename: string | undefined; format: string | undefined };
  extensions?: readonly HeaderExtension[];
  autoclear?: bigint;
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
}

function planHeader(header: Header, staleNames: readonly ByteRange[], change: HeaderChange): HeaderPlan {
  const { filename, format } = change.backing ?? {
    filename: header.backing?.filename,
    format: header.backing?.format,
  };
  const autoclear = change.autoclear ?? header.autoclear;
  const name = Buffer.from(filename ?? '', 'utf8');
  if (name.length > MAX_BACKING_NAME_BYTES) throw errnoError('EINVAL');
  const hasName = filename !== undefined && name.length > 0;
  const kept = hasName ? format : undefined;
  const old = change.extensions ?? header.extensions;
  const extensions = rebuildExtensions(old, kept, SECTOR_BYTES - header.headerBytes);
  if (!extensions) throw noRoom();
  const common = { extensions, name, autoclear };
  if (!hasName) return { ...common, nameAt: 0, isNameThere: false, backing: undefined };
  const backing = { filename, ...(kept === undefined ? {} : { format: kept }) };
  const isNameThere =
    filename === header.backing?.filename && header.backingOffset >= SECTOR_BYTES && staleNames.length === 0;
  if (isNameThere) return { ...common, nameAt: header.backingOffset, isNameThere, backing };
  const extensionsEnd = header.headerBytes + encodeExtensions(extensions).length;
  const nameAt =
    extensionsEnd + name.length <= SECTOR_BYTES
      ? extensionsEnd
      : placeOutside(header, staleNames, name.length);
  return { ...common, nameAt, isNameThere, backing };
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
  throw noRoom();
}

function wholeSectors({ from, end }: ByteRange): ByteRange {
  return { from: alignDown(from, SECTOR_BYTES), end: alignUp(end, SECTOR_BYTES) };
}

function noRoom(): BlockError {
  return new BlockError('unsupported', 'No room in the qcow2 header for this backing file name', {
    errno: 'ENOSPC',
  });
}

function writePlan(sector: Buffer, header: Header, plan: HeaderPlan): void {
  const area = encodeExtensions(plan.extensions);
  sector.fill(0, header.headerBytes);
  area.copy(sector, header.headerBytes);
  if (plan.nameAt > 0 && plan.nameAt < SECTOR_BYTES) plan.name.copy(sector, plan.nameAt);
  writeU64(sector, FieldOffset.backingOffset, plan.nameAt);
  sector.writeUInt32BE(plan.nameAt > 0 ? plan.name.length : 0, FieldOffset.backingSize);
  if (header.version >= 3) sector.writeBigUInt64BE(plan.autoclear, FieldOffset.autoclear);
}
