import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { Daemon, run, scratch, skipWithout } from './daemon.js';

type Options = { [key: string]: unknown };
type Answer = { return?: unknown; error?: { class: string; desc: string } };

/** The same images in two folders, a livedisk in one, a QEMU in the other; both get the same commands. */
class DaemonPair {
  readonly #folders: readonly string[];
  readonly #daemons: readonly Daemon[];

  private constructor(folders: readonly string[], daemons: readonly Daemon[]) {
    this.#folders = folders;
    this.#daemons = daemons;
  }

  static async start(t: TestContext, prepare: (folder: string) => void): Promise<DaemonPair> {
    const folder = scratch(t);
    const folders = ['ours', 'theirs'].map((name) => join(folder, name));
    for (const each of folders) mkdirSync(each);
    for (const each of folders) prepare(each);
    const [ours = '', theirs = ''] = folders;
    const bare = ['-machine', 'none', '-nodefaults', '-display', 'none'];
    const qemu = ['qemu-system-x86_64', ...bare, '-qmp', 'unix:qmp.sock,server=on,wait=off'];
    return new DaemonPair(folders, [await Daemon.livedisk(t, ours), await Daemon.start(t, theirs, qemu)]);
  }

  /** The answers of both, times left out. */
  async #answers(command: string, args: Options): Promise<unknown[]> {
    const answers: unknown[] = [];
    for (const daemon of this.#daemons) {
      const { return: value, error } = (await daemon.raw(command, args)) as Answer;
      answers.push(error ?? value);
    }
    return answers;
  }

  async alike(command: string, args: Options): Promise<unknown> {
    const [ours, theirs] = await this.#answers(command, args);
    assert.deepEqual(ours, theirs, `${command} ${JSON.stringify(args)}`);
    return ours;
  }

  /** A qemu-io command on a node; both print the same. */
  async io(node: string, command: string): Promise<void> {
    const before = this.#daemons.map((daemon) => daemon.output.length);
    await this.alike('human-monitor-command', { 'command-line': `qemu-io ${node} "${command}"` });
    const [ours, theirs] = this.#daemons.map((daemon, i) =>
      daemon.output
        .slice(before[i])
        .replace(/ops; .*/g, 'ops')
        .replaceAll('\r', ''),
    );
    assert.equal(ours, theirs, `${node}: ${command}`);
  }

  /** Members of each node's info that tell how it is open. */
  async modes(): Promise<void> {
    const [ours, theirs] = (await this.#answers('query-named-block-nodes', { flat: true })) as Options[][];
    const members = (nodes: Options[] | undefined): unknown =>
      nodes
        ?.filter((node) => !String(node['node-name']).startsWith('#'))
        .map((node) => [node['node-name'], node['ro'], node['detect_zeroes'], node['cache']]);
    assert.deepEqual(members(ours), members(theirs));
  }

  /** Where an image has data; as raw: where its file has. */
  maps(name: string, format: string): void {
    const [ours, theirs] = this.#folders.map((folder) =>
      run(folder, 'qemu-img', 'map', '-U', '--output=json', '-f', format, name),
    );
    assert.equal(ours, theirs, `map of ${name} as ${format}`);
  }
}

const DISCARDS = [undefined, 'ignore', 'unmap'];
const DETECT = [undefined, 'off', 'on', 'unmap'];

function given(options: Options): Options {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

for (const driver of ['raw', 'qcow2']) {
  test(`${driver}: discards and zeroes at every level do what QEMU's do`, async (t) => {
    if (skipWithout(t, 'qemu-system-x86_64', 'qemu-img')) return;
    const cases = DISCARDS.flatMap((top) =>
      DISCARDS.flatMap((below) =>
        DETECT.map((detect, i) => ({ name: `${top}-${below}-${i}`, top, below, detect })),
      ),
    );
    const pair = await DaemonPair.start(t, (folder) => {
      run(folder, 'qemu-img', 'create', '-q', '-f', driver, 'image', '1M');
      run(folder, 'qemu-io', '-f', driver, '-c', 'write -P 7 0 1M', 'image');
      for (const { name } of cases) copyFileSync(join(folder, 'image'), join(folder, name));
    });
    for (const [i, { name, top, below, detect }] of cases.entries()) {
      const file = given({ driver: 'file', filename: name, discard: below });
      const node = `n${i}`;
      const added = await pair.alike('blockdev-add', {
        ...given({ driver, 'node-name': node, discard: top, 'detect-zeroes': detect }),
        file,
      });
      if (!isDeepEmpty(added)) continue;
      for (const command of [
        'discard 0 64k',
        'read -P 7 0 64k',
        'read -P 0 0 64k',
        'write -z 64k 64k',
        'write -z -u 128k 64k',
        'write -P 0 192k 64k',
        'write -P 0 256k 4k',
        'read -P 0 64k 196k',
        'flush',
      ])
        await pair.io(node, command);
      await pair.modes();
      pair.maps(name, 'raw');
      pair.maps(name, driver);
    }
  });
}

function isDeepEmpty(value: unknown): boolean {
  return typeof value === 'object' && value !== null && Object.keys(value).length === 0;
}

const BOOLEANS = [undefined, true, false];

test('read-only, auto-read-only and force-share at every level do what QEMU’s do', async (t) => {
  if (skipWithout(t, 'qemu-system-x86_64', 'qemu-img')) return;
  const pair = await DaemonPair.start(t, (folder) => {
    for (const name of ['w', 'ro']) run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.q`, '1M');
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', 'w.q', 'over.q');
    run(folder, 'chmod', '0444', 'ro.q');
  });
  let count = 0;
  for (const filename of ['w.q', 'over.q'])
    for (const readOnly of BOOLEANS)
      for (const auto of BOOLEANS)
        for (const share of [undefined, true])
          for (const below of [
            {},
            { 'read-only': true },
            { 'read-only': false },
            { 'auto-read-only': true, 'read-only': false },
            { 'force-share': true },
          ]) {
            const node = `n${count++}`;
            const file = { driver: 'file', 'node-name': `${node}f`, filename, ...below };
            const options = given({ 'read-only': readOnly, 'auto-read-only': auto, 'force-share': share });
            const added = await pair.alike('blockdev-add', {
              driver: 'qcow2',
              'node-name': node,
              ...options,
              file,
            });
            if (!isDeepEmpty(added)) continue;
            await pair.modes();
            await pair.io(node, 'write 0 64k');
            await pair.io(node, 'read 0 64k');
            await pair.alike('blockdev-del', { 'node-name': node });
          }
});
