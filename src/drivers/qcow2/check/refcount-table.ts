import { hasReservedBits, Reserved } from '../disk/layout.js';
import type { HeldRefcounts } from './held.js';
import type { Walk } from './walk.js';

/** What the refcount table says of its blocks. */
export interface RefcountTableState {
  /** Clusters of blocks that are counted, as often as they are named. */
  blocks: number[];
  /** The table itself is counted. */
  tableIsCounted: boolean;
  /** Clusters that entries name which do not count. */
  uncounted: number[];
  /** It cannot be repaired where it is. */
  isBroken: boolean;
}

/** Counts the refcount table and its blocks (qcow2 specification, "Host cluster management"). */
export function walkRefcountTable(walk: Walk, held: HeldRefcounts): RefcountTableState {
  const { report, header, references } = walk;
  const tableIsCounted = walk.reference(header.refcountTableOffset, held.table.length);
  const state: RefcountTableState = { blocks: [], tableIsCounted, uncounted: [], isBroken: false };
  for (let index = 0; index < held.tableEntries; index++) {
    const offset = held.blockOffset(index);
    const cluster = Math.floor(offset / header.clusterBytes);
    // It is used in spite of them, but its cluster not counted.
    if (hasReservedBits(held.table, index, Reserved.refcountTable)) {
      report.corruption(`ERROR refcount table entry ${index} has reserved bits set`);
    } else if (offset % header.clusterBytes !== 0) {
      report.corruption(
        `ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`,
      );
    } else if (offset === 0) {
      continue;
    } else if (cluster >= references.length) {
      const mayRepair = report.mode === 'all';
      if (mayRepair) {
        report.result.corruptionsFixed++;
        report.line(`Repairing refcount block ${index} is outside image`);
      } else {
        report.corruption(`ERROR refcount block ${index} is outside image`);
      }
      state.isBroken ||= mayRepair;
      continue;
    } else {
      walk.reference(offset, header.clusterBytes);
      state.blocks.push(cluster);
      const found = references.get(cluster);
      if (found === 1) continue;
      report.corruption(`ERROR refcount block ${index} refcount=${found}`);
      state.isBroken = true;
      continue;
    }
    state.isBroken = true;
    state.uncounted.push(cluster, cluster + 1);
  }
  return state;
}
