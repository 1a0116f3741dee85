import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { run, scratch, skipWithout } from './daemon.js';
import { type Answer, type Json, Pair } from './fuzz-pair.js';

const ANOTHER = { driver: 'null-co', size: 1048576, 'read-zeroes': true };
const MERGE = 'block-dirty-bitmap-merge';
const SHA = 'x-debug-block-dirty-bitmap-sha256';
const OWN_FORM = { node: 'n', target: 'a' };

/** Nodes n and m of 1 MiB, big of 2; r and q above others; bitmaps of several granularities. */
const SETUP: ReadonlyArray<readonly [string, Json]> = [
  ...['n', 'm', 'r-file'].map((name) => ['blockdev-add', { ...ANOTHER, 'node-name': name }] as const),
  ['blockdev-add', { ...ANOTHER, 'node-name': 'big', size: 2097152 }],
  ['blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'r-file' }],
  ['blockdev-add', { driver: 'qcow2', 'node-name': 'q', file: { driver: 'file', filename: 'q.qcow2' } }],
  ['object-add', { 'qom-type': 'iothread', id: 'io' }],
  ['object-add', { 'qom-type': 'secret', id: 'secret', data: 'x' }],
  ['block-dirty-bitmap-add', { node: 'n', name: 'a' }],
  ['block-dirty-bitmap-add', { node: 'n', name: 'b', granularity: 512 }],
  ['block-dirty-bitmap-add', { node: 'm', name: 'c', granularity: 131072 }],
  ['block-dirty-bitmap-add', { node: 'q', name: 'q', granularity: 4096 }],
  ['block-dirty-bitmap-add', { node: 'q', name: 'merged', granularity: 65536, disabled: true }],
  ['block-dirty-bitmap-add', { node: 'q', name: 'finer', granularity: 512, disabled: true }],
  ['block-dirty-bitmap-add', { node: 'big', name: 'd' }],
  ['nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd.sock' } } }],
  ['block-export-add', { type: 'nbd', id: 'e', 'node-name': 'q', writable: true }],
];

const IO = { 'node-name': 'm' };
const Q2 = { driver: 'qcow2', file: { driver: 'file', filename: 'q2.qcow2' } };
const AMEND = { 'job-id': 'k', 'node-name': 'q', options: { driver: 'qcow2' } };

const COMMANDS: ReadonlyArray<readonly [string, Json]> = [
  ...['remove', 'clear', 'enable', 'disable', 'merge'].map(
    (verb) =>
      [`block-dirty-bitmap-${verb}`, { node: 'none', name: 'x', target: 'x', bitmaps: ['x'] }] as const,
  ),
  ...[['b'], ['a'], ['none'], [{ node: 'm', name: 'c' }, 'b'], [{ node: 'm', name: 'none' }]].map(
    (bitmaps) => [MERGE, { ...OWN_FORM, bitmaps }] as const,
  ),
  ...[[{ node: 'none', name: 'c' }], ['b', { node: 'big', name: 'd' }], [5], [{ node: 'm' }], 'a'].map(
    (bitmaps) => [MERGE, { ...OWN_FORM, bitmaps }] as const,
  ),
  [MERGE, { node: 'n', target: 'none', bitmaps: ['a'] }],
  [MERGE, { node: 'q', target: 'merged', bitmaps: ['q'] }],
  [MERGE, { node: 'q', target: 'finer', bitmaps: ['merged'] }],
  ...['q', 'merged', 'finer', 'none'].map((name) => [SHA, { node: 'q', name }] as const),
  [SHA, { node: 'none', name: 'a' }],
  [SHA, { node: 'n', name: 'a' }],
  ['transaction', { actions: [{ type: MERGE, data: { ...OWN_FORM, bitmaps: ['b'] } }] }],
  [
    'transaction',
    {
      actions: [
        { type: 'block-dirty-bitmap-clear', data: { node: 'q', name: 'finer' } },
        { type: MERGE, data: { node: 'q', target: 'finer', bitmaps: ['merged'] } },
        { type: MERGE, data: { node: 'q', target: 'merged', bitmaps: ['finer', 'q'] } },
        { type: 'abort', data: {} },
      ],
    },
  ],
  ...['q', 'merged', 'finer'].map((name) => [SHA, { node: 'q', name }] as const),
  ['x-blockdev-change', { parent: 'none', child: 'file' }],
  ['x-blockdev-change', { parent: 'r' }],
  ['x-blockdev-change', { parent: 'r', child: 'file' }],
  ['x-blockdev-change', { parent: 'r', child: 'none' }],
  ['x-blockdev-change', { parent: 'r', node: 'm' }],
  ['x-blockdev-change', { parent: 'r', node: 'none' }],
  ['x-blockdev-change', { parent: 'q', child: 'file', node: 'm' }],
  ['x-blockdev-set-iothread', { 'node-name': 'none', iothread: 'io' }],
  ...['none', 'secret', null, 5].map((iothread) => ['x-blockdev-set-iothread', { ...IO, iothread }] as const),
  ['x-blockdev-set-iothread', IO],
  ['x-blockdev-set-iothread', { 'node-name': 'q', iothread: null }],
  ['x-blockdev-set-iothread', { 'node-name': 'q', iothread: 'none' }],
  ['x-blockdev-set-iothread', { 'node-name': 'q', iothread: null, force: true }],
  ['x-blockdev-amend', { ...AMEND, 'node-name': 'none' }],
  ['x-blockdev-amend', { ...AMEND, 'node-name': 'r' }],
  ['x-blockdev-amend', { ...AMEND, 'node-name': 'r', options: { driver: 'raw' } }],
  ['x-blockdev-amend', { ...AMEND, options: { driver: 'raw' } }],
  ['x-blockdev-amend', { ...AMEND, options: { driver: 'qcow2', size: 5 } }],
  ['x-blockdev-amend', { ...AMEND, options: {} }],
  ['x-blockdev-amend', { ...AMEND, 'job-id': '1' }],
  ['x-blockdev-amend', AMEND],
  ['x-blockdev-amend', AMEND],
  ['blockdev-add', { ...Q2, 'node-name': 'q2' }],
  ['x-blockdev-amend', { ...AMEND, 'job-id': 'k2', 'node-name': 'q2' }],
  ['blockdev-del', { 'node-name': 'q2' }],
  ['job-dismiss', { id: 'k2' }],
  ['blockdev-del', { 'node-name': 'q2' }],
  ['blockdev-snapshot-internal-sync', { device: 'none', name: 's' }],
  ['blockdev-snapshot-internal-sync', { device: 'r', name: 's' }],
  ['blockdev-snapshot-internal-sync', { device: 'r', name: '' }],
  ['blockdev-snapshot-delete-internal-sync', { device: 'q' }],
  ['blockdev-snapshot-delete-internal-sync', { device: 'q', name: 'none' }],
  ['blockdev-snapshot-delete-internal-sync', { device: 'q', id: '7', name: 'none' }],
  ['blockdev-snapshot-delete-internal-sync', { device: 'r', name: 'none' }],
  ['blockdev-snapshot-delete-internal-sync', { device: 'none', name: 'none' }],
  [
    'transaction',
    { actions: [{ type: 'blockdev-snapshot-internal-sync', data: { device: 'r', name: 's' } }] },
  ],
];

