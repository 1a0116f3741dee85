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

const QCOW2 = { driver: 'qcow2', file: { driver: 'file', filename: 'a.qcow2' } };
/** Its name is not a plain one. */
const OVER_ANOTHER = { ...QCOW2, backing: { driver: 'null-co' } };

/** What there may be below a filter. */
const BELOW: ReadonlyArray<readonly [what: string, options: Json]> = [
  ['nothing', { driver: 'null-co' }],
  ['a file', { driver: 'file', filename: 'a.raw' }],
  ['a raw image', { driver: 'raw', file: { driver: 'file', filename: 'a.raw' } }],
  ['a qcow2 image', QCOW2],
  ['an image over another one than it names', OVER_ANOTHER],
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

/** Until neither side has a job: what has been cancelled is in the way of the next one for a moment. */
async function untilIdle(pair: Pair): Promise<void> {
  for (;;) {
    const { theirs, ours } = await pair.execute('query-jobs');
    if (listOf(theirs).length === 0 && listOf(ours).length === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test(
  'filters of jobs have the names of what they show, whoever has named them',
  { timeout: 60_000 },
  async (t) => {
    if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img')) return;
    const pair = await Pair.start(t, join(scratch(t), 'pair'), (cwd) => {
      for (const name of ['a', 'b'])
        run(cwd, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, '1M');
    });
    await pair.execute('blockdev-add', { ...OVER_ANOTHER, 'node-name': 'disk' });
    const target = { driver: 'qcow2', file: { driver: 'file', filename: 'b.qcow2' } };
    await pair.execute('blockdev-add', { ...target, 'node-name': 'target' });
    const job = { device: 'disk', target: 'target', sync: 'none', 'job-id': 'j' };
    for (const command of ['blockdev-mirror', 'blockdev-backup'])
      for (const named of [{}, { 'filter-node-name': 'f' }]) {
        await pair.execute(command, { ...job, ...named });
        const { theirs, ours } = await pair.execute('query-named-block-nodes', {});
        const [found, expected] = [ours, theirs].map((answer) =>
          listOf(answer)
            .map((node) => [node['drv'], node['file']].join(' '))
            .sort(),
        );
        assert.deepEqual(found, expected, `${command} ${JSON.stringify(named)}`);
        await pair.execute('job-cancel', { id: 'j' });
        await untilIdle(pair);
      }
    await pair.end();
  },
);
