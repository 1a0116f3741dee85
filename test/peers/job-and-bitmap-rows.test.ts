import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { test } from 'node:test';
import { run, scratch, skipWithout } from './daemon.js';
import { type Answer, type Json, listOf, Pair } from './fuzz-pair.js';

/**
 * What QEMU's users find documented of snapshots, jobs and bitmaps, row by row: each is a few commands on images of its
 * own, and answers, events, jobs and bitmaps afterwards are the same here and there.
 */

/** `ROWS=drive- npm run test:peers -- job-and-bitmap-rows` runs some of them. */
const WANTED = new RegExp(process.env['ROWS'] ?? '');

type Step = readonly [command: string, args?: Json];
interface Row {
  readonly what: string;
  readonly steps: readonly Step[];
  /** Jobs that do not end by themselves. */
  readonly endless?: readonly string[];
}

const MiB = 1048576;
/** A job of that speed copies a first piece, and rests. */
const SLOW = { speed: 1 };
const MANUAL = { 'auto-finalize': false, 'auto-dismiss': false };

/** Nodes by row: a chain of base, mid and top (qcow2), and raw targets. */
const IMAGES = ['base', 'mid', 'top', 'raw', 'other', 'over', 'fresh'] as const;

const ROW_DIGITS = 3;
const numbered = (name: string, row: number): string => `${name}${String(row).padStart(ROW_DIGITS, '0')}`;

/** "top" in a row's arguments is that row's own top. */
function named(value: unknown, row: number): unknown {
  if (typeof value === 'string') {
    const [name, ext] = value.split('.');
    return (IMAGES as readonly string[]).includes(name ?? '')
      ? `${numbered(name ?? '', row)}${ext ? `.${ext}` : ''}`
      : value;
  }
  if (Array.isArray(value)) return value.map((one) => named(one, row));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, named(one, row)]));
}

const stream = (more: Json = {}): Step => ['block-stream', { 'job-id': 'j', device: 'top', ...more }];
const commit = (more: Json = {}): Step => ['block-commit', { 'job-id': 'j', device: 'top', ...more }];
const mirror = (more: Json = {}): Step => [
  'blockdev-mirror',
  { 'job-id': 'j', device: 'top', target: 'raw', sync: 'full', ...more },
];
const backup = (more: Json = {}): Step => [
  'blockdev-backup',
  { 'job-id': 'j', device: 'top', target: 'raw', sync: 'full', ...more },
];
const bitmap = (verb: string, more: Json = {}): Step => [
  `block-dirty-bitmap-${verb}`,
  { node: 'top', name: 'b', ...more },
];
const action = ([type, data]: Step): Json => ({ type, data });
const together = (steps: readonly Step[], more: Json = {}): Step => [
  'transaction',
  { actions: steps.map(action), ...more },
];
const overlay = (more: Json = {}): Step => ['blockdev-snapshot', { node: 'top', overlay: 'over', ...more }];
const GROUPED = { properties: { 'completion-mode': 'grouped' } };

