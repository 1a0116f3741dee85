import { alignDown, alignUp } from '../../../base/align.js';
import { BlockError, errnoError } from '../../../base/error.js';
import { MAX_BACKING_NAME_BYTES } from '../../../base/limits.js';
import { encodeExtensions, type HeaderExtension, rebuildExtensions } from '../disk/header-extensions.js';
import { FieldOffset, type Header } from '../disk/header.js';
import type { ByteRange, ImageContext } from '../image.js';
import { SECTOR_BYTES, writeU64 } from '../disk/layout.js';

/**
 * Rewrites the backing reference; durable on return. The extensions end in the first sector, which the disk writes
 * whole or not at all; a name that does not fit there is made durable first, away from the old one.
 * Errors: invalid (name too long), unsupported (no room in the header cluster).
 */
export async function changeBacking(
  context: ImageContext,
  filename: string | undefined,
  format: string | undefined,
): Promise<void> {
  context.assertMayWrite();
  await context.clearAutoclear();
  await context.headerLock.run(async () => {
    const { header } = context;
    const plan = planBacking(header, context.staleNames, filename, format);
    if (plan.nameAt >= SECTOR_BYTES) {
      await context.meta.write(plan.nameAt, plan.name, 0);
      await context.meta.flush();
    }
    // Until the header is durable, the disk may have either: should this fail, the next change spares both names.
    context.staleNames.push({ from: plan.nameAt, end: plan.nameAt + plan.name.length });
    await context.writeHeader((sector) => writePlan(sector, header, plan));
    await context.meta.flush();
    header.extensions = plan.extensions;
    header.backingOffset = plan.nameAt;
    header.backing = plan.backing;
    context.staleNames = [];
  });
}

interface BackingPlan {
  extensions: HeaderExtension[];
  name: Buffer;
  /** 0: no backing file. */
  nameAt: number;
  backing: Header['backing'];
}

function planBacking(
  header: Header,
  staleNames: readonly ByteRange[],
  filename: string | undefined,
  format: string | undefined,
): BackingPlan {
  const name = Buffer.from(filename ?? '', 'utf8');
  if (name.length > MAX_BACKING_NAME_BYTES) throw errnoError('EINVAL');
  const hasName = filename !== undefined && name.length > 0;
  const kept = hasName ? format : undefined;
  const extensions = rebuildExtensions(header.extensions, kept, SECTOR_BYTES - header.headerBytes);
  if (!extensions) throw noRoom();
  if (!hasName) return { extensions, name, nameAt: 0, backing: undefined };
  const backing = { filename, ...(kept === undefined ? {} : { format: kept }) };
  const extensionsEnd = header.headerBytes + encodeExtensions(extensions).length;
  const nameAt =
    extensionsEnd + name.length <= SECTOR_BYTES
      ? extensionsEnd
      : placeOutside(header, staleNames, name.length);
  return { extensions, name, nameAt, backing };
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

function writePlan(sector: Buffer, header: Header, plan: BackingPlan): void {
  const area = encodeExtensions(plan.extensions);
  sector.fill(0, header.headerBytes);
  area.copy(sector, header.headerBytes);
  if (plan.nameAt > 0 && plan.nameAt < SECTOR_BYTES) plan.name.copy(sector, plan.nameAt);
  writeU64(sector, FieldOffset.backingOffset, plan.nameAt);
  sector.writeUInt32BE(plan.nameAt > 0 ? plan.name.length : 0, FieldOffset.backingSize);
}
