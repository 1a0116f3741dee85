import type { BlockBackend } from '../block/backend.js';
import type { OperationStatistics } from '../block/operation-statistics.js';
import type { LatencyHistogram } from '../block/latency-histogram.js';
import { given } from '../base/given.js';
import type { Json } from '../block/driver.js';
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
  engine: Parts<'command' | 'graph' | 'jobs' | 'devices' | 'drives' | 'registry'>,
): void {
  const { graph, jobs } = engine;
  engine.command('query-block', () => queryBlock(engine));
  engine.command('query-named-block-nodes', ({ flat = false }) => {
    const names = new NodeNames();
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
  const names = new NodeNames();
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
  if (storage) stats['parent'] = nodeStatistics(storage.node);
  if (below) stats['backing'] = nodeStatistics(below.node.skipImplicitFilters());
  return stats;
}

function counters(highestOffset: number, backend: BlockBackend | undefined): JsonObject {
  const out: JsonObject = {
    wr_highest_offset: highestOffset,
    timed_stats: [],
    account_invalid: backend !== undefined,
    account_failed: backend !== undefined,
  };
  for (const [prefix, operation] of [
    ['rd', 'read'],
    ['wr', 'write'],
    ['flush', 'flush'],
    ['unmap', 'unmap'],
  ] as const)
    Object.assign(out, operationCounters(prefix, backend?.statistics[operation]));
  for (const [prefix, operation] of HISTOGRAMS) {
    const histogram = backend?.statistics[operation].histogram;
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

const NOTHING: OperationStatistics = { bytes: 0, operations: 0, failed: 0, totalMs: 0 };

function operationCounters(prefix: string, { bytes, operations, failed, totalMs } = NOTHING): JsonObject {
  const counters: JsonObject = {
    [`${prefix}_operations`]: operations,
    [`${prefix}_total_time_ns`]: Math.round(totalMs * 1e6),
    [`failed_${prefix}_operations`]: failed,
    [`invalid_${prefix}_operations`]: 0,
  };
  if (prefix === 'flush') return counters;
  return { ...counters, [`${prefix}_bytes`]: bytes, [`${prefix}_merged`]: 0 };
}
