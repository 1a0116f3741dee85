import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { relative } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

/** x/A <-- y/B <-- z/C, each in a folder of its own, C opened by a name that is seen from here; virtio0's disk. */
async function chainInFolders(context: TestContext): Promise<{ bed: EngineBed; names: Names }> {
  const bed = new EngineBed(context);
  const here = (name: string): string => relative(process.cwd(), bed.path(name));
  for (const folder of ['x', 'y', 'z', 'w']) mkdirSync(bed.path(folder));
  for (const [name, backingFile] of [['x/A'], ['y/B', '../x/A'], ['z/C', '../y/B']] as const) {
    const backing = backingFile === undefined ? {} : { backingFile, backingFormat: 'qcow2' };
    await createImage(bed.engine.opener, bed.path(name), 'qcow2', { sizeBytes: DISK_BYTES, ...backing });
  }
  const file = { driver: 'file', filename: here('z/C') };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'C', file });
  await bed.device('C');
  await bed.guest('write -P 7 1M 1M');
  const below = bed.engine.graph.node('C').backingNode();
  const base = below?.backingNode();
  assert.ok(below && base);
  return { bed, names: { here, path: (name) => bed.path(name), B: below.name, A: base.name } };
}

/** What is to be opened again, and what is done to the chain before. */
const CASES: ReadonlyArray<readonly [what: string, top: string, work: (names: Names) => readonly Step[]]> = [
  ['snapshot', 'w/S', ({ here }) => [['blockdev-snapshot-sync', snapshot(here('w/S'))]]],
  ['snapshot, whole path', 'w/S', ({ path }) => [['blockdev-snapshot-sync', snapshot(path('w/S'))]]],
  ['snapshot beside the base', 'x/S', ({ here }) => [['blockdev-snapshot-sync', snapshot(here('x/S'))]]],
  ['mirror of the top', 'w/M', ({ here }) => [['drive-mirror', copy(here('w/M'), 'top')], 'ready', 'pivot']],
  [
    'mirror of what is new',
    'w/M',
    ({ here }) => [['drive-mirror', copy(here('w/M'), 'none')], 'ready', 'pivot'],
  ],
  ['backup of the top', 'w/M', ({ here }) => [['drive-backup', copy(here('w/M'), 'top')], 'done']],
  ['stream', 'z/C', ({ A }) => [['block-stream', { device: 'C', 'base-node': A, 'job-id': 'j' }], 'done']],
  ['commit', 'z/C', ({ B }) => [['block-commit', { device: 'C', 'top-node': B, 'job-id': 'j' }], 'done']],
];

type Step = 'ready' | 'pivot' | 'done' | readonly [string, JsonObject];

interface Names {
  here: (name: string) => string;
  path: (name: string) => string;
  /** Nodes. */
  B: string;
  A: string;
}

function snapshot(file: string): JsonObject {
  return { 'node-name': 'C', 'snapshot-file': file, 'snapshot-node-name': 'S' };
}

function copy(target: string, sync: string): JsonObject {
  return { device: 'C', target, sync, format: 'qcow2', 'job-id': 'j' };
}

async function step(bed: EngineBed, what: Step): Promise<void> {
  if (what === 'ready') await bed.event('BLOCK_JOB_READY', 'j');
  else if (what === 'done') assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
  else if (what === 'pivot') {
    await bed.execute('job-complete', { id: 'j' });
    await step(bed, 'done');
  } else await bed.execute(...what);
}

for (const [name, top, work] of CASES)
  test(`what a ${name} leaves in another folder can be opened again, by any name`, async (t) => {
    const { bed, names } = await chainInFolders(t);
    const { here } = names;
    for (const what of work(names)) await step(bed, what);
    const shown = [...bed.engine.graph.nodes.values()].map(({ filename }) => filename);
    assert.deepEqual(
      shown.filter((filename) => filename.startsWith('json:')),
      [],
    );
    await bed.engine.close();
    for (const filename of [here(top), bed.path(top)]) {
      const fresh = new EngineBed(t);
      await fresh.engine.addNode({ driver: 'qcow2', 'node-name': 'D', file: { driver: 'file', filename } });
      await fresh.device('D');
      await fresh.guest('read -P 7 1M 1M');
      await fresh.engine.close();
    }
  });
