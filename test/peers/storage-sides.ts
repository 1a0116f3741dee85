import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { Engine } from '../../src/monitor/engine.js';
import type { JsonObject } from '../../src/schema/types.js';
import { Daemon, run, scratch } from './daemon.js';

export type Options = { [key: string]: unknown };
type Info = { [key: string]: unknown };

const GENERATED = /#block\d+/g;

/** A qemu-storage-daemon and an engine of ours, in folders with the same images. */
export class Sides {
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
      run(side, 'qemu-io', '-c', 'write -P 1 0 4M', 'a.q');
      run(side, 'qemu-io', '-c', 'write -P 2 0 2M', 'o.q');
      run(side, 'qemu-io', '-c', 'write -P 3 0 2M', 't.q');
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

  async both(command: string, args: Options): Promise<[unknown, unknown]> {
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
      const [ours, theirs] = await this.both('blockdev-add', node);
      assert.deepEqual([ours, theirs], [{}, {}], JSON.stringify(node));
    }
  }

  async alike(command: string, args: Options): Promise<void> {
    const what = `${command} ${JSON.stringify(args)}`;
    const [ours, theirs] = await this.both(command, args);
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
