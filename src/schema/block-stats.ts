import { OTHER_DRIVERS } from './blockdev-options.js';
import { DRIVER_NAMES } from './create-options.js';
import {
  arrayOf,
  bool,
  enumOf,
  int,
  lazy,
  number,
  optional,
  required,
  str,
  struct,
  type StructOf,
  type Type,
  uint64,
  union,
} from './types.js';

/** What query-blockstats returns (block-core.json of QEMU 7.2). */

const HISTOGRAM = struct('BlockLatencyHistogramInfo', {
  boundaries: required(arrayOf(int)),
  bins: required(arrayOf(int)),
});

export const BlockDeviceStats = struct('BlockDeviceStats', {
  rd_bytes: required(int),
  wr_bytes: required(int),
  unmap_bytes: required(int),
  rd_operations: required(int),
  wr_operations: required(int),
  flush_operations: required(int),
  unmap_operations: required(int),
  rd_total_time_ns: required(int),
  wr_total_time_ns: required(int),
  flush_total_time_ns: required(int),
  unmap_total_time_ns: required(int),
  wr_highest_offset: required(int),
  rd_merged: required(int),
  wr_merged: required(int),
  unmap_merged: required(int),
  failed_rd_operations: required(int),
  failed_wr_operations: required(int),
  failed_flush_operations: required(int),
  failed_unmap_operations: required(int),
  invalid_rd_operations: required(int),
  invalid_wr_operations: required(int),
  invalid_flush_operations: required(int),
  invalid_unmap_operations: required(int),
  idle_time_ns: optional(int),
  account_invalid: required(bool),
  account_failed: required(bool),
  rd_latency_histogram: optional(HISTOGRAM),
  wr_latency_histogram: optional(HISTOGRAM),
  flush_latency_histogram: optional(HISTOGRAM),
  timed_stats: required(
    arrayOf(
      struct('BlockDeviceTimedStats', {
        interval_length: required(int),
        min_rd_latency_ns: required(int),
        max_rd_latency_ns: required(int),
        avg_rd_latency_ns: required(int),
        min_wr_latency_ns: required(int),
        max_wr_latency_ns: required(int),
        avg_wr_latency_ns: required(int),
        min_flush_latency_ns: required(int),
        max_flush_latency_ns: required(int),
        avg_flush_latency_ns: required(int),
        avg_rd_queue_depth: required(number),
        avg_wr_queue_depth: required(number),
      }),
    ),
  ),
});

const BlockStatsSpecificFile = struct('BlockStatsSpecificFile', {
  'discard-nb-ok': required(uint64),
  'discard-nb-failed': required(uint64),
  'discard-bytes-ok': required(uint64),
});

const BlockStatsSpecific = union(
  'BlockStatsSpecific',
  { driver: required(enumOf('BlockdevDriver', DRIVER_NAMES, OTHER_DRIVERS)) },
  'driver',
  { file: BlockStatsSpecificFile, host_device: BlockStatsSpecificFile },
);

const NodeStats = {
  device: optional(str),
  qdev: optional(str),
  'node-name': optional(str),
  stats: required(BlockDeviceStats),
  'driver-specific': optional(BlockStatsSpecific),
} as const;

export type BlockStats = StructOf<typeof NodeStats> & { parent?: BlockStats; backing?: BlockStats };

export const BlockStats: Type<BlockStats> = struct('BlockStats', {
  ...NodeStats,
  parent: optional(lazy('BlockStats', (): Type<BlockStats> => BlockStats)),
  backing: optional(lazy('BlockStats', (): Type<BlockStats> => BlockStats)),
});
