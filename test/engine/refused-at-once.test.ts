import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { findBlkdebug } from '../../src/drivers/blkdebug/index.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

type Arguments = JsonObject;
type Refusal = readonly [command: string, args: Arguments, desc: RegExp];

const backup = (more: Arguments): Arguments => ({ device: 'D', target: 'T', sync: 'full', ...more });
const action = (type: string, data: Arguments): Arguments => ({ type, data });
const transaction = (...actions: Arguments[]): Arguments => ({ actions });

const UNKNOWN = /Cannot find device='' nor node-name='none'/;
const ADD = action('block-dirty-bitmap-add', { node: 'D', name: 'new' });

/** Commands with arguments that are wrong, and what QEMU says. */
const REFUSALS: readonly Refusal[] = [
  ['blockdev-backup', backup({ device: 'none' }), /Cannot find device='none' nor node-name='none'/],
  ['blockdev-backup', backup({ target: 'none' }), /Cannot find device='none' nor node-name='none'/],
  ['blockdev-backup', backup({ target: 'D' }), /Source and target cannot be the same/],
  ['blockdev-backup', backup({ sync: 'incremental' }), /must provide a valid bitmap name/],
  ['blockdev-backup', backup({ sync: 'bitmap', bitmap: 'none' }), /Bitmap 'none' could not be found/],
  ['blockdev-backup', backup({ bitmap: 'b' }), /Bitmap sync mode must be given/],
  ['blockdev-backup', backup({ 'job-id': 'j', speed: -1 }), /'speed' expects a non-negative value/],
  ['blockdev-backup', backup({ 'job-id': '1x' }), /Invalid job ID '1x'/],
  ['blockdev-backup', backup({ 'filter-node-name': 'D' }), /duplicate|Duplicate|already/],
  ['drive-backup', { device: 'none', target: 'x', sync: 'full' }, /Cannot find device='none'/],
  [
    'drive-backup',
    { device: 'D', target: 'x', sync: 'bitmap', bitmap: 'none', 'bitmap-mode': 'never' },
    /'none'/,
  ],
  ['blockdev-snapshot-sync', { 'node-name': 'none', 'snapshot-file': 'x' }, UNKNOWN],
  ['blockdev-snapshot-sync', { 'node-name': 'D', 'snapshot-file': 'x' }, /New overlay node-name missing/],
  ['blockdev-snapshot', { node: 'none', overlay: 'T' }, /Cannot find device='none'/],
  ['blockdev-snapshot', { node: 'D', overlay: 'none' }, /Cannot find device='none'/],
  ['blockdev-snapshot', { node: 'D', overlay: 'T' }, /does not support backing images/],
  [
    'blockdev-reopen',
    { options: [{ driver: 'raw', 'node-name': 'D', file: 'none' }] },
    /Cannot find device='' nor node-name='none'/,
  ],
  ['transaction', transaction(action('blockdev-backup', backup({ device: 'none' }))), /'none'/],
  [
    'transaction',
    transaction(action('block-dirty-bitmap-remove', { node: 'D', name: 'none' })),
    /'none' not found/,
  ],
  ['transaction', transaction(ADD, action('blockdev-backup', backup({ device: 'none' }))), /'none'/],
  [
    'transaction',
    transaction(ADD, action('blockdev-snapshot-sync', { 'node-name': 'none', 'snapshot-file': 'x' })),
    UNKNOWN,
  ],
  [
    'transaction',
    transaction(
      action('blockdev-backup', backup({ 'job-id': 'j' })),
      action('block-dirty-bitmap-clear', { node: 'none', name: 'b' }),
    ),
    /Node 'none' not found/,
  ],
];

test('what is wrong is told though a write of the guest hangs', { timeout: 120_000 }, async (t) => {
  const bed = new EngineBed(t);
  for (const name of ['D.raw', 'T.raw']) writeFileSync(bed.path(name), Buffer.alloc(DISK_BYTES));
  await bed.engine.addNode({
    driver: 'raw',
    'node-name': 'D',
    file: {
      driver: 'blkdebug',
      image: { driver: 'file', filename: bed.path('D.raw') },
    },
  });
  await bed.engine.addNode({
    driver: 'raw',
    'node-name': 'T',
    file: { driver: 'file', filename: bed.path('T.raw') },
  });
  await bed.device('D');
  await bed.execute('block-dirty-bitmap-add', { node: 'D', name: 'b' });
  const [device] = bed.engine.devices.values();
  assert.ok(device);
  const blkdebug = findBlkdebug(bed.engine.graph.node('D'));
  assert.ok(blkdebug);
  blkdebug.breakAt('pwritev', 'hangs');
  const written = device.backend.write(0, Buffer.alloc(4096, 1));
  await blkdebug.whenSuspended('hangs');
  const events = bed.events.length;
  await Promise.all(
    REFUSALS.map(async ([command, args, desc]) => {
      const before = Date.now();
      assert.match(await bed.refusal(command, args), desc, `${command} ${JSON.stringify(args)}`);
      assert.ok(Date.now() - before < 60_000, command);
    }),
  );
  // Nothing was begun, and nothing is left.
  assert.deepEqual(bed.events.slice(events), []);
  const { graph } = bed.engine;
  assert.deepEqual(
    graph.node('D').dirtyBitmaps.map(({ name }) => name),
    ['b'],
  );
  assert.equal(graph.node('D').quiesceCount, 0);
  blkdebug.resume('hangs');
  await written;
});
