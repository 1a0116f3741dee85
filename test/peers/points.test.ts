import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { pointsMain } from '../../src/programs/points/main.js';
import type { CommandResult } from '../../src/schema/commands.js';
import { BARE_MACHINE, Daemon, run, scratch, skipWithout } from './daemon.js';

type Listed = CommandResult<'x-point-list'>;

/** What `livedisk points` prints; its error is thrown. */
async function points(...words: string[]): Promise<string> {
  let text = '';
  const output = { write: (more: string) => void (text += more), columns: 100 };
  await pointsMain(words, { host: createRealHost(), output });
  return text;
}

const SOCKET = 'socket,id=c,path=qmp.sock,server=on,wait=off';
const SERVERS: Readonly<Record<string, readonly string[]>> = {
  'qemu-storage-daemon': ['qemu-storage-daemon', '--chardev', SOCKET, '--monitor', 'chardev=c'],
  'qemu-system-x86_64': [
    ...['qemu-system-x86_64', '-machine', 'none', '-nodefaults', '-display', 'none'],
    ...['-qmp', 'unix:qmp.sock,server=on,wait=off'],
  ],
};

/** Disks a and b of a server, each written to over NBD; who has started it has left its monitor. */
class Bed {
  readonly folder: string;
  readonly socket: string;
  #written = 0;

  private constructor(folder: string) {
    this.folder = folder;
    this.socket = join(folder, 'qmp.sock');
  }