const ROWS: readonly Row[] = [
  // ---- snapshots
  {
    what: 'a snapshot of a node',
    steps: [overlay(), overlay(), ['blockdev-snapshot', { node: 'gone', overlay: 'over' }]],
  },
  {
    what: 'a snapshot onto an overlay in use',
    steps: [mirror({ sync: 'none' }), overlay({ overlay: 'raw' })],
  },
  { what: 'an overlay with a backing file', steps: [overlay({ node: 'other', overlay: 'top' })] },
  { what: 'an overlay that cannot have one', steps: [overlay({ overlay: 'raw' })] },
  { what: 'an overlay that is missing', steps: [overlay({ overlay: 'gone' }), overlay({ overlay: 'top' })] },
  ...[
    { node: 'no' },
    { 'node-name': 'top' },
    { 'node-name': 'top', 'snapshot-node-name': 'top' },
    { 'node-name': 'top', 'snapshot-node-name': 'mid' },
    { 'node-name': 'top', 'snapshot-node-name': '1st' },
    { 'node-name': 'gone', 'snapshot-node-name': 'new' },
    { 'node-name': 'top', 'snapshot-node-name': 'new', format: 'raw' },
    { 'node-name': 'top', 'snapshot-node-name': 'new', format: 'none' },
    { 'node-name': 'top', 'snapshot-node-name': 'new', format: 'nbd' },
    { 'node-name': 'top', 'snapshot-node-name': 'new', mode: 'existing', 'snapshot-file': '/nowhere/x' },
    { 'node-name': 'top', 'snapshot-node-name': 'new', 'snapshot-file': '/nowhere/x' },
    { device: 'top', 'node-name': 'top', 'snapshot-node-name': 'new' },
  ].map((args) => ({
    what: `blockdev-snapshot-sync ${JSON.stringify(args)}`,
    steps: [['blockdev-snapshot-sync', { 'snapshot-file': 'snap.qcow2', ...args }] as const],
  })),
  {
    what: 'internal snapshots',
    steps: [
      ...['s', 's', '', '7'].map(
        (name) => ['blockdev-snapshot-internal-sync', { device: 'other', name }] as const,
      ),
      ['blockdev-snapshot-delete-internal-sync', { device: 'other' }],
      ['blockdev-snapshot-delete-internal-sync', { device: 'other', name: 'zz' }],
      ['blockdev-snapshot-delete-internal-sync', { device: 'other', id: '9', name: 's' }],
    ],
  },
  {
    what: 'transactions',
    steps: [
      together([]),
      together([['abort', {}]]),
      together([bitmap('add'), bitmap('clear'), ['abort', {}]]),
      together([bitmap('add'), bitmap('clear'), bitmap('disable')]),
      together([bitmap('enable'), bitmap('add')]),
      together([bitmap('remove'), bitmap('add')]),
      together([['nonsense', {}]]),
      together([['blockdev-snapshot', { node: 'top' }]]),
    ],
  },
  ...(
    [
      overlay(),
      ['blockdev-snapshot-sync', { 'node-name': 'top', 'snapshot-node-name': 'n', 'snapshot-file': 'x' }],
      ['blockdev-snapshot-internal-sync', { device: 'other', name: 's' }],
      bitmap('add'),
      bitmap('clear'),
      ['abort', {}],
    ] as readonly Step[]
  ).map((step) => ({ what: `grouped ${step[0]}`, steps: [together([step], GROUPED)] })),
  {
    what: 'the backing file in the header',
    steps: [
      ...[
        { device: 'top', 'image-node-name': 'top', 'backing-file': 'mid.qcow2' },
        { device: 'top', 'image-node-name': 'mid', 'backing-file': 'base.qcow2' },
        { device: 'top', 'image-node-name': 'base', 'backing-file': 'x' },
        { device: 'top', 'image-node-name': 'other', 'backing-file': 'x' },
        { device: 'gone', 'image-node-name': 'top', 'backing-file': 'x' },
        { device: 'top', 'image-node-name': 'gone', 'backing-file': 'x' },
        { device: 'raw', 'image-node-name': 'raw', 'backing-file': 'x' },
        { device: 'top', 'image-node-name': 'top', 'backing-file': 'x'.repeat(1024) },
      ].map((args) => ['change-backing-file', args] as const),
    ],
  },
  {
    what: 'sizes',
    steps: [
      ...[0, 1, 513, -512, 2 * MiB, 512, MiB + 512].map(
        (size) => ['block_resize', { 'node-name': 'other', size }] as const,
      ),
      ['block_resize', { 'node-name': 'gone', size: MiB }],
      ['block_resize', { size: MiB }],
      ['block_resize', { device: 'other', 'node-name': 'other', size: MiB }],
      ['block_resize', { device: 'other', size: MiB }],
    ],
  },
  {
    what: 'the size of a node that a job has',
    steps: [
      mirror({ sync: 'none' }),
      ['block_resize', { 'node-name': 'top', size: MiB }],
      ['block_resize', { 'node-name': 'raw', size: MiB }],
    ],
  },
  // ---- the life of a job
  ...['1', '', 'a b', '-a', 'ä', 'a'.repeat(300)].map((id) => ({
    what: `job id '${id.slice(0, 9)}'`,
    steps: [stream({ 'job-id': id, ...SLOW, ...MANUAL })],
    endless: [id],
  })),
  {
    what: 'no job id',
    steps: [
      ['block-stream', { device: 'top' }],
      ['blockdev-backup', { device: 'top', target: 'raw', sync: 'full' }],
    ],
  },
  {
    what: 'a job id twice',
    steps: [
      stream(SLOW),
      ['blockdev-backup', { 'job-id': 'j', device: 'other', target: 'raw', sync: 'full' }],
    ],
    endless: ['j'],
  },
  {
    what: 'verbs of a running job',
    steps: [
      stream(SLOW),
      ...['complete', 'finalize', 'dismiss', 'resume', 'pause', 'pause', 'resume'].map(
        (verb) => [`job-${verb}`, { id: 'j' }] as const,
      ),
      ...['complete', 'finalize', 'resume', 'pause', 'pause'].map(
        (verb) => [`block-job-${verb}`, verb === 'finalize' ? { id: 'j' } : { device: 'j' }] as const,
      ),
      ['block-job-dismiss', { id: 'j' }],
      ['block-job-set-speed', { device: 'j', speed: -1 }],
      ['block-job-set-speed', { device: 'j', speed: 1 }],
      ['block-job-cancel', { device: 'j' }],
      ['block-job-cancel', { device: 'j', force: true }],
    ],
    endless: ['j'],
  },
  {
    what: 'verbs of a job that is not there',
    steps: [
      ...['complete', 'finalize', 'dismiss', 'resume', 'pause', 'cancel'].map(
        (verb) => [`job-${verb}`, { id: 'gone' }] as const,
      ),
      ...['complete', 'resume', 'pause', 'cancel'].map(
        (verb) => [`block-job-${verb}`, { device: 'gone' }] as const,
      ),
      ['block-job-set-speed', { device: 'gone', speed: 1 }],
      ['block-job-finalize', { id: 'gone' }],
      ['block-job-dismiss', { id: 'gone' }],
    ],
  },
  {
    what: 'verbs of a ready job',
    steps: [
      mirror(MANUAL),
      ...[
        'finalize',
        'dismiss',
        'pause',
        'complete',
        'resume',
        'complete',
        'complete',
        'pause',
        'cancel',
      ].map((verb) => [`job-${verb}`, { id: 'j' }] as const),
      ['job-finalize', { id: 'j' }],
      ['job-dismiss', { id: 'j' }],
    ],
  },
  {
    what: 'what takes the place of what is read-only',
    steps: [
      ['blockdev-del', { 'node-name': 'other' }],
      [
        'blockdev-add',
        {
          ...{ driver: 'qcow2', 'node-name': 'other', 'read-only': true },
          file: { driver: 'file', filename: 'other.qcow2' },
        },
      ],
      mirror({ device: 'other' }),
      ['job-complete', { id: 'j' }],
      ['block_resize', { 'node-name': 'raw', size: 2 * MiB }],
    ],
  },
  { what: 'a ready mirror that is cancelled', steps: [mirror(), ['block-job-cancel', { device: 'j' }]] },
  {
    what: 'a ready mirror that is cancelled by force',
    steps: [mirror(), ['block-job-cancel', { device: 'j', force: true }]],
  },
  {
    what: 'a ready mirror, job-cancel',
    steps: [
      mirror(MANUAL),
      ['job-cancel', { id: 'j' }],
      ['job-finalize', { id: 'j' }],
      ['job-dismiss', { id: 'j' }],
    ],
  },
  {
    what: 'a pending job is cancelled',
    steps: [
      backup(MANUAL),
      ['job-cancel', { id: 'j' }],
      ['job-cancel', { id: 'j' }],
      ['job-dismiss', { id: 'j' }],
    ],
  },
  {
    what: 'a pending job is finalized',
    steps: [
      backup(MANUAL),
      ['job-complete', { id: 'j' }],
      ['job-pause', { id: 'j' }],
      ['block-job-finalize', { id: 'j' }],
      ['block-job-dismiss', { id: 'j' }],
      ['block-job-dismiss', { id: 'j' }],
    ],
  },
  // ---- streams
  ...[
    { base: 'base.qcow2' },
    { base: './base.qcow2' },
    { base: 'zzz' },
    { base: 'base.qcow2', 'base-node': 'base' },
    { 'base-node': 'base' },
    { 'base-node': 'mid' },
    { 'base-node': 'top' },
    { 'base-node': 'raw' },
    { bottom: 'mid' },
    { bottom: 'base' },
    { bottom: 'top' },
    { bottom: 'raw' },
    { bottom: 'mid', 'base-node': 'base' },
    { bottom: 'mid', 'backing-file': 'x' },
    { bottom: 'mid', base: 'base.qcow2' },
    { 'backing-file': 'x' },
    { 'base-node': 'base', 'backing-file': 'other-name' },
    { device: 'mid' },
    { device: 'base' },
    { device: 'other' },
    { device: 'raw' },
    { device: 'gone' },
    { 'on-error': 'ignore' },
    { 'on-error': 'stop' },
    { 'on-error': 'enospc' },
    { speed: -5 },
    { 'filter-node-name': 'top' },
    { 'filter-node-name': 'f', ...SLOW },
    { 'auto-dismiss': false },
    { 'auto-finalize': false },
  ].map((args) => ({
    what: `stream ${JSON.stringify(args)}`,
    steps: [stream(args), ...('auto-dismiss' in args ? [['job-dismiss', { id: 'j' }] as const] : [])],
    endless: 'speed' in args ? ['j'] : [],
  })),
  {
    what: 'a stream again after it was cancelled',
    steps: [stream(SLOW), ['job-cancel', { id: 'j' }], stream({ 'job-id': 'k' })],
    endless: ['j'],
  },
  // ---- commits
  ...[
    {},
    { base: 'base.qcow2' },
    { base: './base.qcow2' },
    { base: 'zzz' },
    { top: 'mid.qcow2' },
    { top: 'zzz' },
    { 'top-node': 'mid' },
    { 'top-node': 'mid', 'base-node': 'base' },
    { 'top-node': 'base' },
    { 'top-node': 'base', 'base-node': 'mid' },
    { 'top-node': 'raw' },
    { 'base-node': 'raw' },
    { 'base-node': 'top' },
    { 'top-node': 'mid', top: 'mid.qcow2' },
    { 'base-node': 'base', base: 'base.qcow2' },
    { 'backing-file': 'x' },
    { 'top-node': 'mid', 'backing-file': 'other-name' },
    { device: 'mid' },
    { device: 'gone' },
    { device: 'other' },
    { device: 'raw' },
    { 'on-error': 'ignore' },
    { 'on-error': 'stop', 'top-node': 'mid' },
    { 'filter-node-name': 'mid' },
    { 'filter-node-name': 'f' },
    { speed: -1 },
    { 'top-node': 'mid', ...MANUAL },
  ].map((args) => ({ what: `commit ${JSON.stringify(args)}`, steps: [commit(args)] })),
  { what: 'an active commit to its end', steps: [commit(), ['block-job-complete', { device: 'j' }]] },
  { what: 'an active commit that is cancelled', steps: [commit(), ['block-job-cancel', { device: 'j' }]] },
  {
    what: 'a commit beside a stream',
    steps: [
      stream({ 'base-node': 'mid' }),
      commit({ 'job-id': 'k', 'top-node': 'mid', 'base-node': 'base' }),
    ],
  },
  {
    what: 'a commit where a stream is',
    steps: [stream(SLOW), commit({ 'job-id': 'k', 'top-node': 'mid' })],
    endless: ['j'],
  },
  {
    what: 'a mirror where a commit is',
    steps: [commit(), mirror({ 'job-id': 'k' }), backup({ 'job-id': 'l' })],
  },
  // ---- mirrors
  ...[
    { sync: 'top' },
    { sync: 'none' },
    { sync: 'incremental' },
    { sync: 'bitmap' },
    { granularity: 0 },
    { granularity: 256 },
    { granularity: 512 },
    { granularity: 1000 },
    { granularity: 64 * MiB },
    { granularity: 128 * MiB },
    { 'buf-size': 0 },
    { 'buf-size': -1 },
    { 'buf-size': 1 },
    { target: 'top' },
    { target: 'mid' },
    { target: 'base' },
    { target: 'gone' },
    { target: 'other' },
    { device: 'gone' },
    { device: 'mid' },
    { device: 'base' },
    { replaces: 'gone' },
    { replaces: 'other' },
    { replaces: 'base' },
    { replaces: 'top' },
    { 'copy-mode': 'write-blocking' },
    { 'copy-mode': 'nonsense' },
    { 'on-source-error': 'ignore' },
    { 'on-source-error': 'stop' },
    { 'on-target-error': 'enospc' },
    { 'filter-node-name': 'raw' },
    { 'filter-node-name': 'f' },
    { unmap: false },
    { speed: -1 },
  ].map((args) => ({
    what: `mirror ${JSON.stringify(args)}`,
    steps: [mirror(args), ['job-complete', { id: 'j' }]] as const,
  })),
  ...['nonsense', 'full', 'top', 'none'].flatMap((sync) =>
    [
      {},
      { mode: 'existing' },
      { format: 'raw' },
      { format: 'none' },
      { 'node-name': 'mid' },
      { 'node-name': 'n' },
    ].map((more) => ({
      what: `drive-mirror ${sync} ${JSON.stringify(more)}`,
      steps: [
        ['drive-mirror', { 'job-id': 'j', device: 'top', target: 'fresh', sync, ...more }],
        ['job-complete', { id: 'j' }],
      ] as const,
    })),
  ),
  {
    what: 'a mirror of another size',
    steps: [['block_resize', { 'node-name': 'other', size: 2 * MiB }], mirror({ target: 'other' })],
  },
  // ---- backups
  ...[
    { sync: 'top' },
    { sync: 'none' },
    { sync: 'incremental' },
    { sync: 'bitmap' },
    { sync: 'incremental', bitmap: 'b' },
    { sync: 'incremental', bitmap: 'gone' },
    { sync: 'incremental', bitmap: 'b', 'bitmap-mode': 'on-success' },
    { sync: 'incremental', bitmap: 'b', 'bitmap-mode': 'never' },
    { sync: 'incremental', bitmap: 'b', 'bitmap-mode': 'always' },
    ...['full', 'top', 'none', 'bitmap'].flatMap((sync) =>
      ['on-success', 'never', 'always'].map((mode) => ({ sync, bitmap: 'b', 'bitmap-mode': mode })),
    ),
    { bitmap: 'b' },
    { 'bitmap-mode': 'never' },
    { target: 'top' },
    { target: 'mid' },
    { target: 'gone' },
    { target: 'other', compress: true },
    { compress: true },
    { 'on-source-error': 'stop' },
    { 'on-target-error': 'ignore' },
    { 'x-perf': { 'max-workers': 0 } },
    { 'x-perf': { 'max-workers': 2 ** 31 } },
    { 'x-perf': { 'max-workers': 1, 'max-chunk': -1 } },
    { 'x-perf': { 'max-chunk': 4096 } },
    { 'x-perf': { 'max-chunk': 65536, 'use-copy-range': true } },
    { 'filter-node-name': 'top' },
    { 'filter-node-name': 'f' },
    { speed: -1 },
    { 'auto-dismiss': false },
  ].map((args) => ({
    what: `backup ${JSON.stringify(args)}`,
    steps: [bitmap('add'), backup(args), ['job-cancel', { id: 'j' }]] as const,
    endless: args.sync === 'none' ? ['j'] : [],
  })),
  ...['full', 'top', 'none', 'incremental'].flatMap((sync) =>
    [{}, { mode: 'existing' }, { format: 'raw' }, { format: 'none' }].map((more) => ({
      what: `drive-backup ${sync} ${JSON.stringify(more)}`,
      steps: [
        ['drive-backup', { 'job-id': 'j', device: 'top', target: 'fresh', sync, ...more }],
        ['job-cancel', { id: 'j' }],
      ] as const,
      endless: sync === 'none' ? ['j'] : [],
    })),
  ),
  {
    what: 'a backup of another size',
    steps: [['block_resize', { 'node-name': 'other', size: 2 * MiB }], backup({ target: 'other' })],
  },
  {
    what: 'two backups in a group, one cannot',
    steps: [together([backup(), backup({ 'job-id': 'k', device: 'other', target: 'raw' })], GROUPED)],
  },
  // ---- bitmaps
  ...[
    {},
    { name: '' },
    { name: 'x'.repeat(1023) },
    { name: 'x'.repeat(1024) },
    { node: 'gone' },
    { granularity: 0 },
    { granularity: 256 },
    { granularity: 511 },
    { granularity: 512 },
    { granularity: 1000 },
    { granularity: 2 ** 31 },
    { granularity: 2 ** 32 },
    { disabled: true },
    { persistent: true },
    { persistent: true, disabled: true },
    { persistent: true, granularity: 512 },
    { persistent: true, name: 'x'.repeat(1023) },
    { persistent: true, node: 'raw' },
    { persistent: true, node: 'mid' },
    { persistent: true, node: 'other' },
  ].map((args) => ({
    what: `bitmap ${JSON.stringify(args).slice(0, 60)}`,
    steps: [bitmap('add', args), bitmap('add', args)],
  })),
  {
    what: 'verbs of bitmaps',
    steps: [
      ...['clear', 'enable', 'disable', 'remove'].map((verb) => bitmap(verb)),
      bitmap('add', { persistent: true }),
      ...['disable', 'disable', 'clear', 'enable', 'enable', 'remove', 'remove'].map((verb) => bitmap(verb)),
    ],
  },
  {
    what: 'a busy bitmap',
    steps: [
      bitmap('add'),
      bitmap('add', { name: 'c' }),
      backup({ sync: 'incremental', bitmap: 'b', ...MANUAL }),
      ...['clear', 'enable', 'disable', 'remove', 'add'].map((verb) => bitmap(verb)),
      ['block-dirty-bitmap-merge', { node: 'top', target: 'b', bitmaps: ['c'] }],
      ['block-dirty-bitmap-merge', { node: 'top', target: 'c', bitmaps: ['b'] }],
      backup({ 'job-id': 'k', target: 'other', sync: 'incremental', bitmap: 'b' }),
      ['job-finalize', { id: 'j' }],
      ['job-dismiss', { id: 'j' }],
      bitmap('remove'),
    ],
  },
];

