import { humanBytes } from './progress-meter.js';

/** How an image's file is used, as people are told of it. */
export interface FileFacts {
  readonly lengthBytes: number;
  /** Of clusters that something needs. */
  readonly neededBytes: number;
  /** Of free clusters before the last one in use. */
  readonly freeBytes: number;
  /** Of clusters that count as in use and are nobody's. */
  readonly leakedBytes: number;
  readonly compressedClusters: number;
  readonly extents: number;
  /** Clusters that follow another on the disk, and how many of them do not in the file. */
  readonly adjoiningClusters: number;
  readonly scatteredClusters: number;
}

/** In words, a sentence a line. */
export function fileLines(facts: FileFacts): string[] {
  const { lengthBytes, neededBytes, freeBytes, leakedBytes, compressedClusters } = facts;
  const { extents, adjoiningClusters, scatteredClusters } = facts;
  const growth = neededBytes === 0 ? '' : `, ${(lengthBytes / neededBytes).toFixed(2)} times as much`;
  const lines = [
    `its content needs ${humanBytes(neededBytes)}, its file is ${humanBytes(lengthBytes)} long${growth}`,
  ];
  if (freeBytes > 0) lines.push(`${humanBytes(freeBytes)} inside are free, and written to first`);
  if (leakedBytes > 0) lines.push(`${humanBytes(leakedBytes)} are leaked`);
  if (extents > 0)
    lines.push(
      `its data lies in ${extents} ${extents === 1 ? 'stretch' : 'stretches'}: of ${adjoiningClusters} clusters that follow ` +
        `another on the disk, ${scatteredClusters}${percent(scatteredClusters, adjoiningClusters)} do not in the file`,
    );
  if (compressedClusters > 0) lines.push(`${compressedClusters} clusters are compressed`);
  return lines;
}

function percent(part: number, whole: number): string {
  return whole === 0 ? '' : ` (${((part * 100) / whole).toFixed(1)}%)`;
}
