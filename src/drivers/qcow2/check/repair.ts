import { divideRoundUp } from '../../../base/align.js';
import { FieldOffset } from '../disk/header.js';
import { encodeSnapshotTable } from '../disk/snapshots.js';
import { placeTable } from '../features/placed-table.js';
import { CachedTable } from '../tables/cached-table.js';
import { readPadded } from './held.js';
import { Incompatible, writeU64 } from '../disk/layout.js';
import type { OpenImage } from '../open-image.js';
import { rebuildRefcounts } from '../space/rebuild.js';
import { dropReferences, setRefcounts } from '../space/bulk.js';
import type { CheckPlan } from './check.js';
import type { Repair } from './report.js';

type RepairOf<K extends Repair['kind']> = Extract<Repair, { kind: K }>;

/**
 * Carries out the repairs of a plan through the image's write-back; durable on return. The image was opened for this and
 * is opened anew afterwards. A crash in between leaves what guests see as it was, and no cluster in use that counts as
 * free which did not before: entries lose what they must not claim first, then refcounts go up, then the header names
 * another snapshot table, then refcounts go down, and only then entries claim more.
 */
export async function applyRepairs(image: OpenImage, plan: CheckPlan): Promise<void> {
  const tables = new TablesInRepair(image);
  const isClaim = (repair: Repair): boolean => 'copied' in repair && repair.copied;
  const entries = plan.repairs.filter(isEntryRepair);
  await tables.change(entries.filter((repair) => !isClaim(repair)));
  await flushAll(image);
  const refcounts = plan.repairs.filter((repair) => repair.kind === 'refcount');
  await setRefcounts(
    image,
    refcounts.filter(({ from, to }) => from < to),
  );
  await flushAll(image);
  const snapshots = plan.repairs.find((repair) => repair.kind === 'snapshot-table');
  const isRebuilt = plan.repairs.some((repair) => repair.kind === 'rebuild');
  if (snapshots && !isRebuilt) await changeSnapshotTable(image, snapshots);
  await setRefcounts(
    image,
    refcounts.filter(({ from, to }) => from > to),
  );
  const rebuild = plan.repairs.find((repair) => repair.kind === 'rebuild');
  if (rebuild) rebuildRefcounts(image, rebuild);
  await flushAll(image);
  if (snapshots && isRebuilt) await changeSnapshotTable(image, snapshots);
  await tables.change(entries.filter(isClaim));
  await flushAll(image);
  if (plan.isClean) await image.context.clearIncompatible(Incompatible.dirty | Incompatible.corrupt);
}

/** What is given up is free in memory after one write-back, and on disk after the next. */
async function flushAll({ writeBack }: OpenImage): Promise<void> {
  while (writeBack.isDirty) await writeBack.flush();
}

/** The header names a snapshot table of these entries; what was the former one's is free with the next write-back. */
async function changeSnapshotTable(
  image: OpenImage,
  { entries, formerBytes }: RepairOf<'snapshot-table'>,
): Promise<void> {
  const { context } = image;
  const { header, clusterBytes } = context;
  const bytes = encodeSnapshotTable(entries.map((raw) => ({ raw })));
  const place = await placeTable(image, bytes, 'snapshot table');
  await flushAll(image);
  await context.switchHeader((sector) => {
    sector.writeUInt32BE(entries.length, FieldOffset.snapshotCount);
    writeU64(sector, FieldOffset.snapshotsOffset, place.hostOffset);
  });
  const end = Math.min(header.snapshotsOffset + formerBytes, context.openedFileBytes);
  const start = header.snapshotsOffset / clusterBytes;
  const count = Math.max(0, divideRoundUp(end, clusterBytes) - start);
  Object.assign(header, { snapshotCount: entries.length, snapshotsOffset: place.hostOffset });
  if (count > 0) dropReferences(image, { start, count }, 'snapshot');
}

type EntryRepair = RepairOf<'l1-copied' | 'l2-copied' | 'l2-zero'>;

function isEntryRepair(repair: Repair): repair is EntryRepair {
  return repair.kind === 'l1-copied' || repair.kind === 'l2-copied' || repair.kind === 'l2-zero';
}

/** L2 tables by where they are, whoever names them. */
class TablesInRepair {
  readonly #image: OpenImage;
  readonly #indexes = new Map<number, number>();

  constructor(image: OpenImage) {
    this.#image = image;
  }

  async change(repairs: readonly EntryRepair[]): Promise<void> {
    const { tables, writeBack } = this.#image;
    for (const repair of repairs) {
      if (tables.cache.needsWriteBack) await writeBack.flush();
      if (repair.kind === 'l1-copied') tables.l1.setCopied(repair.index, repair.copied);
      else this.#changeEntry(await this.#table(repair.tableOffset), repair);
    }
  }

  #changeEntry(table: CachedTable, repair: RepairOf<'l2-copied' | 'l2-zero'>): void {
    const { header, l2 } = this.#image.context;
    const at = repair.index * l2.entryBytes;
    const bytes = table.change(at, at + l2.entryBytes);
    if (repair.kind === 'l2-copied') l2.setCopied(bytes, repair.index, repair.copied);
    else if (header.version < 3) l2.writeData(bytes, repair.index, 0, false);
    else l2.writeZero(bytes, repair.index, 0, false);
  }

  async #table(offset: number): Promise<CachedTable> {
    const { tables, context } = this.#image;
    let index = this.#indexes.get(offset);
    // Behind the entries of the L1 table, where no request of a guest finds it.
    if (index === undefined) index = tables.l1.entries + this.#indexes.size;
    this.#indexes.set(offset, index);
    const key = index;
    return tables.cache.load(key, async () => {
      const bytes = tables.cache.buffer();
      await readPadded(context.meta, offset, bytes);
      return new CachedTable(key, bytes, offset, false);
    });
  }
}