async function startPair(context: TestContext, more: (cwd: string) => void = () => undefined): Promise<Pair> {
  const prepare = (cwd: string): void => {
    for (const image of ['q.qcow2', 'q2.qcow2'])
      run(cwd, 'qemu-img', 'create', '-q', '-f', 'qcow2', image, '16M');
    more(cwd);
  };
  const pair = await Pair.start(context, scratch(context), prepare);
  for (const [command, args] of SETUP) {
    const { theirs, ours } = await pair.execute(command, args);
    assert.deepEqual([theirs, ours], [{ return: {} }, { return: {} }], `${command} ${JSON.stringify(args)}`);
  }
  for (const at of ['0 4k', '100k 1', '7M 70k', '16776704 512'])
    pair.run('qemu-io', '-f', 'raw', '-c', `write ${at}`, 'nbd+unix:///q?socket=nbd.sock');
  return pair;
}

test('commands that few use answer as QEMU does', async (context) => {
  if (skipWithout(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const pair = await startPair(context);
  for (const [command, args] of COMMANDS) {
    const { theirs, ours } = await pair.execute(command, args);
    assert.ok(!pair.isReferenceGone, command);
    assert.deepEqual(ours, theirs, `${command} ${JSON.stringify(args)}`);
    await pair.settle(new Set());
    const events = pair.takeEvents();
    assert.deepEqual(events.ours, events.theirs, `${command} ${JSON.stringify(args)}`);
  }
});

const backup = (id: string, device: string, target: string, more: Json = {}): Json => ({
  type: 'blockdev-backup',
  data: { device, target, sync: 'full', 'job-id': id, ...more },
});

/** Two backups in a group, and what is done to them then. */
const GROUPS: ReadonlyArray<readonly [what: string, actions: readonly Json[], after: Array<[string, Json]>]> =
  [
    ['both end well', [backup('j1', 'n', 't1'), backup('j2', 'm', 't2')], []],
    [
      'one fails',
      [
        backup('j1', 'q', 't3', { 'auto-dismiss': false, speed: 1 }),
        backup('j2', 'm', 'bad', { 'auto-dismiss': false }),
      ],
      [],
    ],
    [
      'one is cancelled while both are pending',
      [backup('j1', 'n', 't1', { 'auto-finalize': false, 'auto-dismiss': false }), backup('j2', 'm', 't2')],
      [['job-cancel', { id: 'j2' }]],
    ],
    [
      'one is finalized, for both',
      [
        backup('j1', 'n', 't1', { 'auto-finalize': false }),
        backup('j2', 'm', 't2', { 'auto-dismiss': false }),
      ],
      [['job-finalize', { id: 'j2' }]],
    ],
    [
      'what is no job',
      [backup('j1', 'n', 't1'), { type: 'block-dirty-bitmap-add', data: { node: 'n', name: 'x' } }],
      [],
    ],
    ['an abort', [backup('j1', 'n', 't1'), { type: 'abort', data: {} }], []],
    ['nothing', [], []],
  ];

test('jobs of a grouped transaction end well together, or none does', async (context) => {
  if (skipWithout(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const pair = await startPair(context);
  const inject = [{ event: 'none', iotype: 'write', errno: 28 }];
  for (const [name, size] of [
    ['t1', 1048576],
    ['t2', 1048576],
    ['t3', 16777216],
  ] as const)
    await pair.execute('blockdev-add', { driver: 'null-co', 'node-name': name, size });
  const image = { driver: 'null-co', size: 1048576 };
  await pair.execute('blockdev-add', {
    driver: 'blkdebug',
    'node-name': 'bad',
    image,
    'inject-error': inject,
  });
  const check = async (what: string, answers: { theirs: Answer; ours: Answer }): Promise<void> => {
    assert.ok(!pair.isReferenceGone, what);
    assert.deepEqual(answers.ours, answers.theirs, what);
    const jobs = await pair.settle(new Set());
    assert.deepEqual(jobs.ours, jobs.theirs, what);
    const events = pair.takeEvents();
    assert.deepEqual(events.ours, events.theirs, what);
    const left = await pair.execute('query-jobs');
    const described = ({ return: list }: Answer): unknown =>
      (list as Json[]).map(({ id, status, error }) => ({ id, status, error }));
    assert.deepEqual(described(left.ours), described(left.theirs), what);
  };
  for (const [what, actions, after] of GROUPS) {
    const properties = { 'completion-mode': 'grouped' };
    await check(what, await pair.execute('transaction', { actions, properties }));
    for (const [command, args] of after)
      await check(`${what}: ${command}`, await pair.execute(command, args));
    for (const id of ['j1', 'j2']) await check(`${what}: dismiss`, await pair.execute('job-dismiss', { id }));
  }
});

/** What of a chain a <-- b <-- c others use when a job is asked for, by a filter that shares no writes or reads alone. */
const IN_THE_WAY: ReadonlyArray<readonly [used: string, command: string, args: Json]> = [
  ['a', 'block-commit', { device: 'c' }],
  ['a', 'block-commit', { device: 'c', 'top-node': 'b' }],
  ['b', 'block-commit', { device: 'c' }],
  ['b', 'block-commit', { device: 'c', 'base-node': 'b' }],
  ['b', 'block-stream', { device: 'c' }],
  ['m', 'blockdev-mirror', { device: 'n', target: 'm', sync: 'full' }],
];

test('a job that may not have its place is told of as soon as its filter has one', async (context) => {
  if (skipWithout(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const pair = await startPair(context, (cwd) => {
    for (const [name, ...more] of [
      ['a'],
      ['b', '-b', 'a.qcow2', '-F', 'qcow2'],
      ['c', '-b', 'b.qcow2', '-F', 'qcow2'],
    ])
      run(cwd, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...more, `${name}.qcow2`, '1M');
  });
  const both = async (command: string, args: Json): Promise<void> => {
    const { theirs, ours } = await pair.execute(command, args);
    assert.deepEqual(ours, theirs, `${command} ${JSON.stringify(args)}`);
  };
  const alike = async (what: string): Promise<void> => {
    const jobs = await pair.settle(new Set());
    assert.deepEqual(jobs.ours, jobs.theirs, what);
    const events = pair.takeEvents();
    assert.deepEqual(events.ours, events.theirs, what);
  };
  for (const [name, backing] of [['a', null] as const, ['b', 'a'] as const, ['c', 'b'] as const]) {
    const file = { driver: 'file', filename: `${name}.qcow2` };
    await both('blockdev-add', { driver: 'qcow2', 'node-name': name, file, backing });
  }
  for (const [used, command, args] of IN_THE_WAY) {
    const filter = { driver: 'copy-before-write', 'node-name': 'f', file: used, target: 'big' };
    const what = `${used} is used, ${command} ${JSON.stringify(args)}`;
    await both('blockdev-add', filter);
    await both('block-export-add', { type: 'nbd', id: 'x', 'node-name': 'f', writable: true });
    await both(command, { 'job-id': 'j', ...args });
    await alike(what);
    await both('block-job-cancel', { device: 'j' });
    await both('block-export-del', { id: 'x' });
    await alike(what);
    await both('blockdev-del', { 'node-name': 'f' });
  }
});
