import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';
import { answers, quit, update } from './takeover-sides.js';

/** What drivers have in memory goes over, and images of every format. */

const MiB = 1024 * 1024;
const KiB64 = 65536;
const SIZE = 16 * MiB;

interface Node {
  readonly [option: string]: unknown;
}

/** A daemon that exports each of the nodes, by its name. */
async function serve(
  t: TestContext,
  folder: string,
  nodes: readonly Node[],
  exported: ReadonlyArray<readonly [node: string, writable: boolean]>,
): Promise<Daemon> {
  const argv = [
    ...[process.execPath, PROGRAM, 'run', '-monitor', 'none', '-qmp', 'unix:qmp.sock,server=on,wait=off'],
    ...nodes.flatMap((node) => ['-blockdev', JSON.stringify(node)]),
    ...['-nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
    ...exported.flatMap(([node, writable]) => [
      '-export',
      `type=nbd,id=export-${node},node-name=${node},name=${node},writable=${writable ? 'on' : 'off'}`,
    ]),
  ];
  return Daemon.start(t, folder, argv, 'qmp.sock', ['x-livedisk']);
}

/** Without how much an image takes: it is written back, which may take some. */
async function answersOf(daemon: Daemon): Promise<unknown> {
  const text = JSON.stringify(await answers(daemon), (key: string, value: unknown) =>
    key === 'actual-size' ? undefined : value,
  );
  return JSON.parse(text);
}

const file = (filename: string): Node => ({ driver: 'file', filename });
const bytes = (value: number, lengthBytes = KiB64): Buffer => Buffer.alloc(lengthBytes, value);

const FORMATS: ReadonlyArray<readonly [format: string, options?: string]> = [
  ['vdi'],
  ['vhdx'],
  ['vpc'],
  ['qed'],
  ['parallels'],
  ['vmdk'],
  ['vmdk', 'subformat=twoGbMaxExtentSparse'],
  ['vmdk', 'subformat=streamOptimized'],
  ['luks', 'key-secret=s,iter-time=10'],
];

for (const [format, options] of FORMATS)
  test(`an image of ${format} ${options ?? ''} that is written goes over, twice`, async (t) => {
    if (skipWithout(t, 'qemu-img')) return;
    const folder = scratch(t);
    const secret = ['--object', 'secret,id=s,data=abc'];
    run(
      folder,
      'qemu-img',
      'create',
      '-q',
      ...secret,
      '-f',
      format,
      ...(options === undefined ? [] : ['-o', options]),
      'i',
      '16M',
    );
    const daemon = await serve(t, folder, [], []);
    await daemon.execute('object-add', { 'qom-type': 'secret', id: 's', data: 'abc' });
    const key = format === 'luks' ? { 'key-secret': 's' } : {};
    await daemon.execute('blockdev-add', { driver: format, 'node-name': 'disk', file: file('i'), ...key });
    await daemon.execute('block-export-add', {
      ...{ type: 'nbd', id: 'e', 'node-name': 'disk' },
      writable: true,
    });
    const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
    await client.write(MiB, bytes(1));
    // Where a format keeps something behind its last block, the file is as long as that needs only then.
    await client.flush();
    const before = await answersOf(daemon);
    let serving = await update(t, folder, { daemon, serving: daemon.process });
    assert.deepEqual(await answersOf(daemon), before);
    assert.deepEqual(await client.read(MiB, KiB64), bytes(1));
    await client.write(5 * MiB, bytes(2));
    await client.flush();
    await client.write(6 * MiB, bytes(3));
    serving = await update(t, folder, { daemon, serving });
    await client.write(9 * MiB, bytes(4));
    const all = await client.read(0, SIZE);
    await quit(daemon, serving);
    const image = `driver=${format},file.filename=i${format === 'luks' ? ',key-secret=s' : ''}`;
    run(folder, 'qemu-img', 'convert', ...secret, '--image-opts', '-O', 'raw', image, 'content');
    // A size in cylinders is a little larger.
    assert.ok(readFileSync(join(folder, 'content')).subarray(0, SIZE).equals(all));
    assert.deepEqual(
      [1, 5, 6, 9].map((at) => all[at * MiB]),
      [1, 2, 3, 4],
    );
    if (format !== 'luks' && format !== 'vpc') run(folder, 'qemu-img', 'check', '-q', '-f', format, 'i');
  });

test('filters go on with what they had: a moment that is kept, a log, space ahead, rules that are spent', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  for (const name of ['cbw', 'log', 'debug', 'q0', 'q1', 'q2', 'lower'])
    run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', name, '16M');
  for (const name of ['ahead', 'before', 'small', 'upper'])
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', name, '16M');
  run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'entries', '0');
  const qcow2 = (name: string, below: Node = file(name)): Node => ({
    driver: 'qcow2',
    'node-name': name,
    file: below,
  });
  const nodes: Node[] = [
    { driver: 'file', 'node-name': 'cbw-file', filename: 'cbw' },
    { ...qcow2('before'), backing: null },
    { driver: 'copy-before-write', 'node-name': 'cbw', file: 'cbw-file', target: 'before' },
    { driver: 'snapshot-access', 'node-name': 'moment', file: 'cbw' },
    { driver: 'blklogwrites', 'node-name': 'log', file: file('log'), log: file('entries') },
    qcow2('ahead', {
      driver: 'preallocate',
      'node-name': 'space',
      'prealloc-size': 32 * MiB,
      file: file('ahead'),
    }),
    {
      ...{ driver: 'blkdebug', 'node-name': 'debug', image: file('debug') },
      'inject-error': [
        { event: 'pwritev', errno: 28, once: true, iotype: 'write' },
        { event: 'flush_to_os', state: 2, iotype: 'flush', errno: 5 },
      ],
      'set-state': [{ event: 'pwritev', state: 1, new_state: 2 }],
    },
    { driver: 'compress', 'node-name': 'small', file: { ...qcow2('small'), 'node-name': 'small-image' } },
    { driver: 'throttle', 'node-name': 'slow', 'throttle-group': 'g', file: file('lower') },
    {
      driver: 'copy-on-read',
      'node-name': 'cor',
      file: { ...qcow2('upper'), 'node-name': 'upper', backing: null },
    },
    { driver: 'quorum', 'node-name': 'vote', 'vote-threshold': 2, children: ['q0', 'q1', 'q2'].map(file) },
  ];
  const throttle = ['-object', 'throttle-group,id=g,limits.bps-total=400000000'];
  const exported = [
    ...(['cbw', 'log', 'ahead', 'debug', 'small', 'slow', 'cor', 'vote'] as const).map(
      (name) => [name, true] as const,
    ),
    ['moment', false] as const,
  ];
  const argv = [
    process.execPath,
    PROGRAM,
    'run',
    '-monitor',
    'none',
    ...throttle,
    '-qmp',
    'unix:qmp.sock,server=on,wait=off',
  ];
  const daemon = await Daemon.start(
    t,
    folder,
    [
      ...argv,
      ...nodes.flatMap((node) => ['-blockdev', JSON.stringify(node)]),
      ...['-nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
      ...exported.flatMap(([node, writable]) => [
        '-export',
        `type=nbd,id=e-${node},node-name=${node},name=${node},writable=${writable ? 'on' : 'off'}`,
      ]),
    ],
    'qmp.sock',
    ['x-livedisk'],
  );
  const clients = new Map<string, SmallNbd>();
  for (const [name] of exported) clients.set(name, await SmallNbd.connect(join(folder, 'nbd.sock'), name));
  const of = (name: string): SmallNbd => clients.get(name) ?? assert.fail(name);
  for (const [name, writable] of exported)
    if (writable && name !== 'debug') await of(name).write(MiB, bytes(1));
  await assert.rejects(of('debug').write(MiB, bytes(1)));
  await of('debug').write(MiB, bytes(1));
  const before = await answersOf(daemon);
  let serving = await update(t, folder, { daemon, serving: daemon.process });
  assert.deepEqual(await answersOf(daemon), before);
  // What was written before the update is not due again: else the kept moment would be what is there now.
  await of('cbw').write(MiB, bytes(2));
  await of('cbw').write(2 * MiB, bytes(2));
  assert.deepEqual(await of('moment').read(MiB, KiB64), bytes(0));
  assert.deepEqual(await of('moment').read(2 * MiB, KiB64), bytes(0));
  // It is in its second state, and the rule that failed once is spent.
  await assert.rejects(of('debug').flush());
  await of('debug').write(MiB, bytes(2));
  for (const [name, writable] of exported) if (writable) await of(name).write(3 * MiB, bytes(3));
  assert.ok(statSync(join(folder, 'ahead')).size > 32 * MiB, 'space ahead');
  serving = await update(t, folder, { daemon, serving });
  for (const [name, writable] of exported)
    if (writable) {
      await of(name).write(4 * MiB, bytes(4));
      if (name !== 'debug') await of(name).flush();
      assert.deepEqual(await of(name).read(3 * MiB, KiB64), bytes(3), name);
    }
  assert.deepEqual(await of('moment').read(4 * MiB, KiB64), bytes(0));
  await quit(daemon, serving);
  assert.ok(statSync(join(folder, 'ahead')).size < 32 * MiB, 'what was not used is given back');
  for (const name of ['ahead', 'before', 'small', 'upper']) run(folder, 'qemu-img', 'check', '-q', name);
  // One log of all: each write is an entry, and the superblock counts them.
  const log = readFileSync(join(folder, 'entries'));
  assert.equal(Number(log.readBigUInt64LE(16)), entriesOf(log));
});

/** Entries from the first sector on, each with its data. */
function entriesOf(log: Buffer): number {
  let count = 0;
  for (let at = 512; at < log.length; count++) {
    const sectors = Number(log.readBigUInt64LE(at + 8));
    const isDiscard = Math.floor(Number(log.readBigUInt64LE(at + 16)) / 4) % 2 === 1;
    at += 512 + (isDiscard ? 0 : sectors * 512);
  }
  return count;
}
