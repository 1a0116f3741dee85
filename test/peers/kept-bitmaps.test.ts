import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

const KiB = 1024;
const DISK = 4 * 1024 * KiB;
const CLUSTER = 64 * KiB;
const MONITOR = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
const ROUNDS = Number(process.env['ROUNDS'] ?? 12);

type Side = 'ours' | 'theirs';

interface Told {
  name: string;
  granularity: number;
  recording: boolean;
  persistent: boolean;
  count: number;
  inconsistent?: boolean;
}

/** A storage daemon, ours or QEMU's, in a folder. */
class Storage {
  readonly #daemon: Daemon;

  private constructor(daemon: Daemon) {
    this.#daemon = daemon;
  }

  static async start(t: TestContext, folder: string, side: Side): Promise<Storage> {
    const argv = side === 'theirs' ? ['qemu-storage-daemon'] : [process.execPath, PROGRAM, 'storage-daemon'];
    return new Storage(await Daemon.start(t, folder, [...argv, ...MONITOR]));
  }

  execute(command: string, args: object): Promise<unknown> {
    return this.#daemon.execute(command, args as { [key: string]: unknown });
  }

  /** Why a command is refused, or 'done'. */
  async outcome(command: string, args: object): Promise<string> {
    const { error } = await this.#daemon.raw(command, args as { [key: string]: unknown });
    return error?.desc ?? 'done';
  }

  /** `more`: options of the node. */
  async add(name: string, image: string, more: object = {}): Promise<void> {
    const file = { driver: 'file', filename: image };
    await this.execute('blockdev-add', { driver: 'qcow2', 'node-name': name, file, ...more });
  }

  /** All that is told of a node's bitmaps, and what they hold. */
  async bitmaps(node: string): Promise<unknown[]> {
    const nodes = (await this.execute('query-named-block-nodes', { flat: true })) as Array<{
      'node-name': string;
      'dirty-bitmaps'?: Told[];
    }>;
    const told = nodes.find((one) => one['node-name'] === node)?.['dirty-bitmaps'] ?? [];
    const all: unknown[] = [];
    for (const bitmap of told.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      const hash = await this.execute('x-debug-block-dirty-bitmap-sha256', { node, name: bitmap.name });
      all.push({ ...bitmap, hash });
    }
    return all;
  }

  /** Exports a node to write to it. */
  async serve(node: string): Promise<void> {
    await this.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd.sock' } } });
    await this.execute('block-export-add', {
      id: 'e',
      type: 'nbd',
      'node-name': node,
      writable: true,
      name: 'e',
    });
  }

  async endServe(): Promise<void> {
    await this.execute('nbd-server-stop', {});
  }

  /** A mirror or an active commit has nothing left to copy. */
  async ready(device: string): Promise<void> {
    await this.#daemon.event('BLOCK_JOB_READY', { device });
  }

  async completed(device: string): Promise<void> {
    await this.#daemon.event('BLOCK_JOB_COMPLETED', { device });
  }

  async quit(): Promise<void> {
    await this.#daemon.quit();
  }

  kill(): Promise<void> {
    return this.#daemon.kill();
  }
}

function write(folder: string, ...commands: string[]): void {
  run(
    folder,
    'qemu-io',
    '-f',
    'raw',
    ...commands.flatMap((one) => ['-c', one]),
    'nbd+unix:///e?socket=nbd.sock',
  );
}

function newImage(folder: string, name: string, ...more: string[]): void {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...more, name, String(DISK));
}

/** What a check says, but for the leaks of a process that was killed. */
function check(folder: string, image: string, mayLeak = false): void {
  const { status, stdout } = spawnSync('qemu-img', ['check', image], { cwd: folder, encoding: 'utf8' });
  assert.ok(status === 0 || (mayLeak && status === 3), `${image}: ${stdout}`);
}

