import { numberOf, objectOf } from './answers.js';
import type { JsonValue } from '../schema/types.js';

/** Requests by how long they took: bin i has those below boundary i (and not below the one before), the last the rest. */
export interface Histogram {
  readonly boundariesNs: readonly number[];
  readonly bins: readonly number[];
}

/** Of query-blockstats; undefined where there is none, or it is none. */
export function readHistogram(value: JsonValue | undefined): Histogram | undefined {
  const { boundaries, bins } = objectOf(value);
  if (!Array.isArray(boundaries) || !Array.isArray(bins) || bins.length !== boundaries.length + 1)
    return undefined;
  const numbers = (list: readonly JsonValue[]): number[] => list.map((one) => numberOf(one) ?? 0);
  return { boundariesNs: numbers(boundaries), bins: numbers(bins) };
}

/** What was counted between two looks; all, where it was begun anew meanwhile. */
export function histogramSince(before: Histogram | undefined, now: Histogram): Histogram {
  const isSame = before?.boundariesNs.join() === now.boundariesNs.join();
  const bins = now.bins.map((count, i) => count - (isSame ? (before?.bins[i] ?? 0) : 0));
  return { boundariesNs: now.boundariesNs, bins: bins.some((count) => count < 0) ? now.bins : bins };
}

/**
 * Below so many milliseconds is the given part (0 to 1) of the requests: the upper end of the bucket where that falls, so
 * the true one is no more. Of the last bucket, which has none, the lower end. Undefined where nothing was counted.
 */
export function percentileMs({ boundariesNs, bins }: Histogram, part: number): number | undefined {
  const all = bins.reduce((sum, count) => sum + count, 0);
  if (all === 0) return undefined;
  let counted = 0;
  const bucket = bins.findIndex((count) => (counted += count) >= part * all);
  const boundaryNs = boundariesNs[Math.min(bucket, boundariesNs.length - 1)];
  return boundaryNs === undefined ? undefined : boundaryNs / 1e6;
}

/** 10 µs, 20 µs, 50 µs ... 10 s: what the page asks a server to count by. */
export const USUAL_BOUNDARIES_NS: readonly number[] = [1e4, 1e5, 1e6, 1e7, 1e8, 1e9]
  .flatMap((decade) => [decade, 2 * decade, 5 * decade])
  .concat(1e10);
