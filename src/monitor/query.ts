import type { BlockBackend } from '../block/backend.js';
import type { IntervalLatencies, IntervalStatistics } from '../block/interval-statistics.js';
import { newStatistics, type OperationStatistics } from '../block/operation-statistics.js';
import type { LatencyHistogram } from '../block/latency-histogram.js';
import { given } from '../base/given.js';
import type { DiscardCounts, Json } from '../block/driver.js';
import { NodeNames } from '../block/full-filename.js';
import type { Node } from '../block/node.js';
import type { GuestDevice } from '../attach/device.js';
import { queryQmpSchema } from '../wire/qmp/introspect.js';
import { VERSION } from '../wire/qmp/version.js';
import type { Parts } from './parts.js';
import { nodeInfo } from './node-info.js';
import { queryGraph } from './query-graph.js';

type JsonObject = { [key: string]: Json };

export function registerQueries(
  engine: Parts<'command' | 'graph' | 'jobs' | 'devices' | 'drives' | 'exports' | 'registry'>,
): void {
  const { graph, jobs } = engine;
  engine.command('query-block', () => queryBlock(engine));
  engine.command('query-named-block-nodes', ({ flat = false }) => {
    const names = new NodeNames({ showsFilters: true });
    return graph
      .listed()
      .reverse()
      .map((node) => nodeInfo(node, names, { flat }));
  });
  engine.command('query-block-jobs', (_, { hasExtensions }) =>
    jobs
      .list()
      .filter(({ isBlockJob }) => isBlockJob)
      .map((job) => job.blockJobInfo(hasExtensions)),
  );
  engine.command('query-jobs', (_, { hasExtensions }) =>
    jobs.list().map((job) => job.jobInfo(hasExtensions)),
  );
  engine.command('query-blockstats', ({ 'query-nodes': queryNodes }) =>
    queryNodes === true
      ? graph.listed().map((node) => nodeStatistics(node, undefined, false))
      : listDisks(engine).map(({ backend, device }) => ({
          ...(backend.root
            ? nodeStatistics(backend.node.skipImplicitFilters(), backend)
            : { stats: counters(0, backend) }),
          device: backend.name,
          ...(device && { qdev: device.qdevPath }),
        })),
  );
  engine.command('x-query-export-stats', () =>
    engine.exports.asked().map(({ backend, properties: { id } }) => ({ id, stats: counters(0, backend) })),
  );
  engine.command('query-qmp-schema', (_, caller) => queryQmpSchema(engine.registry, caller));
  engine.command('x-debug-query-block-graph', () => queryGraph(engine));
  engine.command('query-version', () => VERSION);
  engine.command('query-commands', (_, caller) =>
    engine.registry
      .names(caller)
      .sort()
      .map((name) => ({ name })),
  );
}

/** QAPI's BlockInfo of every drive and every disk of the guest. */
export function queryBlock(engine: Parts<'devices' | 'drives'>): JsonObject[] {
  const names = new NodeNames({ showsFilters: true });
  return listDisks(engine).map(({ backend, device }) =>
    given({
      'io-status': device?.tellsIoStatus ? device.ioStatus : undefined,
      device: backend.name,
      locked: false,
      removable: device?.disk.removable ?? true,
      inserted: backend.root && insertedInfo(backend, names),
      qdev: device?.qdevPath,
      tray_open: device?.disk.tray === true ? device.isTrayOpen : undefined,
      type: 'unknown',
    }),
  );
}

function insertedInfo(backend: BlockBackend, names: NodeNames): JsonObject {
  const { throttleGroup } = backend;
  const options = { hidesImplicit: true, writeCache: !backend.writethrough, throttleGroup };
  return nodeInfo(backend.node.skipImplicitFilters(), names, options);
}

/** A drive, a disk of the guest, or both in one. */
export interface Disk {
  backend: BlockBackend;
  device: GuestDevice | undefined;
}

/** In the order in which they came. */
export function listDisks({ devices, drives }: Parts<'devices' | 'drives'>): Disk[] {
  const disks = new Map<BlockBackend, GuestDevice | undefined>();
  for (const { backend } of drives.values()) disks.set(backend, undefined);
  for (const device of devices.values()) disks.set(device.backend, device);
  return [...disks]
    .map(([backend, device]) => ({ backend, device }))
    .sort((a, b) => a.backend.number - b.backend.number);
}

/** QAPI's BlockStats; counters are those of the device that uses the node. */
function nodeStatistics(node: Node, backend?: BlockBackend, withBacking = true): JsonObject {
  const storage = node.filtered;
  const below = node.isFilter || !withBacking ? undefined : node.children.get('backing');
  const stats: JsonObject = {
    'node-name': node.name,
    stats: counters(node.highestWrittenOffset, backend),
  };
  if (node.instance.discards)
    stats['driver-specific'] = discardInfo(node.driver.name, node.instance.discards);
  if (storage) stats['parent'] = nodeStatistics(storage.node);
  if (below) stats['backing'] = nodeStatistics(below.node.skipImplicitFilters());
  return stats;
}

