import type { LatencyHistogram } from './latency-histogram.js';
import type { RequestKind } from './request.js';

export type Operation = 'read' | 'write' | 'flush' | 'unmap';

/** As what a request counts. */
export const OPERATION_OF: Readonly<Record<RequestKind, Operation>> = {
  read: 'read',
  write: 'write',
  zeroes: 'write',
  discard: 'unmap',
  flush: 'flush',
};

/** Counters of query-blockstats. */
export interface OperationStatistics {
  bytes: number;
  operations: number;
  failed: number;
  totalMs: number;
  /** Kept for those who asked for it. */
  histogram?: LatencyHistogram | undefined;
}

export function newStatistics(): OperationStatistics {
  return { bytes: 0, operations: 0, failed: 0, totalMs: 0 };
}
