import { humanBytes } from './progress-meter.js';
import { printable } from './words.js';

/** Whose clusters a disk shows: stretches in order, without gaps. */
export interface ClusterMap {
  readonly diskBytes: number;
  /** Labels of the layers, the active one first. */
  readonly layers: readonly string[];
  readonly extents: readonly MapExtent[];
}

export interface MapExtent {
  readonly start: number;
  readonly lengthBytes: number;
  /** The layer that says what is there, by its place in `layers`; missing where none does. */
  readonly layer?: number;
  readonly isZero: boolean;
}

/** What most of a cell is. */
export interface MapCell {
  readonly start: number;
  readonly lengthBytes: number;
  readonly layer?: number;
  /** The part of the cell that is so, 0 to 1. */
  readonly part: number;
}

/** The disk in so many cells of equal length (the last may be shorter). */
export function cellsOf(map: ClusterMap, count: number): MapCell[] {
  const { diskBytes } = map;
  const cellBytes = Math.max(1, Math.ceil(diskBytes / count));
  const cells: MapCell[] = [];
  let first = 0;
  for (let start = 0; start < diskBytes; start += cellBytes) {
    const end = Math.min(start + cellBytes, diskBytes);
    const bytes = new Map<number, number>();
    for (let i = first; i < map.extents.length; i++) {
      const extent = map.extents[i];
      if (!extent || extent.start >= end) break;
      const extentEnd = extent.start + extent.lengthBytes;
      if (extentEnd <= end) first = i + 1;
      const shared = Math.min(extentEnd, end) - Math.max(extent.start, start);
      const owner = extent.isZero ? -1 : (extent.layer ?? -1);
      if (shared > 0) bytes.set(owner, (bytes.get(owner) ?? 0) + shared);
    }
    // A little data counts more than much nothing.
    const most = [...bytes].filter(([owner]) => owner >= 0).sort((a, b) => b[1] - a[1])[0];
    const lengthBytes = end - start;
    cells.push({
      start,
      lengthBytes,
      ...(most && { layer: most[0] }),
      part: (most?.[1] ?? lengthBytes) / lengthBytes,
    });
  }
  return cells;
}

/** Of each cell, the part that is dirty, 0 to 1; `stretches` are in order. */
export function dirtyPartsOf(
  cells: readonly MapCell[],
  stretches: ReadonlyArray<{ readonly start: number; readonly lengthBytes: number }>,
): number[] {
  let first = 0;
  return cells.map(({ start, lengthBytes }) => {
    const end = start + lengthBytes;
    let bytes = 0;
    for (let i = first; i < stretches.length; i++) {
      const stretch = stretches[i];
      if (!stretch || stretch.start >= end) break;
      const stretchEnd = stretch.start + stretch.lengthBytes;
      if (stretchEnd <= end) first = i + 1;
      bytes += Math.max(0, Math.min(stretchEnd, end) - Math.max(stretch.start, start));
    }
    return bytes / lengthBytes;
  });
}

/** Of each cell, what regions of the disk have together: bytes a second; `regions` are in order. */
export function ratesOfCells(
  cells: readonly MapCell[],
  regions: ReadonlyArray<{ readonly start: number; readonly rate: number }>,
  regionBytes: number,
): number[] {
  const rates = cells.map(() => 0);
  const cellBytes = cells[0]?.lengthBytes ?? 1;
  for (const { start, rate } of regions) {
    const end = start + regionBytes;
    for (let at = Math.max(start, 0); at < end;) {
      const index = Math.floor(at / cellBytes);
      if (index >= rates.length) break;
      const next = Math.min(end, (index + 1) * cellBytes);
      rates[index] = (rates[index] ?? 0) + (rate * (next - at)) / regionBytes;
      at = next;
    }
  }
  return rates;
}

/** Bytes that each layer provides, in the order of `layers`; zeroes are nobody's. */
export function bytesOfLayers(map: ClusterMap): number[] {
  const bytes = map.layers.map(() => 0);
  for (const { layer, isZero, lengthBytes } of map.extents)
    if (layer !== undefined && !isZero) bytes[layer] = (bytes[layer] ?? 0) + lengthBytes;
  return bytes;
}

const LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz';
const MAX_ROWS = 16;
const ROW_CELLS = 64;

/** The letter of a layer: the base is A, as the document calls it. */
function letterOf(layer: number, count: number): string {
  return LETTERS[count - 1 - layer] ?? '#';
}

/** Rows of letters, one for each cell, and what the letters mean. */
export function mapText(map: ClusterMap): string {
  const count = map.layers.length;
  const rows = Math.min(MAX_ROWS, Math.max(1, Math.ceil(map.diskBytes / (ROW_CELLS * 65536))));
  const cells = cellsOf(map, rows * ROW_CELLS);
  const lines: string[] = [];
  for (let i = 0; i < cells.length; i += ROW_CELLS) {
    const row = cells.slice(i, i + ROW_CELLS);
    const letters = row.map(({ layer }) => (layer === undefined ? '.' : letterOf(layer, count))).join('');
    lines.push(`${humanBytes(row[0]?.start ?? 0).padStart(9)}  ${letters}`);
  }
  const owned = bytesOfLayers(map);
  const legend = map.layers.map((label, layer) => {
    const part = map.diskBytes === 0 ? 0 : Math.round((100 * (owned[layer] ?? 0)) / map.diskBytes);
    return `${letterOf(layer, count).padStart(9)}  ${printable(label)}: ${humanBytes(owned[layer] ?? 0)}, ${part}% of the disk`;
  });
  const cell = humanBytes(cells[0]?.lengthBytes ?? 0);
  return [...lines, '', `Each letter is ${cell}; a dot is zeroes.`, ...legend.reverse()].join('\n');
}