/** The same is done in two folders, by us and by QEMU; afterwards each reads what the other left. */
async function alike(
  t: TestContext,
  work: (storage: Storage, folder: string) => Promise<unknown>,
  images: Readonly<Record<string, readonly string[]>>,
): Promise<void> {
  const folders = { ours: scratch(t), theirs: scratch(t) };
  const answers: unknown[] = [];
  for (const side of ['theirs', 'ours'] as const) {
    for (const [image, more] of Object.entries(images)) newImage(folders[side], image, ...more);
    const storage = await Storage.start(t, folders[side], side);
    answers.push(await work(storage, folders[side]));
    await storage.quit();
  }
  assert.deepEqual(answers[1], answers[0]);
  const read: unknown[] = [];
  for (const [writer, reader] of [
    ['theirs', 'theirs'],
    ['theirs', 'ours'],
    ['ours', 'theirs'],
    ['ours', 'ours'],
  ] as const) {
    const storage = await Storage.start(t, folders[writer], reader);
    const found: unknown[] = [];
    for (const image of Object.keys(images)) {
      check(folders[writer], image);
      await storage.add('n', image, { 'read-only': true, backing: null });
      found.push(await storage.bitmaps('n'));
      await storage.execute('blockdev-del', { 'node-name': 'n' });
    }
    await storage.quit();
    read.push(found);
  }
  for (const one of read) assert.deepEqual(one, read[0]);
}

const PROGRAMS = ['qemu-storage-daemon', 'qemu-img', 'qemu-io'] as const;

test('persistent bitmaps through writes, restarts, growing, reopening: the same here and there', async (t) => {
  if (skipWithout(t, ...PROGRAMS)) return;
  await alike(
    t,
    async (s, folder) => {
      const answers: unknown[] = [];
      const say = async (): Promise<void> => void answers.push(await s.bitmaps('A'));
      await s.add('A', 'a.q');
      for (const more of [{ name: 'a' }, { name: 'fine', granularity: 512 }, { name: 'off', disabled: true }])
        await s.execute('block-dirty-bitmap-add', { node: 'A', persistent: true, ...more });
      await s.execute('block-dirty-bitmap-add', { node: 'A', name: 'passing' });
      await s.serve('A');
      write(folder, 'write 0 1k', 'write 1M 64k', 'write -z 2M 128k', `write ${DISK - 512} 512`);
      await s.endServe();
      await say();
      await s.execute('blockdev-del', { 'node-name': 'A' });
      check(folder, 'a.q');
      await s.add('A', 'a.q');
      await say();
      await s.execute('block_resize', { 'node-name': 'A', size: DISK * 2 });
      await s.serve('A');
      write(folder, `write ${DISK * 2 - 64 * KiB} 64k`);
      await s.endServe();
      await say();
      const file = { driver: 'file', filename: 'a.q' };
      for (const readOnly of [true, false, true]) {
        const node = { driver: 'qcow2', 'node-name': 'A', file: { ...file, 'read-only': readOnly } };
        await s.execute('blockdev-reopen', { options: [{ ...node, 'read-only': readOnly }] });
        await say();
        for (const verb of ['clear', 'remove', 'disable', 'enable'])
          if (readOnly) answers.push(await s.outcome(`block-dirty-bitmap-${verb}`, { node: 'A', name: 'a' }));
        const merge = { node: 'A', target: 'passing', bitmaps: ['a', 'fine'] };
        answers.push(await s.outcome('block-dirty-bitmap-merge', merge));
        answers.push(
          await s.outcome('block-dirty-bitmap-merge', { ...merge, target: 'a', bitmaps: ['passing'] }),
        );
      }
      await say();
      return answers;
    },
    { 'a.q': [] },
  );
});

