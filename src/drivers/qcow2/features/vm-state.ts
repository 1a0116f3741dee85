import { alignUp, divideRoundUp } from '../../../base/align.js';
import { newMapping } from '../../../block/request.js';
import { entryOffset } from '../disk/layout.js';
import type { ImageContext } from '../image.js';
import { readCompressed } from '../mapping/compressed.js';
import { growL1 } from '../mapping/resize.js';
import type { OpenImage } from '../open-image.js';
import { checkEntries, dropReferences, loadTable, runsOfTable } from '../space/bulk.js';

/** Where a machine's state is, behind the disk, mapped by L2 tables of its own (qcow2 specification, "VM state"). */
export function vmStateOffset({ header, l2, clusterBytes }: ImageContext): number {
  return alignUp(header.sizeBytes, l2.coverageBytes(clusterBytes));
}

function vmStateL1Index(context: ImageContext): number {
  return vmStateOffset(context) / context.l2.coverageBytes(context.clusterBytes);
}

/** Puts a machine's state where there is none; it waits for the next write-back. Errors: those of allocating and writing. */
export async function writeVmState(image: OpenImage, bytes: Uint8Array): Promise<void> {
  const { context, reserver } = image;
  const start = vmStateOffset(context);
  const end = start + bytes.length;
  await growL1(image, divideRoundUp(end, context.l2.coverageBytes(context.clusterBytes)));
  for (let at = start; at < end;) {
    const reservation = await reserver.reserve(at, end - at);
    const length = Math.min(reservation.lengthBytes, end - at);
    const piece = Buffer.alloc(reservation.lengthBytes);
    piece.set(bytes.subarray(at - start, at - start + length));
    try {
      await reservation.child.write(reservation.hostOffset, piece, 0);
    } catch (error) {
      reservation.abort();
      throw error;
    }
    reservation.link();
    at += length;
  }
}

/** The disk has no machine's state any more; what is not a snapshot's too is free after the next write-back. */
export async function forgetVmState(image: OpenImage): Promise<void> {
  const { context, tables, unlinked, writeBack } = image;
  for (let l1Index = vmStateL1Index(context); l1Index < tables.l1.entries; l1Index++) {
    if (tables.isAbsent(l1Index)) continue;
    const table = await loadTable(image, l1Index);
    checkEntries(image, table);
    for (const run of runsOfTable(context, table.bytes)) dropReferences(image, run);
    dropReferences(image, { start: entryOffset(tables.l1.bytes, l1Index) / context.clusterBytes, count: 1 });
    tables.remove(l1Index);
    if (unlinked.needsWriteBack) await writeBack.flush();
  }
}

/** Reads what is mapped at `offset`, in front of the disk's end or behind it; zeroes where nothing is. */
export async function readMapped(image: OpenImage, offset: number, buffer: Uint8Array): Promise<void> {
  const mapping = newMapping();
  for (let done = 0; done < buffer.length; done += mapping.lengthBytes) {
    await image.mapper.map(offset + done, buffer.length - done, mapping);
    const piece = buffer.subarray(done, done + mapping.lengthBytes);
    if (mapping.kind !== 'data') piece.fill(0);
    else if (mapping.plain) await image.context.data.read(mapping.hostOffset, piece);
    else await readCompressed(image, offset + done, piece);
  }
}