  static async start(t: TestContext, argv: readonly string[]): Promise<Bed> {
    const bed = new Bed(scratch(t));
    const daemon = await Daemon.start(t, bed.folder, [...argv]);
    await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
    for (const disk of ['a', 'b']) {
      run(bed.folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${disk}.qcow2`, '16M');
      const file = { driver: 'file', filename: bed.path(`${disk}.qcow2`) };
      await daemon.execute('blockdev-add', { driver: 'qcow2', 'node-name': disk, file });
      await daemon.execute('block-export-add', { type: 'nbd', id: disk, 'node-name': disk, writable: true });
    }
    await daemon.hangUp();
    return bed;
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  #disk(name: string): string {
    // The export keeps the name of the node that it was made for.
    return `nbd+unix:///${name}?socket=${this.path('nbd')}`;
  }

  /** Another pattern at another place of both disks. */
  write(): void {
    const place = ++this.#written;
    for (const disk of ['a', 'b'])
      run(
        this.folder,
        'qemu-io',
        '-f',
        'raw',
        '-c',
        `write -P ${place} ${place}M 1M`,
        '-c',
        'flush',
        this.#disk(disk),
      );
  }

  /** What the disks show, in a raw image each. */
  keep(name: string): void {
    for (const disk of ['a', 'b'])
      run(
        this.folder,
        'qemu-img',
        'convert',
        '-f',
        'raw',
        '-O',
        'raw',
        this.#disk(disk),
        `${disk}.${name}.raw`,
      );
  }

  /** That a disk, or an image, shows what was kept. */
  compare(name: string, images: Readonly<Record<string, string>> = {}): void {
    for (const disk of ['a', 'b']) {
      const image = images[disk];
      const shown = image === undefined ? ['-f', 'raw', this.#disk(disk)] : ['-U', '-f', 'qcow2', image];
      const words = [
        'compare',
        ...shown.slice(0, -1),
        '-F',
        'raw',
        shown.at(-1) ?? '',
        `${disk}.${name}.raw`,
      ];
      assert.match(run(this.folder, 'qemu-img', ...words), /Images are identical/);
    }
  }

  async list(): Promise<Listed> {
    return JSON.parse(await points('list', '--json', this.socket)) as Listed;
  }

  /** Files of a point, by disk. */
  async files(name: string): Promise<Record<string, string>> {
    const { disks } = await this.list();
    const found = disks.map(({ disk, points: all }) => [
      disk,
      all.find((point) => point.name === name)?.file ?? '',
    ]);
    return Object.fromEntries(found) as Record<string, string>;
  }
}

for (const [server, argv] of Object.entries(SERVERS))
  test(`points of disks that ${server} has open, by plain QMP`, async (t) => {
    if (skipWithout(t, server, 'qemu-img', 'qemu-io')) return;
    const bed = await Bed.start(t, argv);
    for (const name of ['p1', 'p2', 'p3']) {
      bed.write();
      bed.keep(name);
      assert.match(await points('create', bed.socket, name), /a: the active image is .*a\.after-p/);
    }
    bed.write();
    bed.keep('now');
    for (const name of ['p1', 'p2', 'p3']) bed.compare(name, await bed.files(name));
    const planned = await points('delete', '--dry-run', bed.socket, 'p2');
    assert.match(planned, /copied at most: /);
    await points('delete', bed.socket, 'p2');
    await points('delete', bed.socket, 'p1');
    bed.compare('now');
    bed.compare('p3', await bed.files('p3'));
    const { disks } = await bed.list();
    assert.deepEqual(
      disks.map(({ points: all }) => all.map(({ name, state }) => `${name} ${state}`)),
      [['p3 usable'], ['p3 usable']],
    );
    // One image a point and the active one, and nothing of those that went.
    assert.ok(readdirSync(bed.folder).filter((name) => name.endsWith('.qcow2')).length <= 6);
    const active = disks.find(({ disk }) => disk === 'a')?.node ?? '';
    await assert.rejects(points('revert', bed.socket, 'p3'), /cannot take several disks back/);
    await assert.rejects(
      points('revert', '--disk', active, bed.socket, 'p3'),
      /may be written to: export 'a'/,
    );
    await assert.rejects(points('delete', bed.socket, 'p1'), /there is no point/);
    await points('create', '--keep', '1', bed.socket, 'p4');
    bed.compare('now');
    assert.match(await points(bed.socket), /a: 1 point\n {4}p4 /);
    for (const name of readdirSync(bed.folder).filter((one) => one.endsWith('.qcow2')))
      assert.ok(existsSync(bed.path(name)));
  });

/** A chain of three images, each with a pattern of its own at 1, 2 and 3 MiB; the topmost is c. */
function chainOf(folder: string): void {
  for (const [i, name] of ['a', 'b', 'c'].entries()) {
    const below = i === 0 ? [] : ['-b', join(folder, `${'abc'[i - 1] ?? ''}.qcow2`), '-F', 'qcow2'];
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...below, `${name}.qcow2`, '16M');
    run(folder, 'qemu-io', '-c', `write -P ${i + 1} ${i + 1}M 1M`, `${name}.qcow2`);
  }
}

/** The image that the users of the disk have now shows a and b, and not c. */
function expectReverted(folder: string, filename: string): void {
  const read = ['-c', 'read -P 1 1M 1M', '-c', 'read -P 2 2M 1M', '-c', 'read -P 0 3M 1M'];
  assert.doesNotMatch(run(folder, 'qemu-io', '-U', '-r', ...read, filename), /verification failed/);
}

const optionsOf = (folder: string): string =>
  `driver=qcow2,node-name=c,file.driver=file,file.filename=${join(folder, 'c.qcow2')}`;

async function nodeOf(daemon: Daemon, file: string): Promise<string> {
  const nodes = (await daemon.execute('query-named-block-nodes', { flat: true })) as Array<
    Record<string, string>
  >;
  return nodes.find((node) => node['drv'] === 'qcow2' && node['file'] === file)?.['node-name'] ?? '';
}

test('a disk of a QEMU whose guest has not begun goes back to an image without a name', async (t) => {
  if (skipWithout(t, 'qemu-system-x86_64', 'qemu-img', 'qemu-io')) return;
  const folder = scratch(t);
  chainOf(folder);
  const daemon = await Daemon.start(t, folder, [
    ...['qemu-system-x86_64', ...BARE_MACHINE, '-accel', 'tcg', '-S', '-blockdev', optionsOf(folder)],
    ...['-device', 'virtio-blk-pci,drive=c,id=v', '-qmp', 'unix:qmp.sock,server=on,wait=off'],
    ...['-qmp', 'unix:second.sock,server=on,wait=off'],
  ]);
  const socket = join(folder, 'second.sock');
  const goal: string[] = ['--image', await nodeOf(daemon, join(folder, 'b.qcow2'))];
  const revert = (...words: string[]): Promise<string> => points('revert', ...words, ...goal, socket);
  await daemon.execute('cont');
  await assert.rejects(revert(), /device 'v' \(the guest is running\)/);
  await daemon.execute('stop');
  await assert.rejects(revert(), /device 'v' \(the guest is paused\)/);
  await daemon.kill();
  const again = await Daemon.start(t, folder, [
    ...['qemu-system-x86_64', ...BARE_MACHINE, '-accel', 'tcg', '-S', '-blockdev', optionsOf(folder)],
    ...['-device', 'virtio-blk-pci,drive=c,id=v', '-qmp', 'unix:qmp.sock,server=on,wait=off'],
    ...['-qmp', 'unix:second.sock,server=on,wait=off'],
  ]);
  goal[1] = await nodeOf(again, join(folder, 'b.qcow2'));
  assert.match(await revert('--dry-run'), /not needed any more: .*c\.qcow2/);
  assert.match(await revert(), /c: the active image is .*c\.after-going-back\.qcow2/);
  const [device] = (await again.execute('query-block')) as Array<{ inserted: { file: string } }>;
  assert.match(device?.inserted.file ?? '', /c\.after-going-back\.qcow2$/);
  assert.equal(await nodeOf(again, join(folder, 'c.qcow2')), '', 'what was left is closed');
  assert.deepEqual(await again.execute('query-jobs'), []);
  expectReverted(folder, device?.inserted.file ?? '');
  // What was left is not taken for the disk.
  await again.kill();
  run(folder, 'qemu-img', 'check', '-q', 'c.after-going-back.qcow2');
  assert.match(await points(join(folder, 'c.qcow2')), /its active image is .*after-going-back/);
});

test('of a storage daemon whose exports are read', async (t) => {
  if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const folder = scratch(t);
  chainOf(folder);
  const daemon = await Daemon.start(t, folder, [
    ...[
      'qemu-storage-daemon',
      '--blockdev',
      optionsOf(folder),
      '--nbd-server',
      'addr.type=unix,addr.path=nbd',
    ],
    ...['--export', 'nbd,id=e,node-name=c,writable=on'],
    ...['--chardev', 'socket,id=d,path=second.sock,server=on,wait=off', '--monitor', 'chardev=d'],
    ...['--chardev', SOCKET, '--monitor', 'chardev=c'],
  ]);
  const goal: string[] = ['--image', await nodeOf(daemon, join(folder, 'b.qcow2'))];
  const revert = (): Promise<string> => points('revert', ...goal, join(folder, 'second.sock'));
  await assert.rejects(revert(), /may be written to: export 'e'/);
  await daemon.execute('block-export-del', { id: 'e' });
  await daemon.event('BLOCK_EXPORT_DELETED');
  await daemon.execute('block-export-add', { type: 'nbd', id: 'r', 'node-name': 'c' });
  await revert();
  const [info] = (await daemon.execute('query-block-exports')) as Array<Record<string, string>>;
  assert.match(info?.['node-name'] ?? '', /^pt-/);
  expectReverted(folder, `nbd+unix:///c?socket=${join(folder, 'nbd')}`);
});

test('what a storage daemon has committed and not closed is not the disk', async (t) => {
  if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const folder = scratch(t);
  chainOf(folder);
  const daemon = await Daemon.start(t, folder, [
    ...['qemu-storage-daemon', '--blockdev', optionsOf(folder)],
    ...['--nbd-server', 'addr.type=unix,addr.path=nbd', '--export', 'nbd,id=e,node-name=c,writable=on'],
    ...['--chardev', 'socket,id=d,path=second.sock,server=on,wait=off', '--monitor', 'chardev=d'],
    ...['--chardev', SOCKET, '--monitor', 'chardev=c'],
  ]);
  const socket = join(folder, 'second.sock');
  await points('create', socket, 'p1');
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'n.qcow2', '16M');
  const file = { driver: 'file', filename: join(folder, 'n.qcow2') };
  await daemon.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'n', file, backing: null });
  const below = await nodeOf(daemon, join(folder, 'c.after-p1.qcow2'));
  await daemon.execute('blockdev-snapshot', { node: below, overlay: 'n' });
  await points('create', socket, 'p2');
  const top = await nodeOf(daemon, join(folder, 'c.after-p2.qcow2'));
  await daemon.execute('block-commit', { 'job-id': 'j', device: top, 'base-node': below });
  await daemon.event('BLOCK_JOB_READY');
  await daemon.execute('block-job-complete', { device: 'j' });
  await daemon.event('BLOCK_JOB_COMPLETED');
  const nodes = (await daemon.execute('query-named-block-nodes', { flat: true })) as Array<
    Record<string, string>
  >;
  assert.ok(
    nodes.some((node) => node['node-name'] === 'n'),
    'it is open',
  );
  const { disks } = JSON.parse(await points('list', '--json', socket)) as Listed;
  assert.deepEqual(
    disks.map(({ node, points: all, ...disk }) => [
      node,
      disk['active-elsewhere'],
      ...all.map(({ name, state }) => `${name} ${state}`),
    ]),
    [[below, undefined, 'p1 usable', 'p2 lost']],
  );
  const theirs = /\[n\], which nobody uses, is open above .*: close what is not needed with blockdev-del/;
  await assert.rejects(points('create', '--dry-run', socket, 'p3'), theirs);
  await assert.rejects(points('create', socket, 'p3'), theirs);
  await daemon.execute('blockdev-del', { 'node-name': 'n' });
  assert.match(await points('create', socket, 'p3'), /c: the active image is .*c\.after-p3\.qcow2/);
});