/** The same images for each row: those of the first, under other names. */
function makeImages(cwd: string): void {
  const create = (name: string, backing?: string): void =>
    void run(
      cwd,
      'qemu-img',
      'create',
      '-q',
      '-f',
      'qcow2',
      ...(backing ? ['-b', backing, '-F', 'qcow2'] : []),
      name,
      '1M',
    );
  const [base, mid, top, other, over] = ['base', 'mid', 'top', 'other', 'over'].map(
    (name) => `${numbered(name, 0)}.qcow2`,
  ) as [string, string, string, string, string];
  create(base);
  create(mid, base);
  create(top, mid);
  create(other);
  create(over);
  for (const [image, byte] of [
    [base, 1],
    [mid, 2],
    [top, 3],
  ] as const)
    run(cwd, 'qemu-io', '-f', 'qcow2', '-c', `write -P ${byte} ${byte * 64}k 192k`, image);
  const contents = [base, mid, top, other, over].map(
    (name) => [name, readFileSync(join(cwd, name), 'latin1')] as const,
  );
  for (const row of ROWS.keys()) {
    const renamed = (text: string): string => text.replaceAll('000.qcow2', `${numbered('', row)}.qcow2`);
    for (const [name, bytes] of contents) writeFileSync(join(cwd, renamed(name)), renamed(bytes), 'latin1');
    writeFileSync(join(cwd, `${numbered('raw', row)}.img`), Buffer.alloc(MiB));
  }
}

