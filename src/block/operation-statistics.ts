import type { IntervalStatistics } from './interval-statistics.js';
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
  /** Asked in a way that cannot be, and not begun. */
  invalid: number;
  totalMs: number;
  /** Kept for those who asked for it. */
  histogram?: LatencyHistogram | undefined;
}

export function newStatistics(): OperationStatistics {
  return { bytes: 0, operations: 0, failed: 0, invalid: 0, totalMs: 0 };
}

/** Which requests that were not done are an access to the disk, and have a latency. */
export interface AccountingRules {
  accountsInvalid: boolean;
  accountsFailed: boolean;
}

/** What a user's requests have come to. */
export class Statistics implements Record<Operation, OperationStatistics>, AccountingRules {
  readonly read = newStatistics();
  readonly write = newStatistics();
  readonly flush = newStatistics();
  readonly unmap = newStatistics();
  accountsInvalid = true;
  accountsFailed = true;
  /** When the last request that counts has ended; undefined: there was none. */
  lastAccessMs: number | undefined = undefined;
  /** Those that somebody asked for. */
  intervals: readonly IntervalStatistics[] = [];

  /** A request that was done. `startedMs`, `endedMs`: by the host's clock. */
  done(operation: Operation, lengthBytes: number, startedMs: number, endedMs: number): void {
    const counters = this[operation];
    counters.operations++;
    counters.bytes += lengthBytes;
    counters.histogram?.add(endedMs - startedMs);
    this.#took(operation, startedMs, endedMs);
  }

  failed(operation: Operation, startedMs: number, endedMs: number): void {
    const counters = this[operation];
    counters.failed++;
    counters.histogram?.add(endedMs - startedMs);
    if (this.accountsFailed) this.#took(operation, startedMs, endedMs);
  }

  invalid(operation: Operation, nowMs: number): void {
    this[operation].invalid++;
    if (this.accountsInvalid) this.lastAccessMs = nowMs;
  }

  #took(operation: Operation, startedMs: number, endedMs: number): void {
    const tookMs = endedMs - startedMs;
    this[operation].totalMs += tookMs;
    this.lastAccessMs = endedMs;
    if (operation === 'unmap') return;
    for (const interval of this.intervals) interval.add(operation, tookMs, endedMs);
  }
}
