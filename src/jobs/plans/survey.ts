import { alignDown, alignUp } from '../../base/align.js';
import { KiB } from '../../base/limits.js';
import type { ChainStatus } from '../../block/chain-status.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import type { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import { statusOrData } from '../source-status.js';
import { backupNodes, type BackupPlan, copyUnitBytes } from './backup.js';
import { commitNodes } from './commit.js';
import { mirrorNodes } from './mirror.js';
import { layerAbove, lowestLayer } from './nodes.js';
import type { BlockJobPlan } from './plan.js';
import { streamNodes } from './stream.js';

/** So much of a disk is looked at before others have their turn. */
const LOOKS_A_TURN = 256;
/** Of a target without clusters of its own. */
const DEFAULT_UNIT_BYTES = 64 * KiB;
/** An entry of a table, and the count of who uses a cluster. */
const TABLE_BYTES_A_CLUSTER = 10;

/** What a job would find on its way, as things are now: bytes of the disk. */
export interface Survey {
  readonly dataBytes: number;
  readonly zeroBytes: number;
  /** In what the job copies; 1: as it lies. */
  readonly unitBytes: number;
  /** Of `dataBytes`, what the target has no place for yet, with the tables that are made for it. */
  readonly newBytes: number;
  /** What the disk does without afterwards, top first. */
  readonly ends: readonly Node[];
}

/** What is looked at, and how what is found is dealt with. */
interface Course {
  readonly source: Node;
  readonly lowest?: Node | undefined;
  readonly growth: Growth;
  readonly unitBytes: number;
  readonly ends: readonly Node[];
  /** Where the job looks at all; default: everywhere. */
  readonly within?: DirtyBitmap | undefined;
  readonly kindOf: (status: ChainStatus) => 'data' | 'zero' | 'nothing';
}

const ALLOCATED: Course['kindOf'] = ({ allocated, zero }) =>
  allocated ? (zero ? 'zero' : 'data') : 'nothing';
const ALL: Course['kindOf'] = ({ zero }) => (zero ? 'zero' : 'data');

function kindsOf(sync: BackupPlan['sync']): Course['kindOf'] {
  if (sync === 'none') return () => 'nothing';
  return sync === 'top' ? ALLOCATED : ALL;
}

/**
 * Goes over the disk as the job of a plan will, by block status alone: what is changed afterwards is not in it. Errors:
 * those of a plan that is not true any more.
 */
export function survey(graph: Graph, plan: BlockJobPlan): Promise<Survey> {
  return go(graph, courseOf(graph, plan));
}

/** The same of a copy into an image that is still to be made, of clusters of so many bytes; 0: plain bytes. */
export function surveyNew(
  graph: Graph,
  source: Node,
  how: { sync: BackupPlan['sync']; clusterBytes: number; within?: DirtyBitmap | undefined },
): Promise<Survey> {
  const { sync, clusterBytes } = how;
  const growth = new Growth(undefined, source.lengthBytes, clusterBytes);
  const unitBytes = Math.max(DEFAULT_UNIT_BYTES, clusterBytes);
  const lowest = sync === 'top' ? source : lowestLayer(source);
  const within = how.within && inUnits(how.within, unitBytes);
  return go(graph, { source, lowest, growth, unitBytes, ends: [], kindOf: kindsOf(sync), within });
}

async function go(graph: Graph, course: Course): Promise<Survey> {
  const { source, unitBytes, growth, ends, kindOf, within } = course;
  const size = source.lengthBytes;
  let [dataBytes, zeroBytes, looks] = [0, 0, 0];
  for (let at = 0; at < size;) {
    const due = within ? within.nextDirty(at) : { offset: at, lengthBytes: size - at };
    if (!due) break;
    const { offset } = due;
    const status = await statusOrData(source, offset, due.lengthBytes, course.lowest);
    const kind = kindOf(status);
    const most = Math.min(status.lengthBytes, due.lengthBytes);
    const length = wholeUnits(kind, { offset, most, end: offset + due.lengthBytes }, unitBytes);
    if (kind === 'zero' && length.isWhole) zeroBytes += length.bytes;
    else if (kind !== 'nothing' || !length.isWhole) {
      dataBytes += length.bytes;
      await growth.add(offset, length.bytes);
    }
    at = offset + length.bytes;
    if (++looks % LOOKS_A_TURN === 0) await graph.host.clock.macrotask();
  }
  return { dataBytes, zeroBytes, unitBytes, newBytes: growth.bytes, ends };
}

/** Units that are data in part are copied whole. */
function wholeUnits(
  kind: ReturnType<Course['kindOf']>,
  { offset, most, end }: { offset: number; most: number; end: number },
  unit: number,
): { bytes: number; isWhole: boolean } {
  if (kind === 'data') return { bytes: Math.min(alignUp(offset + most, unit), end) - offset, isWhole: true };
  if (offset + most === end) return { bytes: most, isWhole: true };
  const whole = alignDown(offset + most, unit) - offset;
  return whole > 0
    ? { bytes: whole, isWhole: true }
    : { bytes: Math.min(alignUp(offset + 1, unit), end) - offset, isWhole: false };
}