/** QAPI's BlockStatsSpecific. */
function discardInfo(driver: string, { done, doneBytes, failed }: DiscardCounts): JsonObject {
  return { driver, 'discard-nb-ok': done, 'discard-nb-failed': failed, 'discard-bytes-ok': doneBytes };
}

/** QAPI's BlockDeviceStats, of who asks through a backend. */
function counters(highestOffset: number, backend: BlockBackend | undefined): JsonObject {
  if (!backend) return { ...OF_NOBODY, wr_highest_offset: highestOffset, timed_stats: [] };
  const { statistics, clock } = backend;
  const out: JsonObject = {
    wr_highest_offset: highestOffset,
    timed_stats: statistics.intervals.map((interval) => intervalInfo(interval, clock.nowMs())),
    account_invalid: statistics.accountsInvalid,
    account_failed: statistics.accountsFailed,
    ...given({ idle_time_ns: idleTimeNs(backend) }),
  };
  for (const { operation, names } of COUNTED) addCounters(out, names, statistics[operation]);
  for (const [prefix, operation] of HISTOGRAMS) {
    const { histogram } = statistics[operation];
    if (histogram) out[`${prefix}_latency_histogram`] = histogramInfo(histogram);
  }
  return out;
}

const HISTOGRAMS = [
  ['rd', 'read'],
  ['wr', 'write'],
  ['flush', 'flush'],
] as const;

function histogramInfo({ boundariesNs, bins }: LatencyHistogram): JsonObject {
  return { boundaries: [...boundariesNs] as Json[], bins: [...bins] };
}

/** Since its last request; undefined: there was none. */
export function idleTimeNs({ statistics, clock }: BlockBackend): number | undefined {
  const { lastAccessMs } = statistics;
  return lastAccessMs === undefined ? undefined : Math.round((clock.nowMs() - lastAccessMs) * 1e6);
}

/** QAPI's BlockDeviceTimedStats. */
function intervalInfo(interval: IntervalStatistics, nowMs: number): JsonObject {
  const out: JsonObject = { interval_length: interval.seconds };
  for (const [prefix, operation] of HISTOGRAMS) {
    const latencies = interval.look(operation, nowMs);
    const { count, sumMs, leastMs, mostMs } = latencies;
    out[`min_${prefix}_latency_ns`] = Math.round(leastMs * 1e6);
    out[`max_${prefix}_latency_ns`] = Math.round(mostMs * 1e6);
    out[`avg_${prefix}_latency_ns`] = count === 0 ? 0 : Math.round((sumMs / count) * 1e6);
    if (operation !== 'flush') out[`avg_${prefix}_queue_depth`] = queueDepth(latencies);
  }
  return out;
}

/** How many were under way at a time. */
function queueDepth({ sumMs, elapsedMs }: IntervalLatencies): number {
  return elapsedMs > 0 ? sumMs / elapsedMs : 0;
}

/** What is counted of an operation, by the names that QAPI has for it. */
const COUNTED = (
  [
    ['rd', 'read'],
    ['wr', 'write'],
    ['flush', 'flush'],
    ['unmap', 'unmap'],
  ] as const
).map(([prefix, operation]) => ({
  operation,
  names: {
    operations: `${prefix}_operations`,
    totalNs: `${prefix}_total_time_ns`,
    failed: `failed_${prefix}_operations`,
    invalid: `invalid_${prefix}_operations`,
    ...(prefix !== 'flush' && { bytes: `${prefix}_bytes`, merged: `${prefix}_merged` }),
  },
}));

type CounterNames = (typeof COUNTED)[number]['names'];

function addCounters(
  out: JsonObject,
  names: CounterNames,
  { bytes, operations, failed, invalid, totalMs }: OperationStatistics,
): void {
  out[names.operations] = operations;
  out[names.totalNs] = Math.round(totalMs * 1e6);
  out[names.failed] = failed;
  out[names.invalid] = invalid;
  if (names.bytes === undefined || names.merged === undefined) return;
  out[names.bytes] = bytes;
  out[names.merged] = 0;
}

/** All nodes have these alike: requests are counted of who asks. */
const OF_NOBODY = ofNobody();

function ofNobody(): JsonObject {
  const out: JsonObject = {};
  Object.assign(out, {
    wr_highest_offset: 0,
    timed_stats: [],
    account_invalid: false,
    account_failed: false,
  });
  for (const { names } of COUNTED) addCounters(out, names, newStatistics());
  // Made at once it is copied fast: sixty times as fast as what has grown.
  return Object.fromEntries(Object.entries(out));
}
