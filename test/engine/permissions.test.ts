import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

/** [A] <-- [B] <-- [C], and E beside it; no device. */
async function bedOf(context: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(context);
  await bed.image('A');
  for (const [backing, name] of ['AB', 'BC'].map((pair) => pair.split('') as [string, string])) {
    const filename = bed.path(`${name}.qcow2`);
    const backingFile = bed.path(`${backing}.qcow2`);
    await createImage(bed.engine.opener, filename, 'qcow2', {
      ...{ sizeBytes: DISK_BYTES, backingFile, backingFormat: 'qcow2' },
    });
    const file = { driver: 'file', filename };
    await bed.engine.addNode({ driver: 'qcow2', 'node-name': name, file, backing });
  }
  await bed.image('E');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
  return bed;
}

const exported = (node: string, writable = false): JsonObject => ({
  ...{ type: 'nbd', id: node.toLowerCase(), 'node-name': node, name: node, writable },
});

const conflict = (node: string, what: string, wants: string, denies: string): string =>
  `Permission conflict on node '${node}': permissions '${what}' are both required by ${wants} and unshared by ${denies}.`;
const use = (user: string, node: string, role = 'root'): string =>
  `${user} (uses node '${node}' as '${role}' child)`;
const SOMEBODY = 'an unnamed block device';

async function ready(bed: EngineBed, command: string, args: JsonObject): Promise<void> {
  await bed.execute(command, { 'job-id': 'j', ...args });
  await bed.event('BLOCK_JOB_READY', 'j');
}

test("nobody reads a mirror's target before the mirror is done", async (t) => {
  const bed = await bedOf(t);
  const text = conflict('E', 'consistent read', use(SOMEBODY, 'E'), use(SOMEBODY, 'E'));
  await bed.execute('block-export-add', exported('E'));
  const mirror = { device: 'C', target: 'E', sync: 'full' };
  assert.equal(await bed.refusal('blockdev-mirror', { 'job-id': 'j', ...mirror }), text);
  await bed.execute('block-export-del', { id: 'e' });
  await ready(bed, 'blockdev-mirror', mirror);
  assert.equal(await bed.refusal('block-export-add', exported('E')), text);
  const job = bed.engine.jobs.find('j');
  await bed.execute('job-complete', { id: 'j' });
  await job?.concluded;
  await bed.execute('block-export-add', exported('E'));
});

test('nobody reads a layer that a commit drops, but who reads the base goes on', async (t) => {
  const bed = await bedOf(t);
  await bed.execute('block-export-add', exported('A'));
  const commit = { device: 'C', 'base-node': 'A' };
  await ready(bed, 'block-commit', commit);
  const held = use("commit job 'j'", 'B', 'intermediate node');
  assert.equal(
    await bed.refusal('block-export-add', exported('B')),
    conflict('B', 'consistent read', use(SOMEBODY, 'B'), held),
  );
  const job = bed.engine.jobs.find('j');
  await bed.execute('job-cancel', { id: 'j' });
  await job?.concluded;
  await bed.execute('block-export-add', exported('B'));
  const refused = use("commit job 'j'", 'B', 'intermediate node');
  assert.equal(
    await bed.refusal('block-commit', { 'job-id': 'j', ...commit }),
    conflict('B', 'consistent read', use(SOMEBODY, 'B'), refused),
  );
});

test('a base that somebody reads is committed into unless it must grow', async (t) => {
  const bed = await bedOf(t);
  await bed.execute('block-export-add', exported('A'));
  const below = { 'job-id': 'j', device: 'C', 'top-node': 'B', 'base-node': 'A' };
  await bed.execute('block-commit', below);
  await bed.engine.jobs.find('j')?.concluded;
  assert.equal(bed.engine.graph.node('C').backingNode()?.name, 'A');
  await bed.execute('block_resize', { 'node-name': 'C', size: 16 * 1024 * 1024 });
  assert.equal(
    await bed.refusal('block-commit', { 'job-id': 'j', device: 'C' }),
    conflict('A', 'resize', use(SOMEBODY, 'A'), use(SOMEBODY, 'A')),
  );
});

test('nobody writes below a stream, and none begins across the filter of another job', async (t) => {
  const bed = await bedOf(t);
  const waits = { 'auto-finalize': false };
  await bed.execute('block-stream', { 'job-id': 'j', device: 'B', ...waits });
  const held = use("stream job 'j'", 'A', 'intermediate node');
  assert.equal(
    await bed.refusal('block-export-add', exported('A', true)),
    conflict('A', 'write', use(SOMEBODY, 'A'), held),
  );
  const above = { 'job-id': 'k', device: 'C' };
  const busy = /^Node '#block\d+' is busy: block device is in use by block job: stream$/;
  assert.match(await bed.refusal('block-stream', { ...above, 'base-node': 'B' }), busy);
  assert.match(await bed.refusal('block-stream', above), busy);
  await bed.execute('block-stream', { ...above, bottom: 'C' });
  await bed.engine.jobs.find('k')?.concluded;
});

test('what a backup writes is read by others, and resized by nobody', async (t) => {
  const bed = await bedOf(t);
  await bed.execute('blockdev-backup', { 'job-id': 'j', device: 'C', target: 'E', sync: 'none' });
  await bed.execute('block-export-add', exported('E'));
  assert.match(
    await bed.refusal('block_resize', { 'node-name': 'E', size: 16 * 1024 * 1024 }),
    /^Device '\(null\)' is in use$/,
  );
  assert.equal(await bed.refusal('blockdev-del', { 'node-name': 'E' }), 'Node E is in use');
});

test("a layer below which a backup's target lies is not put below that target", async (t) => {
  const bed = await bedOf(t);
  await bed.execute('blockdev-backup', { 'job-id': 'j', device: 'B', target: 'E', sync: 'none' });
  assert.equal(
    await bed.refusal('blockdev-snapshot', { node: 'C', overlay: 'E' }),
    "Making 'C' a backing child of 'E' would create a cycle",
  );
});