function courseOf(graph: Graph, plan: BlockJobPlan): Course {
  switch (plan.kind) {
    case 'stream': {
      const { node, base, bottom } = streamNodes(graph, plan);
      const layer = node.skipFilters();
      const end = (bottom ? bottom.below?.node : base)?.skipFilters();
      const ends = layersBelow(layer, end);
      const lowest = ends.at(-1) ?? layer;
      const isLast = !lowest.backingNode();
      const kindOf: Course['kindOf'] = ({ allocated, depth, zero }) =>
        allocated && depth > 0 && !(zero && isLast) ? (zero ? 'zero' : 'data') : zero ? 'zero' : 'nothing';
      const growth = new Growth(layer, layer.lengthBytes);
      return { source: layer, lowest, growth, unitBytes: 1, ends, kindOf };
    }
    case 'commit': {
      const { top, base } = commitNodes(graph, plan);
      const ends = [top.skipFilters(), ...layersBelow(top.skipFilters(), base.skipFilters())];
      return {
        ...{ source: top, lowest: layerAbove(top, base), unitBytes: 1, ends, kindOf: ALLOCATED },
        growth: new Growth(base, top.lengthBytes),
      };
    }
    case 'mirror':
    case 'active-commit': {
      const { source, target, lowest, replaces } = mirrorNodes(graph, plan);
      const layer = source.skipFilters();
      const end = plan.kind === 'active-commit' ? target.skipFilters() : undefined;
      // Of a mirror that takes another place, or for its new backing file, the chain stays.
      const stays = replaces !== undefined || plan.targetBacking === 'source-chain';
      const ends = stays ? [layer] : [layer, ...layersBelow(layer, end)];
      const growth = new Growth(target, source.lengthBytes);
      const kindOf = kindsOf(plan.sync);
      return { source, lowest, growth, unitBytes: plan.granularityBytes, ends, kindOf };
    }
    case 'backup': {
      const { device, target, bitmap } = backupNodes(graph, plan);
      const unitBytes = copyUnitBytes(plan, target);
      const isByBitmap = plan.sync === 'incremental' || plan.sync === 'bitmap';
      const kindOf = kindsOf(plan.sync);
      const lowest = plan.sync === 'top' ? device : lowestLayer(device);
      return {
        ...{ source: device, lowest, unitBytes, ends: [], kindOf },
        growth: new Growth(target, device.lengthBytes),
        within: isByBitmap && bitmap ? inUnits(bitmap, unitBytes) : undefined,
      };
    }
  }
}

function inUnits(bitmap: DirtyBitmap, unitBytes: number): DirtyBitmap {
  const due = new DirtyBitmap(bitmap.sizeBytes, unitBytes);
  due.merge(bitmap);
  return due;
}

/** Those that a layer stands on, down to the one above `end`. */
function layersBelow(layer: Node, end: Node | undefined): Node[] {
  const layers: Node[] = [];
  for (let at = layer.backingNode(); at && at !== end; at = at.backingNode()) layers.push(at);
  return layers;
}

/** What a target takes more for what is written to it. */
class Growth {
  /** Undefined: it is still to be made. */
  readonly #target: Node | undefined;
  readonly #clusterBytes: number;
  /** What one table of it tells of; undefined: it has none. */
  readonly #tableSpan: number | undefined;
  readonly #endBytes: number;
  #reached = 0;
  #table = -1;
  bytes = 0;

  constructor(target: Node | undefined, sizeBytes: number, clusterBytes = clusterOf(target)) {
    this.#target = target;
    this.#endBytes = sizeBytes;
    this.#clusterBytes = Math.max(1, clusterBytes);
    this.#tableSpan = clusterBytes > 0 ? (clusterBytes / 8) * clusterBytes : undefined;
  }

  /** In ascending order. */
  async add(offset: number, lengthBytes: number): Promise<void> {
    const unit = this.#clusterBytes;
    const end = Math.min(alignUp(offset + lengthBytes, unit), this.#endBytes);
    for (let at = Math.max(alignDown(offset, unit), this.#reached); at < end;) {
      const { bytes, isThere } = await this.#look(at, end - at);
      if (!isThere) this.#grow(at, bytes);
      at += bytes;
    }
    this.#reached = Math.max(this.#reached, end);
  }

  /** Whether a first part of a stretch has its place in the target's own image. */
  async #look(offset: number, lengthBytes: number): Promise<{ bytes: number; isThere: boolean }> {
    const target = this.#target;
    if (!target || offset >= target.lengthBytes) return { bytes: lengthBytes, isThere: false };
    const inside = Math.min(lengthBytes, target.lengthBytes - offset);
    const status = await statusOrData(target, offset, inside, target.skipFilters());
    return { bytes: Math.min(status.lengthBytes, inside), isThere: status.allocated && status.data };
  }

  #grow(offset: number, lengthBytes: number): void {
    this.bytes += lengthBytes;
    if (this.#tableSpan === undefined) return;
    this.bytes += Math.ceil(lengthBytes / this.#clusterBytes) * TABLE_BYTES_A_CLUSTER;
    const last = Math.floor((offset + lengthBytes - 1) / this.#tableSpan);
    const first = Math.max(this.#table + 1, Math.floor(offset / this.#tableSpan));
    if (last >= first) this.bytes += (last - first + 1) * this.#clusterBytes;
    this.#table = Math.max(this.#table, last);
  }
}

function clusterOf(target: Node | undefined): number {
  return target?.skipFilters().instance.info().clusterSizeBytes ?? 0;
}
