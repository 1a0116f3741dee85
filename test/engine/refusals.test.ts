import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

/** Command, arguments and the words in which a real QEMU 7.2 refuses them, on the chain A, B, C. */
const REFUSALS: ReadonlyArray<readonly [string, JsonObject, string]> = [
  [
    'block-stream',
    { device: 'C', 'job-id': 'j', 'backing-file': 'x' },
    'backing file specified, but streaming the entire chain',
  ],
  ['block-stream', { device: 'nope', 'job-id': 'j' }, "Cannot find device='nope' nor node-name='nope'"],
  ['block-stream', { device: 'C', 'job-id': 'j', base: 'zzz' }, "Can't find 'zzz' in the backing chain"],
  [
    'block-stream',
    { device: 'C', 'job-id': 'j', 'base-node': 'C' },
    "Node 'C' is not a backing image of 'C'",
  ],
  ['block-stream', { device: 'C' }, "Invalid job ID ''"],
  ['block-commit', { device: 'nope', 'job-id': 'j' }, "Device 'nope' not found"],
  ['block-commit', { device: 'B', 'job-id': 'j' }, 'Need a root block node'],
  ['block-commit', { device: 'C', 'job-id': 'j', top: 'zzz' }, 'Top image file zzz not found'],
  [
    'block-commit',
    { device: 'C', 'job-id': 'j', 'backing-file': 'x' },
    "'backing-file' specified, but 'top' is the active layer",
  ],
  ['block-commit', { device: 'spare', 'job-id': 'j' }, 'cannot commit an image into itself'],
  [
    'blockdev-mirror',
    { device: 'C', 'job-id': 'j', target: 'C', sync: 'full' },
    "Can't mirror node into itself",
  ],
  [
    'blockdev-mirror',
    { device: 'C', 'job-id': 'j', target: 'B', sync: 'full' },
    "Node 'B' is busy: node is used as backing hd of 'C'",
  ],
  [
    'blockdev-mirror',
    { device: 'C', 'job-id': 'j', target: 'spare', sync: 'full', replaces: 'x' },
    "Failed to find node with node-name='x'",
  ],
  [
    'blockdev-mirror',
    { device: 'C', 'job-id': 'j', target: 'same', sync: 'full', replaces: 'B' },
    "Node 'B' is busy: node is used as backing hd of 'C'",
  ],
  [
    'blockdev-mirror',
    { device: 'C', 'job-id': 'j', target: 'same', sync: 'full', replaces: 'same' },
    "Cannot replace 'same' by a node mirrored from 'C', because it cannot be guaranteed that doing so would not lead " +
      'to an abrupt change of visible data',
  ],
  [
    'drive-mirror',
    { device: 'C', 'job-id': 'j', target: 'e', sync: 'full', format: 'nope' },
    "Unknown file format 'nope'",
  ],
  [
    'blockdev-backup',
    { device: 'C', 'job-id': 'j', target: 'spare', sync: 'full' },
    'Source and target image have different sizes',
  ],
  [
    'blockdev-backup',
    { device: 'C', 'job-id': 'j', target: 'spare', sync: 'incremental' },
    "must provide a valid bitmap name for 'incremental' sync mode",
  ],
  [
    'blockdev-snapshot',
    { node: 'free', overlay: 'free' },
    "Making 'free' a backing child of 'free' would create a cycle",
  ],
  [
    'blockdev-mirror',
    { device: 'C', 'job-id': 'j', target: 'B', sync: 'incremental', granularity: 1000 },
    "Parameter 'granularity' expects a power of 2",
  ],
  [
    'blockdev-mirror',
    { device: 'C', 'job-id': 'j', target: 'B', sync: 'incremental' },
    "Node 'B' is busy: node is used as backing hd of 'C'",
  ],
  [
    'blockdev-backup',
    { device: 'C', 'job-id': 'j', target: 'C', sync: 'incremental' },
    "must provide a valid bitmap name for 'incremental' sync mode",
  ],
  [
    'blockdev-backup',
    { device: 'C', 'job-id': 'j', target: 'fixed', sync: 'full' },
    'Could not create node: Block node is read-only',
  ],
  ['blockdev-snapshot', { node: 'C', overlay: 'B' }, 'The overlay is already in use'],
  ['blockdev-snapshot', { node: 'C', overlay: 'spare' }, 'The overlay does not support backing images'],
  ['blockdev-snapshot-sync', { 'node-name': 'C', 'snapshot-file': 'x' }, 'New overlay node-name missing'],
  [
    'blockdev-snapshot-sync',
    { 'node-name': 'C', 'snapshot-file': 'x', 'snapshot-node-name': 'A' },
    'New overlay node-name already in use',
  ],
  [
    'blockdev-add',
    { driver: 'raw', 'node-name': 'x', file: 'nope' },
    "Cannot find device='nope' nor node-name='nope'",
  ],
  ['blockdev-add', { driver: 'null-co' }, "'node-name' must be specified for the root node"],
  ['block_resize', { 'node-name': 'B', size: 2 * DISK_BYTES }, "Device '(null)' is in use"],
  ['block_resize', { device: 'C', size: 2 * DISK_BYTES }, "Cannot find device='C' nor node-name=''"],
  ['block_resize', { 'node-name': 'fixed', size: 2 * DISK_BYTES }, 'Image is read-only'],
  [
    'blockdev-snapshot-sync',
    { device: 'C', 'snapshot-file': 'x' },
    "Cannot find device='C' nor node-name=''",
  ],
  ['nbd-server-add', { device: 'C' }, 'NBD server not running'],
  [
    'nbd-server-start',
    { addr: { type: 'unix', data: { path: 'no/such/sock' } } },
    'Failed to bind socket to no/such/sock: No such file or directory',
  ],
  [
    'change-backing-file',
    { device: 'C', 'image-node-name': 'free', 'backing-file': 'x' },
    'not allowing backing file change on an image without a backing file',
  ],
  [
    'change-backing-file',
    { device: 'C', 'image-node-name': 'filter', 'backing-file': 'x' },
    "'C' and image file are not in the same chain",
  ],
  ['job-cancel', { id: 'j' }, 'Job not found'],
  ['block-job-cancel', { device: 'j' }, "Block job 'j' not found"],
];