test('bitmaps stay with the layer below a snapshot, and record again when something is committed into it', async (t) => {
  if (skipWithout(t, ...PROGRAMS)) return;
  await alike(
    t,
    async (s, folder) => {
      const answers: unknown[] = [];
      await s.add('A', 'a.q');
      await s.add('B', 'b.q', { backing: null });
      await s.execute('block-dirty-bitmap-add', { node: 'A', name: 'below', persistent: true });
      await s.serve('A');
      write(folder, 'write 0 64k');
      await s.execute('blockdev-snapshot', { node: 'A', overlay: 'B' });
      answers.push(await s.bitmaps('A'));
      answers.push(await s.outcome('block-dirty-bitmap-clear', { node: 'A', name: 'below' }));
      await s.execute('block-dirty-bitmap-add', { node: 'B', name: 'above', persistent: true });
      write(folder, 'write 1M 64k');
      answers.push(await s.bitmaps('B'));
      await s.execute('block-commit', { 'job-id': 'j', device: 'B', 'top-node': 'B', 'base-node': 'A' });
      await s.ready('j');
      answers.push(await s.bitmaps('A'));
      await s.execute('block-job-complete', { device: 'j' });
      await s.completed('j');
      write(folder, 'write 2M 64k');
      answers.push(await s.bitmaps('A'));
      await s.endServe();
      return answers;
    },
    { 'a.q': [], 'b.q': ['-b', 'a.q', '-F', 'qcow2'] },
  );
});

const bitmapAction = (verb: string, data: object): object => ({ type: `block-dirty-bitmap-${verb}`, data });

for (const kind of ['commit', 'copy'] as const)
  test(`bitmaps are carried to where the disk goes while a ${kind} is READY, and record there`, async (t) => {
    if (skipWithout(t, ...PROGRAMS)) return;
    const target = kind === 'commit' ? 'A' : 'T';
    await alike(
      t,
      async (s, folder) => {
        await s.add('A', 'a.q', { 'read-only': true });
        await s.add('B', 'b.q', { backing: 'A' });
        await s.add('T', 't.q');
        for (const name of ['old', 'now'])
          await s.execute('block-dirty-bitmap-add', { node: 'B', name, persistent: true });
        await s.execute('block-dirty-bitmap-disable', { node: 'B', name: 'old' });
        await s.serve('B');
        write(folder, 'write 1M 64k');
        const job = { 'job-id': 'j', device: 'B' };
        if (kind === 'commit') await s.execute('block-commit', job);
        else await s.execute('blockdev-mirror', { ...job, target, sync: 'full' });
        await s.ready('j');
        write(folder, 'write 2M 64k');
        const actions = ['old', 'now'].flatMap((name) => [
          bitmapAction('add', { node: target, name, persistent: true, disabled: name === 'old' }),
          bitmapAction('merge', { node: target, target: name, bitmaps: [{ node: 'B', name }] }),
        ]);
        const answers: unknown[] = [await s.outcome('transaction', { actions })];
        write(folder, 'write 3M 64k');
        await s.execute('block-job-complete', { device: 'j' });
        await s.completed('j');
        write(folder, 'write 3M 128k');
        answers.push(await s.bitmaps(target));
        await s.endServe();
        return answers;
      },
      { 'a.q': [], 'b.q': ['-b', 'a.q', '-F', 'qcow2'], 't.q': [] },
    );
  });