async function openRow(pair: Pair, row: number): Promise<void> {
  const open = async (name: string, driver: string, extension: string, more: Json): Promise<void> => {
    const file = { driver: 'file', filename: `${numbered(name, row)}.${extension}` };
    const { ours, theirs } = await pair.execute('blockdev-add', {
      driver,
      'node-name': numbered(name, row),
      file,
      ...more,
    });
    assert.deepEqual([ours, theirs], [{ return: {} }, { return: {} }], `row ${row}, ${name}`);
  };
  for (const [name, backing] of [['base'], ['mid', 'base'], ['top', 'mid'], ['other'], ['over']] as const)
    await open(name, 'qcow2', 'qcow2', { backing: backing === undefined ? null : numbered(backing, row) });
  await open('raw', 'raw', 'img', {});
}

/** What generated names are called is each program's own affair. */
function plain(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value ?? null).replace(/#block\d+/g, '#block')) as unknown;
}

/** How far a job is that does not end is its own affair. */
function jobsOf(answer: Answer): unknown {
  return listOf(answer).map(({ id, type, status, error }) => ({ id, type, status, error }));
}

function bitmapsOf(answer: Answer, row: number): unknown {
  return listOf(answer)
    .filter((node) => String(node['node-name']).endsWith(numbered('', row)) && node['dirty-bitmaps'])
    .map((node) => JSON.stringify([node['node-name'], node['dirty-bitmaps']]))
    .sort();
}

