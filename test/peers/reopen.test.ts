import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { Engine } from '../../src/monitor/engine.js';
import type { JsonObject } from '../../src/schema/types.js';
import { Daemon, run, scratch } from './daemon.js';

const missing = ['qemu-storage-daemon', 'qemu-img'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;

type Options = { [key: string]: unknown };
type Info = { [key: string]: unknown };

const GENERATED = /#block\d+/g;

/** A qemu-storage-daemon and an engine of ours, in folders with the same images. */
class Sides {
  readonly #qemu: Daemon;
  readonly #engine: Engine;

  private constructor(qemu: Daemon, engine: Engine) {
    this.#qemu = qemu;
    this.#engine = engine;
  }

  static async start(t: TestContext): Promise<Sides> {
    const folder = scratch(t);
    const [ours, theirs] = [join(folder, 'ours'), join(folder, 'theirs')];
    for (const side of [ours, theirs]) {
      mkdirSync(side);
      const create = (...words: string[]): string => run(side, 'qemu-img', 'create', '-q', '-f', ...words);
      for (const name of ['a.q', 'b.q']) create('qcow2', name, '4M');
      create('qcow2', '-b', 'a.q', '-F', 'qcow2', 'o.q');
      create('qcow2', '-b', 'o.q', '-F', 'qcow2', 't.q');
      for (const name of ['r.raw', 's.raw']) create('raw', name, '4M');
    }
    const start = process.cwd();
    process.chdir(ours);
    t.after(() => process.chdir(start));
    const monitor = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
    const qemu = await Daemon.start(t, theirs, ['qemu-storage-daemon', ...monitor]);
    const engine = new Engine({ host: createRealHost(), drivers: allDrivers, kind: 'storage-daemon' });
    t.after(() => engine.close());
    return new Sides(qemu, engine);
  }

  async #both(command: string, args: Options): Promise<[unknown, unknown]> {
    const theirs = await this.#qemu.raw(command, await this.#named(args, 'theirs'));
    const ours = await this.#engine.hub
      .execute(command, (await this.#named(args, 'ours')) as JsonObject)
      .catch((error: unknown) => (error as Error).message);
    return [ours, theirs.error ? theirs.error.desc : theirs.return];
  }

  /** "{FILE DRIVER}" stands for the generated name of such a node. */
  async #named(args: Options, side: 'ours' | 'theirs'): Promise<Options> {
    const text = JSON.stringify(args);
    if (!text.includes('"{')) return args;
    const nodes = await this.#nodes(side);
    return JSON.parse(
      text.replace(/\{([\w.]+) ([\w-]+)\}/g, (_, file, driver) => {
        const found = nodes.find((node) => node['file'] === file && node['drv'] === driver);
        return found?.['node-name'] as string;
      }),
    ) as Options;
  }

  async #nodes(side: 'ours' | 'theirs'): Promise<Info[]> {
    const query = 'query-named-block-nodes';
    if (side === 'ours') return (await this.#engine.hub.execute(query, { flat: true })) as Info[];
    return (await this.#qemu.execute(query, { flat: true })) as Info[];
  }

  async add(...nodes: Options[]): Promise<void> {
    for (const node of nodes) {
      const [ours, theirs] = await this.#both('blockdev-add', node);
      assert.deepEqual([ours, theirs], [{}, {}], JSON.stringify(node));
    }
  }

  async alike(command: string, args: Options): Promise<void> {
    const what = `${command} ${JSON.stringify(args)}`;
    const [ours, theirs] = await this.#both(command, args);
    const plain = (answer: unknown): string => JSON.stringify(answer).replace(GENERATED, '#block');
    assert.equal(plain(ours), plain(theirs), what);
    assert.deepEqual(await this.#states('ours'), await this.#states('theirs'), `after ${what}`);
  }

  async reopen(...nodes: Options[]): Promise<void> {
    await this.alike('blockdev-reopen', { options: nodes });
  }

  async #states(side: 'ours' | 'theirs'): Promise<unknown[]> {
    const nodes = await this.#nodes(side);
    const told = nodes.map((node) => [
      String(node['node-name']).replace(GENERATED, '#block'),
      ...['drv', 'ro', 'detect_zeroes', 'file', 'backing_file'].map((key) => node[key] ?? null),
      node['cache'],
    ]);
    return told.map((one) => JSON.stringify(one)).sort();
  }
}

const file = (name: string, filename: string, more: Options = {}): Options => ({
  ...{ driver: 'file', 'node-name': name, filename },
  ...more,
});
const qcow2 = (name: string, below: unknown, more: Options = {}): Options => ({
  ...{ driver: 'qcow2', 'node-name': name, file: below },
  ...more,
});

test('blockdev-reopen: which nodes, and which options of theirs may change', { skip }, async (t) => {
  const sides = await Sides.start(t);
  await sides.add(file('f', 'a.q'), qcow2('d', 'f'), { driver: 'null-co', 'node-name': 'n', size: 4096 });
  await sides.alike('blockdev-reopen', {});
  await sides.alike('blockdev-reopen', { options: {} });
  for (const wrong of [
    {},
    { driver: 'qcow2', file: 'f' },
    qcow2('nope', 'f'),
    qcow2('', 'f'),
    { driver: 'qcow2', 'node-name': 'd' },
    { driver: 'raw', 'node-name': 'd', file: 'f' },
    { ...qcow2('d', 'f'), foo: 1 },
    { ...qcow2('d', 'f'), driver: 'foo' },
  ])
    await sides.reopen(wrong);
  for (const more of [
    {},
    { 'read-only': true },
    {},
    { cache: { direct: true } },
    { cache: { 'no-flush': true } },
    { 'auto-read-only': true },
    { discard: 'unmap', 'detect-zeroes': 'unmap' },
    { 'detect-zeroes': 'unmap' },
    { 'force-share': true },
    { 'force-share': true, 'read-only': true },
    { 'force-share': false },
    { 'l2-cache-size': 65536 },
    { 'cache-size': 65536, 'l2-cache-size': 6553600 },
    { 'cache-size': 1048576, 'l2-cache-size': 65536, 'refcount-cache-size': 262144 },
    {},
  ])
    await sides.reopen(qcow2('d', 'f', more));
  for (const more of [
    {},
    { filename: 'b.q' },
    { filename: './a.q' },
    { 'read-only': true },
    { cache: { direct: true } },
    { aio: 'threads' },
    { locking: 'auto' },
    { 'auto-read-only': true },
    { 'force-share': true },
    { discard: 'unmap', 'detect-zeroes': 'on' },
    {},
  ])
    await sides.reopen(file('f', 'a.q', more));
  await sides.reopen(file('f', 'a.q', { 'read-only': true }), qcow2('d', 'f', { 'read-only': true }));
  await sides.reopen(qcow2('d', 'f', { 'read-only': false }));
  await sides.reopen(qcow2('d', 'f'), file('f', 'a.q'));
  await sides.reopen(file('f', 'a.q'), file('f', 'b.q'));
  await sides.reopen(file('f', 'b.q'), file('f', 'a.q'));
  await sides.reopen(file('f', 'a.q', { 'detect-zeroes': 'on' }), file('f', 'a.q'));
  const none = { driver: 'null-co', 'node-name': 'n', size: 4096 };
  for (const more of [{}, { size: 8192 }, { 'read-only': true }, { 'read-zeroes': true }])
    await sides.reopen({ ...none, ...more });
  await sides.reopen({ driver: 'null-co', 'node-name': 'n' });
});

test('blockdev-reopen: backing files', { skip }, async (t) => {
  const sides = await Sides.start(t);
  await sides.add(
    file('fa', 'a.q', { 'read-only': true }),
    file('fo', 'o.q'),
    file('ft', 't.q'),
    file('fb', 'b.q'),
  );
  await sides.add(
    qcow2('a', 'fa', { 'read-only': true }),
    qcow2('o', 'fo', { backing: 'a' }),
    qcow2('b', 'fb'),
  );
  const o = (more: Options): Options => qcow2('o', 'fo', more);
  const b = (more: Options): Options => qcow2('b', 'fb', more);
  for (const backing of [
    undefined,
    'a',
    null,
    null,
    undefined,
    'b',
    'o',
    'nope',
    '',
    { driver: 'qcow2', file: 'fb' },
    { driver: 'qcow2', 'node-name': 'b', file: 'fb' },
    'a',
  ])
    await sides.reopen(o(backing === undefined ? {} : { backing }));
  await sides.reopen(qcow2('o', 'fa', { backing: 'a' }));
  await sides.reopen(qcow2('o', 'fb', { backing: 'a' }));
  await sides.reopen(b({ backing: 'o' }), o({ backing: 'a' }));
  await sides.reopen(o({ backing: 'b' }), b({ backing: null }));
  await sides.reopen(o({ backing: 'b' }), b({ backing: 'o' }));
  await sides.reopen(b({ backing: null }), o({ backing: 'b' }));
  await sides.reopen(o({ backing: 'a', 'read-only': true }), b({}), qcow2('nope', 'fb'));
});

test('blockdev-reopen: children that a node’s options brought follow it', { skip }, async (t) => {
  const sides = await Sides.start(t);
  await sides.add(file('ft', 't.q'), file('fb', 'b.q'), qcow2('b', 'fb'), qcow2('t', 'ft'));
  const tt = (more: Options): Options => qcow2('t', 'ft', more);
  const below = { driver: 'file', filename: 'o.q' };
  await sides.reopen(tt({}));
  await sides.reopen(tt({ backing: '{o.q qcow2}' }));
  await sides.reopen(tt({ backing: '{o.q qcow2}', 'read-only': true }));
  await sides.reopen(tt({ backing: '{o.q qcow2}', cache: { direct: true } }));
  await sides.reopen(tt({ backing: '{o.q qcow2}' }));
  await sides.reopen(tt({ backing: { driver: 'qcow2', file: below } }));
  await sides.reopen(tt({ backing: { driver: 'qcow2', file: below, backing: null } }));
  await sides.reopen(tt({ backing: 'b' }));
  await sides.reopen(tt({ backing: null }));
  await sides.alike('blockdev-del', { 'node-name': 't' });
  await sides.add(tt({ backing: { driver: 'qcow2', 'node-name': 'ob', file: below } }));
  for (const backing of [
    undefined,
    { driver: 'qcow2', file: below },
    { driver: 'qcow2', 'node-name': 'ob', file: below },
    { driver: 'raw', 'node-name': 'ob', file: below },
    { driver: 'qcow2', 'node-name': 'xx', file: below, backing: null },
    { driver: 'qcow2', 'node-name': 'ob', file: below, backing: null },
    'ob',
  ])
    await sides.reopen(tt(backing === undefined ? {} : { backing }));
  await sides.reopen(tt({ backing: 'ob', cache: { direct: true } }));
  await sides.reopen(tt({ backing: 'ob' }));
  await sides.reopen(qcow2('ob', below));
  await sides.reopen(qcow2('ob', below, { backing: null, 'read-only': true }));
  await sides.reopen(tt({ backing: 'b' }));
  await sides.reopen(tt({ backing: 'ob' }));
});

test('blockdev-reopen: a file that a node’s options brought', { skip }, async (t) => {
  const sides = await Sides.start(t);
  const below = { driver: 'file', filename: 'b.q', locking: 'off' };
  await sides.add(file('ft', 't.q'), qcow2('t', below, { backing: null }));
  for (const wanted of [
    '{b.q file}',
    below,
    { driver: 'file', filename: 'b.q' },
    { ...below, filename: './b.q' },
    { ...below, locking: 'auto' },
    { ...below, 'node-name': 'zz' },
    { ...below, discard: 'ignore' },
    { ...below, 'detect-zeroes': 'on' },
    '{b.q file}',
    { ...below, 'read-only': true },
    { ...below, cache: { direct: true } },
    below,
  ])
    await sides.reopen(qcow2('t', wanted));
  await sides.reopen(qcow2('t', below, { 'read-only': true }));
  await sides.reopen(qcow2('t', { ...below, 'read-only': false }, { 'read-only': true }));
  await sides.reopen(qcow2('t', below, { cache: { direct: true } }));
  await sides.reopen(qcow2('t', '{b.q file}'));
  await sides.reopen(qcow2('t', below));
});

test('blockdev-reopen: windows of raw images, and filters', { skip }, async (t) => {
  const sides = await Sides.start(t);
  await sides.add(file('fr', 'r.raw'), file('fs', 's.raw'), { driver: 'raw', 'node-name': 'r', file: 'fr' });
  const raw = (more: Options): Options => ({ driver: 'raw', 'node-name': 'r', file: 'fr', ...more });
  for (const more of [
    {},
    { offset: 1048576 },
    { size: 1000 },
    { size: 512 },
    { size: 8388608 },
    { offset: 8388608 },
    { offset: 512, size: 1024, file: 'fs' },
    {},
    { backing: null },
    { file: 'r' },
    { file: 'nope' },
    { file: '' },
    { file: { driver: 'file', filename: 'r.raw' } },
  ])
    await sides.reopen(raw(more));
  await sides.add({ driver: 'blkdebug', 'node-name': 'bd', image: 'r', align: 512 });
  const debug = { driver: 'blkdebug', 'node-name': 'bd', image: 'r', align: 512 };
  for (const more of [
    {},
    { align: 1024 },
    { image: 'fs' },
    { image: { driver: 'null-co' } },
    { 'inject-error': [{ event: 'none' }] },
  ])
    await sides.reopen({ ...debug, ...more });
  await sides.reopen({ driver: 'blkdebug', 'node-name': 'bd', image: 'r' });
});

test('blockdev-reopen: users and jobs', { skip }, async (t) => {
  const sides = await Sides.start(t);
  await sides.add(file('fa', 'a.q'), file('fo', 'o.q'), file('ft', 't.q'), file('fb', 'b.q'));
  await sides.add(qcow2('a', 'fa'), qcow2('o', 'fo', { backing: 'a' }), qcow2('t', 'ft', { backing: 'o' }));
  const addr = { type: 'unix', data: { path: 'nbd.sock' } };
  await sides.alike('nbd-server-start', { addr });
  await sides.alike('block-export-add', { type: 'nbd', id: 'e', 'node-name': 't', writable: true });
  const top = (more: Options): Options => qcow2('t', 'ft', more);
  await sides.reopen(top({ backing: 'o', 'read-only': true }));
  await sides.reopen(top({ backing: 'o', 'detect-zeroes': 'on' }));
  await sides.alike('block-stream', {
    ...{ 'job-id': 's', device: 't', 'base-node': 'a', speed: 1 },
    ...{ 'auto-finalize': false, 'filter-node-name': 'cor' },
  });
  for (const backing of ['o', 'a', null]) await sides.reopen(top({ backing }));
  await sides.reopen(qcow2('o', 'fo', { backing: 'a' }));
});
