import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

const KiB = 1024;
const CLUSTER = 64 * KiB;
const DISK = 32 * CLUSTER;
const MONITOR = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
const OURS = [process.execPath, PROGRAM, 'storage-daemon', ...MONITOR];
const THEIRS = ['qemu-storage-daemon', ...MONITOR];

type Json = { [key: string]: unknown };

/** A disk over a base, and room for what it held: the node tree of fleecing, both ends exported. */
class Fleecing {
  readonly folder: string;
  readonly daemon: Daemon;

  private constructor(folder: string, daemon: Daemon) {
    this.folder = folder;
    this.daemon = daemon;
  }

  static async start(t: TestContext, argv: string[]): Promise<Fleecing> {
    const folder = scratch(t);
    const qemu = (program: string, ...args: string[]): string => run(folder, `qemu-${program}`, ...args);
    qemu('img', 'create', '-q', '-f', 'qcow2', 'base', String(DISK));
    qemu('io', '-c', 'write -P 9 0 1M', 'base');
    qemu('img', 'create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'disk');
    qemu('io', '-c', 'write -P 1 64k 128k', '-c', 'write -z 512k 64k', 'disk');
    qemu('img', 'create', '-q', '-f', 'raw', 'kept', String(DISK));
    qemu('img', 'convert', '-O', 'raw', 'disk', 'before');
    return new Fleecing(folder, await Daemon.start(t, folder, argv));
  }

  add(options: Json): Promise<unknown> {
    return this.daemon.execute('blockdev-add', options);
  }

  async open(kept: Json): Promise<void> {
    const { daemon } = this;
    const file = (filename: string): Json => ({ driver: 'file', filename });
    await this.add({ driver: 'qcow2', 'node-name': 'disk', file: file('disk') });
    await this.add({ 'node-name': 'kept', ...kept });
    await daemon.execute('block-dirty-bitmap-add', { node: 'disk', name: 'since', granularity: 65536 });
    await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd.sock' } } });
  }

  uri(name: string): string {
    return `nbd+unix:///${name}?socket=nbd.sock`;
  }

  /** What the guest does. */
  guest(...commands: string[]): void {
    run(this.folder, 'qemu-io', '-f', 'raw', ...commands.flatMap((one) => ['-c', one]), this.uri('guest'));
  }

  export(id: string, node: string, more: Json): Promise<unknown> {
    return this.daemon.execute('block-export-add', { type: 'nbd', id, name: id, 'node-name': node, ...more });
  }

  /** The export's bytes, copied by QEMU's program. */
  read(name: string): Buffer {
    run(this.folder, 'qemu-img', 'convert', '-f', 'raw', '-O', 'raw', this.uri(name), 'read');
    return readFileSync(join(this.folder, 'read'));
  }

  /** Extents of a metadata context that are not of type 0, as nbdinfo tells them. */
  map(name: string, context: string): string[] {
    const text = run(this.folder, 'nbdinfo', `--map=${context}`, this.uri(name));
    return text.split('\n').map((line) => line.trim().replace(/\s+/g, ' '));
  }

  /** What a client that reads a stretch is told. */
  readError(name: string, offset: number): string {
    const args = ['-r', '-f', 'raw', '-c', `read ${offset} 512`, this.uri(name)];
    const { stdout, stderr } = spawnSync('qemu-io', args, { cwd: this.folder, encoding: 'utf8' });
    return /failed: .*/.exec(stdout + stderr)?.[0] ?? 'read';
  }

  get before(): Buffer {
    return readFileSync(join(this.folder, 'before'));
  }
}

for (const [name, argv] of [
  ['livedisk', OURS],
  ['QEMU', THEIRS],
] as const) {
  test(`${name}: an export of snapshot-access is the moment at which copy-before-write came`, async (t) => {
    if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img', 'qemu-io', 'nbdinfo')) return;
    const fleecing = await Fleecing.start(t, argv);
    await fleecing.open({ driver: 'file', filename: 'kept', discard: 'unmap' });
    await fleecing.add({ driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk', target: 'kept' });
    await fleecing.add({ driver: 'snapshot-access', 'node-name': 'moment', file: 'cbw', discard: 'unmap' });
    await fleecing.export('guest', 'cbw', { writable: true });
    await fleecing.export('moment', 'moment', {
      writable: true,
      bitmaps: [{ node: 'disk', name: 'since' }],
    });
    fleecing.guest('write -P 5 0 96k', 'write -z 512k 64k', 'discard 1M 64k', 'write -P 6 1984k 64k');
    assert.ok(fleecing.before.equals(fleecing.read('moment')), 'the moment');
    assert.deepEqual(fleecing.map('moment', 'qemu:dirty-bitmap:since'), [
      ...['0 131072 1 dirty', '131072 393216 0 clean', '524288 65536 1 dirty', '589824 1441792 0 clean'],
      ...['2031616 65536 1 dirty', ''],
    ]);
    // Who has read a part says that it need not be kept any more.
    run(fleecing.folder, 'qemu-io', '-f', 'raw', '-c', 'discard 0 64k', fleecing.uri('moment'));
    assert.equal(fleecing.readError('moment', 0), 'failed: Invalid argument');
    assert.equal(fleecing.readError('moment', 65536), 'read');
    assert.equal(statSync(join(fleecing.folder, 'kept')).size, DISK);
    await fleecing.daemon.execute('nbd-server-stop');
    for (const node of ['moment', 'cbw', 'kept', 'disk'])
      await fleecing.daemon.execute('blockdev-del', { 'node-name': node });
    run(fleecing.folder, 'qemu-img', 'check', 'disk');
  });

  test(`${name}: of a bitmap only what is dirty in it can be read`, async (t) => {
    if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img', 'qemu-io', 'nbdinfo')) return;
    const fleecing = await Fleecing.start(t, argv);
    await fleecing.open({ driver: 'file', filename: 'kept' });
    await fleecing.export('first', 'disk', { writable: true });
    const write = ['-f', 'raw', '-c', 'write -P 3 128k 64k', fleecing.uri('first')];
    run(fleecing.folder, 'qemu-io', ...write);
    // The client may be seen to have gone only a moment later.
    await fleecing.daemon.execute('block-export-del', { id: 'first', mode: 'hard' });
    await fleecing.daemon.event('BLOCK_EXPORT_DELETED', { id: 'first' });
    await fleecing.add({
      ...{ driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk', target: 'kept' },
      bitmap: { node: 'disk', name: 'since' },
    });
    await fleecing.add({ driver: 'snapshot-access', 'node-name': 'moment', file: 'cbw' });
    await fleecing.export('guest', 'cbw', { writable: true });
    await fleecing.export('moment', 'moment', {});
    fleecing.guest('write -P 8 0 1M');
    const pattern = ['-r', '-f', 'raw', '-c', 'read -P 3 128k 64k', fleecing.uri('moment')];
    assert.doesNotMatch(run(fleecing.folder, 'qemu-io', ...pattern), /verification failed/);
    for (const offset of [0, 64 * KiB, 192 * KiB])
      assert.equal(fleecing.readError('moment', offset), 'failed: Invalid argument');
  });
}