/** Ends all that a row has left. */
async function endJobs(pair: Pair): Promise<void> {
  for (let round = 0; round < 500; round++) {
    const jobs = await pair.execute('query-jobs');
    const ids = new Set([...listOf(jobs.theirs), ...listOf(jobs.ours)].map(({ id }) => id));
    if (ids.size === 0) return;
    for (const id of ids) {
      await pair.execute('job-cancel', { id });
      await pair.execute('job-dismiss', { id });
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  assert.fail('jobs do not end');
}

test('what is documented of snapshots, jobs and bitmaps is so, row by row', async (context) => {
  if (skipWithout(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const pair = await Pair.start(context, scratch(context), makeImages);
  const differing: unknown[] = [];
  for (const [row, { what, steps, endless = [] }] of ROWS.entries()) {
    if (!WANTED.test(what)) continue;
    await openRow(pair, row);
    const told = { ours: [] as unknown[], theirs: [] as unknown[] };
    const tell = (answers: { ours: unknown; theirs: unknown }): void => {
      told.ours.push(plain(answers.ours));
      told.theirs.push(plain(answers.theirs));
    };
    for (const [command, args = {}] of steps) {
      tell(await pair.execute(command, named(args, row) as Json));
      tell(await pair.settle(new Set(endless)));
    }
    assert.ok(!pair.isReferenceGone, what);
    tell(pair.takeEvents());
    const jobs = await pair.execute('query-jobs');
    tell({ ours: jobsOf(jobs.ours), theirs: jobsOf(jobs.theirs) });
    const nodes = await pair.execute('query-named-block-nodes', { flat: true });
    tell({ ours: bitmapsOf(nodes.ours, row), theirs: bitmapsOf(nodes.theirs, row) });
    await endJobs(pair);
    pair.takeEvents();
    for (const [i, theirs] of told.theirs.entries())
      if (!isDeepStrictEqual(told.ours[i], theirs)) differing.push({ what, i, theirs, ours: told.ours[i] });
  }
  assert.deepEqual(differing, []);
});
