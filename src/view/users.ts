import type { JsonObject, JsonValue } from '../schema/types.js';
import { type Answers, numberOf, objectOf, objectsOf, textOf } from './answers.js';
import { readHistogram } from './histogram.js';
import type { Operations, Statistics, User } from './model.js';
import type { NodeGraph } from './nodes.js';

/** Devices, drives and exports, and backends that nobody speaks for; those of jobs are the jobs'. */
export function readUsers(answers: Answers, graph: NodeGraph): User[] {
  const devices = objectsOf(answers['query-block']).map((info, i) => toDevice(info, i, answers, graph));
  const exports = objectsOf(answers['query-block-exports']).map((info) =>
    toExport(info, objectsOf(answers['x-query-export-stats'])),
  );
  return [...devices, ...exports, ...othersOf(graph, exports)];
}

function toDevice(info: JsonObject, index: number, answers: Answers, graph: NodeGraph): User {
  const qdev = textOf(info['qdev']);
  const drive = textOf(info['device']) ?? '';
  const name = qdev ?? drive;
  const inserted = objectOf(info['inserted']);
  // The graph knows of filters that query-block hides.
  const seen = graph.parents.find(
    (parent) => parent.type === 'block-backend' && parent.name !== '' && [qdev, drive].includes(parent.name),
  )?.child;
  const imageId = seen ?? textOf(inserted['node-name']);
  const ioStatus = textOf(info['io-status']);
  const statistics = statisticsOf(answers['query-blockstats'], index, { qdev, drive });
  return {
    id: `device:${name === '' ? index : name}`,
    kind: qdev === undefined ? 'drive' : 'device',
    label: qdev === undefined ? drive : deviceLabel(qdev),
    ...(imageId !== undefined && { imageId }),
    ...(drive !== '' && { deviceName: drive }),
    ...(qdev !== undefined && { qdev }),
    ...(ioStatus !== undefined && { ioStatus }),
    ...(imageId !== undefined && { isWritable: inserted['ro'] !== true }),
    ...(statistics && { statistics }),
  };
}

/** A path of the object tree, `/machine/peripheral/virtio0/virtio-backend`, or an id. */
function deviceLabel(qdev: string): string {
  return /^\/machine\/peripheral(?:-anon)?\/([^/]+)/.exec(qdev)?.[1] ?? qdev;
}

function toExport(info: JsonObject, counted: readonly JsonObject[]): User {
  const id = textOf(info['id']) ?? '';
  const imageId = textOf(info['node-name']);
  const exportType = textOf(info['type']);
  const entry = counted.find((one) => one['id'] === id);
  return {
    ...{ id: `export:${id}`, kind: 'export', label: id },
    ...(exportType !== undefined && { exportType }),
    ...(imageId !== undefined && { imageId }),
    ...(entry && { statistics: readStatistics(objectOf(entry['stats'])) }),
  };
}

/** Backends without a name are exports', jobs', or somebody's of whom no query tells. */
function othersOf({ parents }: NodeGraph, exports: readonly User[]): User[] {
  const left = new Map<string, number>();
  const take = (id: string | undefined, count: number): void => {
    if (id !== undefined) left.set(id, (left.get(id) ?? 0) + count);
  };
  const ofJobs = new Set(parents.filter(({ type }) => type === 'block-job').map(({ child }) => child));
  for (const { type, name, child } of parents)
    if (type === 'block-backend' && name === '' && !ofJobs.has(child)) take(child, 1);
  for (const { imageId } of exports) take(imageId, -1);
  return [...left].flatMap(([imageId, count]) =>
    count > 0 ? [{ id: `other:${imageId}`, kind: 'other' as const, label: 'another user', imageId }] : [],
  );
}

/** query-blockstats has an entry for each of query-block's, in its order. */
function statisticsOf(
  answer: JsonValue | undefined,
  index: number,
  { qdev, drive }: { qdev: string | undefined; drive: string },
): Statistics | undefined {
  const entries = objectsOf(answer);
  const entry =
    entries.find((one) => (qdev !== undefined ? one['qdev'] === qdev : one['device'] === drive)) ??
    entries[index];
  return entry && readStatistics(objectOf(entry['stats']));
}

function readStatistics(stats: JsonObject): Statistics {
  return {
    read: operationsOf(stats, 'rd'),
    write: operationsOf(stats, 'wr'),
    flush: operationsOf(stats, 'flush'),
    discard: operationsOf(stats, 'unmap'),
  };
}

function operationsOf(stats: JsonObject, prefix: string): Operations {
  const count = (key: string): number => numberOf(stats[key]) ?? 0;
  const latencies = readHistogram(stats[`${prefix}_latency_histogram`]);
  return {
    count: count(`${prefix}_operations`),
    bytes: count(`${prefix}_bytes`),
    failed: count(`failed_${prefix}_operations`),
    totalMs: count(`${prefix}_total_time_ns`) / 1e6,
    ...(latencies && { latencies }),
  };
}