const OWN_NODES: Readonly<Record<string, (options: readonly string[]) => string[]>> = {
  'qemu-storage-daemon': (nodes) => [
    ...['qemu-storage-daemon', ...nodes.flatMap((node) => ['--blockdev', node])],
    ...['--nbd-server', 'addr.type=unix,addr.path=nbd', '--export', 'nbd,id=e,node-name=c'],
    ...['--chardev', 'socket,id=d,path=second.sock,server=on,wait=off', '--monitor', 'chardev=d'],
    ...['--chardev', SOCKET, '--monitor', 'chardev=c'],
  ],
  'qemu-system-x86_64': (nodes) => [
    ...['qemu-system-x86_64', ...BARE_MACHINE, '-accel', 'tcg', '-S'],
    ...[...nodes.flatMap((node) => ['-blockdev', node]), '-device', 'virtio-blk-pci,drive=c,id=v'],
    ...['-qmp', 'unix:qmp.sock,server=on,wait=off', '-qmp', 'unix:second.sock,server=on,wait=off'],
  ],
};

for (const [server, argvOf] of Object.entries(OWN_NODES))
  test(`images with names of their own that ${server} has committed and left open are closed by who has opened them`, async (t) => {
    if (skipWithout(t, server, 'qemu-img', 'qemu-io')) return;
    for (const [goal, verb] of [
      ['p1', 'create'],
      ['a', 'revert'],
    ] as const) {
      const folder = scratch(t);
      chainOf(folder);
      const nodes = ['a', 'b', 'c'].map((name, i) => {
        const below = i === 0 ? '' : `,backing=${'abc'[i - 1] ?? ''}`;
        const file = `file.driver=file,file.filename=${join(folder, `${name}.qcow2`)}`;
        return `driver=qcow2,node-name=${name},${file}${below}`;
      });
      const daemon = await Daemon.start(t, folder, argvOf(nodes));
      await daemon.execute('block-commit', { 'job-id': 'j', device: 'c', 'base-node': 'b' });
      await daemon.event('BLOCK_JOB_READY');
      await daemon.execute('block-job-complete', { device: 'j' });
      await daemon.event('BLOCK_JOB_COMPLETED');
      const socket = join(folder, 'second.sock');
      const words = verb === 'create' ? [socket, goal] : ['--image', goal, socket];
      const theirs = /\[c\], which nobody uses, is open above 'b': close .* with blockdev-del/;
      await assert.rejects(points(verb, '--dry-run', ...words), theirs);
      await assert.rejects(points(verb, ...words), theirs);
      assert.equal(await nodeOf(daemon, join(folder, 'c.qcow2')), 'c');
      await daemon.execute('blockdev-del', { 'node-name': 'c' });
      assert.match(await points(verb, ...words), /b: the active image is .*b\.after-/);
      await daemon.kill();
    }
  });
