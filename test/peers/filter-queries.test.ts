import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { run, scratch, skipWithout } from './daemon.js';
import { type Json, listOf, Pair } from './fuzz-pair.js';

const FILTERS = [
  'copy-on-read',
  'preallocate',
  'compress',
  'snapshot-access',
  'throttle',
  'copy-before-write',
];

/** What there may be below a filter. */
const BELOW: ReadonlyArray<readonly [what: string, options: Json]> = [
  ['nothing', { driver: 'null-co' }],
  ['a file', { driver: 'file', filename: 'a.raw' }],
  ['a raw image', { driver: 'raw', file: { driver: 'file', filename: 'a.raw' } }],
  ['a qcow2 image', { driver: 'qcow2', file: { driver: 'file', filename: 'a.qcow2' } }],
];

function described(node: Json | undefined): unknown {
  const image = { ...(node?.['image'] as Json), 'actual-size': 0 };
  return { file: node?.['file'], drv: node?.['drv'], ro: node?.['ro'], image };
}

test('queries say of filters what QEMU says, whatever is below them', { timeout: 120_000 }, async (t) => {
  if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img')) return;
  const pair = await Pair.start(t, join(scratch(t), 'pair'), (cwd) => {
    for (const format of ['raw', 'qcow2'])
      run(cwd, 'qemu-img', 'create', '-q', '-f', format, `a.${format}`, '1M');
  });
  await pair.execute('object-add', { 'qom-type': 'throttle-group', id: 'group' });
  for (const driver of FILTERS)
    for (const [what, file] of BELOW) {
      const more = {
        ...(driver === 'throttle' && { 'throttle-group': 'group' }),
        ...(driver === 'copy-before-write' && { target: { driver: 'null-co' } }),
      };
      const added = await pair.execute('blockdev-add', { driver, 'node-name': 'f', file, ...more });
      assert.deepEqual(added.ours, added.theirs, `${driver} over ${what}`);
      const { theirs, ours } = await pair.execute('query-named-block-nodes', { flat: true });
      const [found, expected] = [ours, theirs].map((answer) =>
        described(listOf(answer).find((node) => node['node-name'] === 'f')),
      );
      assert.deepEqual(found, expected, `${driver} over ${what}`);
      await pair.execute('blockdev-del', { 'node-name': 'f' });
    }
  await pair.end();
});
