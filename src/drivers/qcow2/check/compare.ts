import type { HeldRefcounts } from './held.js';
import type { References } from './references.js';
import type { Report } from './report.js';

/** Clusters [start, start + count), whose refcount is not how often they are referred to; `held` undefined: unknown. */
export interface Mismatch {
  start: number;
  count: number;
  held: number | undefined;
  found: number;
}

export interface Comparison {
  /** Ascending. */
  mismatches: Mismatch[];
  /** Clusters in use that count as free, or whose refcount cannot be known. */
  isBroken: boolean;
}

/** Compares the refcount of each cluster with the references to it, and tells of those that differ. */
export async function compareRefcounts(
  report: Report,
  clusterBytes: number,
  held: HeldRefcounts,
  references: References,
): Promise<Comparison> {
  const comparison: Comparison = { mismatches: [], isBroken: false };
  for (let cluster = 0; cluster < references.length; cluster++) {
    if (!held.has(cluster)) await held.load(cluster);
    const found = references.get(cluster);
    const count = held.at(cluster);
    if (count !== undefined && (found > 0 || count > 0))
      report.result.imageEndOffset = (cluster + 1) * clusterBytes;
    if (count === found) continue;
    if (count === undefined || count === 0) comparison.isBroken = true;
    if (count === undefined) tellUnknown(report, cluster, held);
    else tell(report, cluster, count, found);
    addTo(comparison.mismatches, cluster, count, found);
  }
  return comparison;
}

function tellUnknown(report: Report, cluster: number, held: HeldRefcounts): void {
  if (report.result.checkErrors === 0) report.line(held.corruptionText(cluster, report.mode !== 'none'));
  report.checkError(`Can't get refcount for cluster ${cluster}: Input/output error`);
}

/** Counts where nothing is repaired: else it is told first, and what becomes of it after that. */
function tell(report: Report, cluster: number, held: number, found: number): void {
  const isLeak = held > found;
  report.line(`${isLeak ? 'Leaked' : 'ERROR'} cluster ${cluster} refcount=${held} reference=${found}`);
  if (report.mode !== 'none') return;
  if (isLeak) report.result.leaks++;
  else report.result.corruptions++;
}

function addTo(mismatches: Mismatch[], cluster: number, held: number | undefined, found: number): void {
  const last = mismatches.at(-1);
  if (last && last.start + last.count === cluster && last.held === held && last.found === found) last.count++;
  else mismatches.push({ start: cluster, count: 1, held, found });
}

/** Says of each mismatch what becomes of it where refcounts are repaired one by one. */
export function repairMismatches(report: Report, mismatches: readonly Mismatch[]): void {
  const { result, mode } = report;
  for (const { start, count, held, found } of mismatches) {
    if (held === undefined) continue;
    const isLeak = held > found;
    const mayRepair = isLeak || mode === 'all';
    for (let cluster = start; cluster < start + count; cluster++) {
      const text = `cluster ${cluster} refcount=${held} reference=${found}`;
      report.line(`${mayRepair ? 'Repairing' : isLeak ? 'Leaked' : 'ERROR'} ${text}`);
    }
    if (!mayRepair) result.corruptions += count;
    else if (isLeak) result.leaksFixed += count;
    else result.corruptionsFixed += count;
    if (mayRepair) report.repairs.push({ kind: 'refcount', start, count, from: held, to: found });
  }
}

/** What refcounts are once the repairs are made. */
export class CountsAfterwards {
  readonly #references: References;
  readonly #held: HeldRefcounts;
  readonly #unrepaired: readonly Mismatch[];
  readonly #former: ReadonlyMap<number, number> | undefined;

  /** `unrepaired` ascending. `former`: where all are counted anew, how much less clusters count afterwards. */
  constructor(
    references: References,
    held: HeldRefcounts,
    unrepaired: readonly Mismatch[],
    former?: ReadonlyMap<number, number>,
  ) {
    this.#references = references;
    this.#held = held;
    this.#unrepaired = unrepaired;
    this.#former = former;
  }

  /** How many refer to a cluster. */
  users(cluster: number): number {
    return this.#references.get(cluster) - (this.#former?.get(cluster) ?? 0);
  }

  /** Its refcount; undefined: unknown. A promise where the image must be looked at. */
  of(cluster: number): number | undefined | Promise<number | undefined> {
    if (this.#former) return this.users(cluster);
    if (cluster >= this.#references.length) return this.#held.get(cluster);
    const wrong = this.#findUnrepaired(cluster);
    return wrong ? wrong.held : this.#references.get(cluster);
  }

  #findUnrepaired(cluster: number): Mismatch | undefined {
    const all = this.#unrepaired;
    let low = 0;
    let high = all.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const { start = 0, count = 0 } = all[middle] ?? {};
      if (start + count <= cluster) low = middle + 1;
      else high = middle;
    }
    const found = all[low];
    return found && found.start <= cluster ? found : undefined;
  }
}