test('bitmaps of a backing image are merged and removed while it is reopened to be written', async (t) => {
  if (skipWithout(t, ...PROGRAMS)) return;
  await alike(
    t,
    async (s, folder) => {
      await s.add('A', 'a.q');
      for (const name of ['older', 'newer'])
        await s.execute('block-dirty-bitmap-add', { node: 'A', name, persistent: true });
      await s.serve('A');
      write(folder, 'write 0 64k');
      await s.execute('block-dirty-bitmap-clear', { node: 'A', name: 'older' });
      await s.endServe();
      await s.execute('blockdev-del', { 'node-name': 'A' });
      await s.execute('blockdev-add', {
        ...{ driver: 'file', 'node-name': 'F', filename: 'a.q', 'auto-read-only': true },
      });
      const base = (readOnly: boolean): object => ({
        ...{ driver: 'qcow2', 'node-name': 'A', file: 'F', 'read-only': readOnly },
      });
      await s.execute('blockdev-add', base(true));
      await s.add('B', 'b.q', { backing: 'A' });
      await s.execute('block-dirty-bitmap-add', { node: 'B', name: 'newer', persistent: true });
      await s.serve('B');
      write(folder, 'write 1M 64k');
      const actions = [
        bitmapAction('merge', { node: 'A', target: 'older', bitmaps: ['newer'] }),
        bitmapAction('remove', { node: 'A', name: 'newer' }),
        bitmapAction('remove', { node: 'B', name: 'newer' }),
      ];
      const answers: unknown[] = [];
      for (const readOnly of [true, false]) {
        await s.execute('blockdev-reopen', { options: [base(readOnly)] });
        answers.push(await s.outcome('transaction', { actions }));
      }
      await s.execute('blockdev-reopen', { options: [base(true)] });
      answers.push(await s.bitmaps('A'), await s.bitmaps('B'));
      await s.endServe();
      return answers;
    },
    { 'a.q': [], 'b.q': ['-b', 'a.q', '-F', 'qcow2'] },
  );
});

test('in a transaction that fails nothing becomes of persistent bitmaps', async (t) => {
  if (skipWithout(t, ...PROGRAMS)) return;
  await alike(
    t,
    async (s, folder) => {
      const answers: unknown[] = [];
      await s.add('A', 'a.q');
      for (const name of ['a', 'b', 'c'])
        await s.execute('block-dirty-bitmap-add', { node: 'A', name, persistent: true });
      await s.serve('A');
      write(folder, 'write 0 64k');
      await s.endServe();
      await s.execute('blockdev-del', { 'node-name': 'A' });
      await s.add('A', 'a.q');
      const actions = [
        bitmapAction('remove', { node: 'A', name: 'a' }),
        bitmapAction('add', { node: 'A', name: 'a', persistent: true, granularity: 512 }),
        bitmapAction('clear', { node: 'A', name: 'b' }),
        bitmapAction('disable', { node: 'A', name: 'c' }),
        bitmapAction('merge', { node: 'A', target: 'a', bitmaps: ['c'] }),
      ];
      const abort = { type: 'abort', data: {} };
      answers.push(await s.outcome('transaction', { actions: [...actions, abort] }));
      answers.push(await s.bitmaps('A'));
      answers.push(await s.outcome('transaction', { actions }));
      answers.push(await s.bitmaps('A'));
      return answers;
    },
    { 'a.q': [] },
  );
});

/** A history from a seed: writes, bitmap commands, closes and kills, each by either side; the oracle is what was written. */
class History {
  readonly #t: TestContext;
  readonly #folder: string;
  #state: number;
  /** Granules that each bitmap must have at least; those that a crash has made inconsistent have none. */
  readonly #due = new Map<string, Set<number>>();
  readonly #lost = new Set<string>();

