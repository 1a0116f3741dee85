import { divideRoundUp } from '../../../base/align.js';
import { errnoError } from '../../../base/error.js';
import type { ChildIo, RepairMode } from '../../../block/driver.js';
import type { Header } from '../disk/header.js';
import { ENTRY_BYTES } from '../disk/layout.js';
import { readHeader } from '../image.js';
import { walkBitmaps, walkSnapshots } from './check-extras.js';
import { type Comparison, compareRefcounts, CountsAfterwards, repairMismatches } from './compare.js';
import { checkCopied } from './copied.js';
import { HeldRefcounts } from './held.js';
import { References } from './references.js';
import { type RefcountTableState, walkRefcountTable } from './refcount-table.js';
import { type Qcow2CheckResult, type Repair, Report } from './report.js';
import { readSnapshotList } from './snapshot-list.js';
import { Walk } from './walk.js';

export type { Qcow2CheckResult } from './report.js';

export interface CheckPlan {
  /** Counts and words as they are when the repairs are made. */
  result: Qcow2CheckResult;
  repairs: readonly Repair[];
  /** Nothing wrong is left afterwards: the image is neither dirty nor corrupt. */
  isClean: boolean;
  /** How often each cluster is in use. */
  references: References;
}

/**
 * Counts every reference to every host cluster of an image and compares with the refcounts it holds. Reads only.
 * Memory: two bytes a cluster of the file, and the L1 tables. Errors: those of opening and reading; kind limit.
 */
export async function checkQcow2(file: ChildIo): Promise<Qcow2CheckResult> {
  return (await planRepairs(file, 'none')).result;
}

/**
 * The same with a plan of what `mode` repairs, which check/repair.ts carries out. Each finding is told as it is made.
 * Errors: also EIO when leaks alone cannot be repaired.
 */
export async function planRepairs(
  file: ChildIo,
  mode: RepairMode,
  say: (line: string) => void = () => undefined,
): Promise<CheckPlan> {
  const { parsed: header } = await readHeader(file, true);
  const report = new Report(mode, divideRoundUp(header.sizeBytes, header.clusterBytes), say);
  const clusters = divideRoundUp(file.lengthBytes, header.clusterBytes);
  const references = new References(clusters, header.refcountOrder);
  const held = await HeldRefcounts.read(file, header);
  await new Checker(new Walk(file, header, report, references), held).run();
  return { result: report.result, repairs: report.repairs, isClean: report.isCleanAfterwards, references };
}

/** One check under way. */
class Checker {
  readonly #walk: Walk;
  readonly #held: HeldRefcounts;
  readonly #header: Header;
  readonly #report: Report;
  readonly #references: References;

  constructor(walk: Walk, held: HeldRefcounts) {
    this.#walk = walk;
    this.#held = held;
    this.#header = walk.header;
    this.#report = walk.report;
    this.#references = walk.references;
  }

  async run(): Promise<void> {
    const report = this.#report;
    const { result, mode } = report;
    const header = this.#header;
    result.imageEndOffset = header.clusterBytes;
    const snapshots = await readSnapshotList(this.#walk);
    const firstLine = result.messages.length;
    this.#walk.reference(0, header.clusterBytes);
    await this.#walk.l1(header.l1Offset, header.l1Entries, true);
    await walkSnapshots(this.#walk, snapshots);
    const { encryption } = header;
    if (encryption?.format === 'luks') this.#walk.reference(encryption.offset, encryption.lengthBytes);
    await walkBitmaps(this.#walk);
    const before = { said: result.messages.slice(firstLine), corruptions: result.corruptions };
    const table = walkRefcountTable(this.#walk, this.#held);
    const compared = await compareRefcounts(report, header.clusterBytes, this.#held, this.#references);
    let counts = new CountsAfterwards(this.#references, this.#held, compared.mismatches);
    if (mode !== 'none' && (table.isBroken || compared.isBroken)) {
      counts = this.#rebuild(before, table, compared);
    } else if (mode !== 'none') {
      repairMismatches(report, compared.mismatches);
      const unrepaired = compared.mismatches.filter(
        ({ held = 0, found }) => mode === 'leaks' && held <= found,
      );
      counts = new CountsAfterwards(this.#references, this.#held, unrepaired);
    }
    const walk = this.#walk;
    report.takeBack((repair) => repair.kind === 'l2-zero' && !walk.isOnlyTable(repair.tableOffset, counts));
    await checkCopied(walk, counts);
  }

  /** Refcounts are counted anew; `before` is what was found that this does not mend. */
  #rebuild(
    before: { said: string[]; corruptions: number },
    table: RefcountTableState,
    { mismatches }: Comparison,
  ): CountsAfterwards {
    const report = this.#report;
    const { result } = report;
    if (report.mode !== 'all') {
      report.line('ERROR need to rebuild refcount structures');
      throw errnoError('EIO');
    }
    for (const { held, found, count } of mismatches) {
      if (held === undefined) result.checkErrors -= count;
      else if (held > found) result.leaksFixed += count;
      else result.corruptions += count;
    }
    report.line('Rebuilding refcount structure');
    // What is wrong elsewhere is found again by the count that follows.
    for (const text of before.said) if (!text.startsWith('Repairing')) report.line(text);
    result.corruptionsFixed += result.corruptions - before.corruptions;
    result.corruptions = before.corruptions;
    const former = this.#planRebuild(table);
    return new CountsAfterwards(this.#references, this.#held, [], former);
  }

  /** Answers how much less each cluster counts when the former structures are given up. */
  #planRebuild(table: RefcountTableState): Map<number, number> {
    const { clusterBytes, refcountTableOffset, l1Offset, l1Entries } = this.#header;
    const references = this.#references;
    const former = new Map<number, number>();
    const first = refcountTableOffset / clusterBytes;
    const tableClusters = this.#held.table.length / clusterBytes;
    for (let i = 0; table.tableIsCounted && i < tableClusters; i++) former.set(first + i, 1);
    for (const cluster of table.blocks) former.set(cluster, (former.get(cluster) ?? 0) + 1);
    for (const cluster of [...former.keys()].sort((a, b) => a - b)) {
      const count = references.get(cluster);
      const after = count - (former.get(cluster) ?? 0);
      this.#report.line(`Repairing cluster ${cluster} refcount=${count} reference=${after}`);
    }
    const avoid = new Set(table.uncounted);
    for (let i = 0; i < tableClusters; i++) avoid.add(first + i);
    for (let at = l1Offset; at < l1Offset + l1Entries * ENTRY_BYTES; at += clusterBytes)
      avoid.add(at / clusterBytes);
    this.#report.repairs.push({
      kind: 'rebuild',
      references,
      formerBlocks: table.blocks,
      formerTableIsCounted: table.tableIsCounted,
      avoid,
    });
    return former;
  }
}