test('what is wrong is refused in the words of QEMU, and nothing has changed or been announced', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  await bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 'spare', size: 1024 * 1024 });
  await bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 'same', size: DISK_BYTES });
  const file = { driver: 'null-co', size: DISK_BYTES };
  await bed.execute('blockdev-add', { driver: 'raw', 'node-name': 'fixed', 'read-only': true, file });
  await bed.image('free');
  await bed.execute('blockdev-add', { driver: 'copy-on-read', 'node-name': 'filter', file });
  const before = JSON.stringify(await bed.execute('x-debug-query-block-graph'));
  for (const [command, args, words] of REFUSALS)
    assert.equal(await bed.refusal(command, args), words, command);
  assert.equal(JSON.stringify(await bed.execute('x-debug-query-block-graph')), before);
  assert.deepEqual(bed.events, []);
});

test('a commit from a layer that somebody writes to has no header to name another file', async (t) => {
  const bed = new EngineBed(t);
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
  await bed.image('A');
  await bed.image('B', { backing: 'A' });
  await bed.image('C', { backing: 'B' });
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'B', writable: true });
  assert.equal(
    await bed.refusal('block-commit', { device: 'C', 'job-id': 'j', 'top-node': 'B', 'backing-file': 'x' }),
    "'backing-file' specified, but 'top' has a writer on it",
  );
});

test('what livedisk does not have is refused by its name', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const later = /is not supported by livedisk yet/;
  assert.match(await bed.refusal('blockdev-add', { driver: 'rbd', 'node-name': 'x', file: 'A' }), later);
  const tls = { addr: { type: 'unix', data: { path: 'x' } }, 'tls-creds': 'c' };
  assert.equal(await bed.refusal('nbd-server-start', tls), "No TLS credentials with id 'c'");
  await bed.execute('object-add', { 'qom-type': 'tls-creds-anon', id: 'c', endpoint: 'server' });
  assert.equal(
    await bed.refusal('nbd-server-start', tls),
    "TLS credentials 'c' without certificates or keys are not supported by livedisk",
  );
  writeFileSync(bed.path('keys.psk'), 'user:00112233445566778899aabbccddeeff\n');
  const psk = { 'qom-type': 'tls-creds-psk', dir: bed.path('.'), endpoint: 'server' };
  await bed.execute('object-add', { ...psk, id: 'p', priority: 'NORMAL' });
  assert.equal(
    await bed.refusal('nbd-server-start', { ...tls, 'tls-creds': 'p' }),
    "'priority' of TLS credentials is not supported by livedisk",
  );
  assert.match(
    await bed.refusal('object-add', { 'qom-type': 'authz-pam', id: 'a', service: 's' }),
    /authz-pam.* is not supported by livedisk/,
  );
});
