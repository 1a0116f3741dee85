import assert from 'node:assert/strict';
import { isDeepStrictEqual } from 'node:util';
import { type Answer, type Json, listOf } from './fuzz-pair.js';

/** Names in messages that each side generates, and what of a conflict depends on how jobs hold their nodes. */
function inCommon(desc: string): string {
  return (
    desc
      .replace(/#block\d+/g, '#block')
      .replace(/(Permission conflict on node '[^']*': permissions ')[^']*(' are both required by ).*/, '$1$2')
      .replace(/^Could not (create|replace) node: (?=Permission conflict|Block node is read-only)/, '')
      // Of several locks that others have, which is told.
      .replace(/"(write|resize|consistent read)" lock/, '"some" lock')
  );
}

/** An answer, as far as it must be the same. */
export function comparable({ error, return: value }: Answer): Json {
  return error ? { class: error.class, desc: inCommon(error.desc) } : { value };
}

/** Without the names of files: QEMU makes json: names where a backing file is not the one in the header. */
export function describeNode(node: Json): unknown {
  const name = String(node['node-name']).replace(/^#block\d+/, '#block');
  const { 'virtual-size': size, 'cluster-size': cluster } = node['image'] as Json;
  const { drv, ro, cache, 'dirty-bitmaps': bitmaps } = node;
  // QEMU holds what some of its filters show as a backing file, has them writable whatever they show, and tells the size
  // that they had at first, also when an overlay of another size has come below them.
  if (/top|copy/.test(String(drv))) return { name, drv };
  // A job's own bitmaps have no name, and how far a slow job is shows in how much those of its target have noted.
  const named = (Array.isArray(bitmaps) ? (bitmaps as Json[]) : [])
    .filter((bitmap) => 'name' in bitmap)
    .map((bitmap) => ({ ...bitmap, count: undefined }));
  return { name, drv, ro, size: drv === 'file' ? 0 : size, cluster, cache, named };
}

/** Fails with both lists when they differ. */
export function assertSame(ours: readonly unknown[], theirs: readonly unknown[], what: string): void {
  const lines = (list: readonly unknown[]): string => list.map((item) => JSON.stringify(item)).join('\n');
  if (lines(ours) !== lines(theirs)) assert.fail(`${what}\nours:\n${lines(ours)}\ntheirs:\n${lines(theirs)}`);
}

/** A job of query-block-jobs, as far as it must be the same. */
export function describeJob(job: Json): unknown {
  const { type, device, paused, ready, status, speed, error, 'io-status': io } = job;
  const { 'auto-finalize': finalize, 'auto-dismiss': dismiss } = job;
  // QEMU tells jobs as paused while it drains something for a moment; those that somebody has paused have a status for it.
  const rests = ['paused', 'standby'].includes(status as string) && paused;
  return { type, device, rests, ready, status, speed, error, io, finalize, dismiss };
}

/** Of a node that a job has made, the name is each side's own. */
export function describeExport({ 'node-name': name, ...rest }: Json): unknown {
  return { ...rest, name: String(name).replace(/^#block\d+/, '#block') };
}

/** Each of a list that was answered. */
export function describeAll(answer: Answer, describe: (item: Json) => unknown): unknown[] {
  return listOf(answer).map(describe);
}

/** Of events: a job that is refused late has been created on one side. */
export function leaveOutRefused(events: Json): void {
  for (const [id, told] of Object.entries(events))
    if (isDeepStrictEqual(told, ['created', 'null'])) delete events[id];
}