  constructor(t: TestContext, seed: number) {
    this.#t = t;
    this.#folder = scratch(t);
    this.#state = seed;
    newImage(this.#folder, 'a.q');
  }

  #below(bound: number): number {
    this.#state = (this.#state * 1103515245 + 12345) % 2147483648;
    return Math.floor(this.#state / 65536) % bound;
  }

  async run(rounds: number): Promise<void> {
    for (let round = 0; round < rounds; round++) {
      const storage = await Storage.start(this.#t, this.#folder, this.#below(3) === 0 ? 'theirs' : 'ours');
      await storage.add('A', 'a.q');
      await this.#compare(storage);
      for (let steps = this.#below(5); steps > 0; steps--) await this.#step(storage);
      if (this.#below(3) === 0) {
        await storage.kill();
        await this.#killed();
      } else await storage.quit();
      check(this.#folder, 'a.q', true);
    }
  }

  async #step(storage: Storage): Promise<void> {
    const name = `b${this.#below(4)}`;
    const bits = { node: 'A', name };
    const due = this.#due.get(name);
    switch (this.#below(6)) {
      case 0:
        if (due || this.#lost.has(name)) return;
        await storage.execute('block-dirty-bitmap-add', { ...bits, persistent: true });
        this.#due.set(name, new Set());
        return;
      case 1:
        if (!due && !this.#lost.has(name)) return;
        await storage.execute('block-dirty-bitmap-remove', bits);
        this.#due.delete(name);
        this.#lost.delete(name);
        return;
      case 2:
        if (!due) return;
        await storage.execute('block-dirty-bitmap-clear', bits);
        due.clear();
        return;
      default:
        await storage.serve('A');
        this.#write();
        await storage.endServe();
    }
  }

  #write(): void {
    const granule = this.#below(DISK / CLUSTER);
    write(this.#folder, `write -P ${1 + this.#below(250)} ${granule * CLUSTER} 4k`);
    for (const due of this.#due.values()) due.add(granule);
  }

  /** All that were in memory are inconsistent now; those that no image had yet are gone. */
  async #killed(): Promise<void> {
    const info = JSON.parse(run(this.#folder, 'qemu-img', 'info', '--output=json', 'a.q')) as {
      'format-specific': { data: { bitmaps?: Array<{ name: string; flags: string[] }> } };
    };
    const found = info['format-specific'].data.bitmaps ?? [];
    this.#due.clear();
    this.#lost.clear();
    for (const { name, flags } of found) {
      assert.ok(flags.includes('in-use'), `${name} is said to be consistent after a crash`);
      this.#lost.add(name);
    }
  }

  async #compare(storage: Storage): Promise<void> {
    const told = (await storage.bitmaps('A')) as Told[];
    const consistent = told.filter(({ inconsistent }) => inconsistent !== true);
    assert.deepEqual(
      consistent.map(({ name, count }) => [name, count / CLUSTER]),
      [...this.#due].map(([name, due]) => [name, due.size]).sort(),
    );
    assert.deepEqual(
      told.filter(({ inconsistent }) => inconsistent).map(({ name }) => name),
      [...this.#lost].sort(),
    );
  }
}

test('random histories of writes, commands, closes and kills on both sides: no bit is missing unseen', async (t) => {
  if (skipWithout(t, ...PROGRAMS)) return;
  const seed = Number(process.env['SEED'] ?? Math.floor(Math.random() * 2 ** 31));
  t.diagnostic(`SEED=${seed} ROUNDS=${ROUNDS}`);
  await new History(t, seed).run(ROUNDS);
});

test('QEMU and we export the same bitmap, as our own programs and as its', async (t) => {
  if (skipWithout(t, ...PROGRAMS)) return;
  const folder = scratch(t);
  newImage(folder, 'a.q');
  run(folder, 'qemu-img', 'bitmap', '--add', 'a.q', 'bits');
  run(folder, 'qemu-io', '-c', 'write 64k 128k', '-c', 'write 1M 64k', 'a.q');
  run(folder, 'qemu-img', 'bitmap', '--disable', 'a.q', 'bits');
  const maps: string[] = [];
  for (const [side, argv] of [
    ['theirs', ['qemu-nbd']],
    ['ours', [process.execPath, PROGRAM, 'nbd']],
  ] as const) {
    const [program = '', ...words] = argv;
    const socket = join(folder, side);
    run(folder, program, ...words, '-f', 'qcow2', '-r', '-k', socket, '-B', 'bits', '--fork', 'a.q');
    const options = `driver=nbd,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:dirty-bitmap:bits`;
    maps.push(run(folder, 'qemu-img', 'map', '--output=json', '--image-opts', options));
  }
  assert.equal(maps[1], maps[0]);
  assert.match(maps[0] ?? '', /"start": 65536, "length": 131072/);
});
