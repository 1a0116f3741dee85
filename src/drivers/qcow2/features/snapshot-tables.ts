import type { ClusterRun } from '../space/bulk.js';
import { runsOfTable } from '../space/bulk.js';
import { readPadded } from '../check/held.js';
import { ClusterKind, ENTRY_BYTES, entryOffset } from '../disk/layout.js';
import { hex } from '../image.js';
import type { OpenImage } from '../open-image.js';
import { CachedTable } from '../tables/cached-table.js';

/** An L1 table as it is on disk. Errors: those of reading. */
export async function readL1({ context }: OpenImage, offset: number, entries: number): Promise<Buffer> {
  const l1 = Buffer.alloc(entries * ENTRY_BYTES);
  await readPadded(context.meta, offset, l1);
  return l1;
}

/**
 * Everything that an L1 table on disk refers to, as activeRuns() of the active one; nothing of it waits for a write-back.
 * Errors: those of reading; kind corrupt.
 */
export async function* runsOfL1(image: OpenImage, l1: Buffer): AsyncGenerator<ClusterRun> {
  const { context } = image;
  for await (const { offset, bytes } of l2TablesOf(image, l1)) {
    yield { start: offset / context.clusterBytes, count: 1 };
    yield* runsOfTable(context, bytes);
  }
}

/** The L2 tables of an L1 table on disk, as they are there. The bytes are good until the next one is asked for. */
async function* l2TablesOf(image: OpenImage, l1: Buffer): AsyncGenerator<{ offset: number; bytes: Buffer }> {
  const { context, tables } = image;
  const bytes = Buffer.alloc(context.clusterBytes);
  for (let index = 0; index * ENTRY_BYTES < l1.length; index++) {
    const offset = entryOffset(l1, index);
    if (offset === 0) continue;
    const where = `L1 index: ${hex(index)}`;
    if (offset % context.clusterBytes !== 0)
      throw context.corrupt(`L2 table offset ${hex(offset)} unaligned (${where})`);
    if (!Number.isSafeInteger(offset + context.clusterBytes))
      throw context.corrupt(`L2 table offset ${hex(offset)} outside the image (${where})`);
    await readPadded(context.meta, offset, bytes);
    const table = new CachedTable(index, bytes, offset, false);
    table.wellFormed = false;
    for (let entry = 0; entry < context.l2Entries; entry++) tables.checkEntry(table, entry);
    yield { offset, bytes };
  }
}

/**
 * No entry of an L1 table on disk, and of its L2 tables, claims to be the only one: in the tables of a snapshot that
 * claim means nothing, whoever wrote it there. Not yet durable on return.
 */
export async function clearClaims(image: OpenImage, l1: Buffer): Promise<void> {
  const { context } = image;
  const { l2 } = context;
  for await (const { offset, bytes } of l2TablesOf(image, l1)) {
    let found = false;
    for (let index = 0; index < context.l2Entries; index++) {
      if (l2.kind(bytes, index) === ClusterKind.compressed || !l2.isCopied(bytes, index)) continue;
      l2.setCopied(bytes, index, false);
      found = true;
    }
    if (!found) continue;
    const what = context.metadata.find(offset, context.clusterBytes);
    if (what !== undefined && what !== 'active L2 table') throw context.overlap(what, offset);
    await context.meta.write(offset, bytes, 0);
  }
}
