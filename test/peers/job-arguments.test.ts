import assert from 'node:assert/strict';
import { test } from 'node:test';
import { run, scratch, skipWithout } from './daemon.js';
import { type Json, Pair } from './fuzz-pair.js';

/** A command that would start a job, and one wrong argument each. */
const COMMANDS: ReadonlyArray<{
  command: string;
  base: Json;
  wrong: ReadonlyArray<readonly [string, unknown]>;
}> = [
  {
    command: 'blockdev-mirror',
    base: { device: 'd', target: 'v', sync: 'full', 'job-id': 'k' },
    wrong: [
      ...(['gone', 'c', 'busy-source'] as const).map((name) => ['device', name] as const),
      ...(['gone', 'busy-target', 'a', 'd'] as const).map((name) => ['target', name] as const),
      ['granularity', 3],
      ['granularity', 2 ** 30],
      ['buf-size', -1],
      ...(['gone', 'c', 'other'] as const).map((name) => ['replaces', name] as const),
      ['sync', 'bitmap'],
      ['sync', 'incremental'],
      ...names(),
    ],
  },
  {
    command: 'blockdev-backup',
    base: { device: 'd', target: 'v', sync: 'full', 'job-id': 'k' },
    wrong: [
      ...(['gone', 'busy-source'] as const).map((name) => ['device', name] as const),
      ...(['gone', 'busy-target', 'short', 'd'] as const).map((name) => ['target', name] as const),
      ['bitmap', 'gone'],
      ['bitmap-mode', 'never'],
      ['sync', 'bitmap'],
      ['sync', 'incremental'],
      ...names(),
    ],
  },
  {
    command: 'block-stream',
    base: { device: 'd', 'job-id': 'k' },
    wrong: [
      ['device', 'gone'],
      ['device', 'busy-source'],
      ['base', 'gone'],
      ...(['gone', 'other', 'd'] as const).map((name) => ['base-node', name] as const),
      ['bottom', 'gone'],
      ['bottom', 'other'],
      ['backing-file', 'x'],
      ...names(),
    ],
  },
  {
    command: 'block-commit',
    base: { device: 'd', 'job-id': 'k' },
    wrong: [
      ...(['gone', 'c', 'busy-source'] as const).map((name) => ['device', name] as const),
      ['top', 'gone'],
      ...(['gone', 'other', 'a'] as const).map((name) => ['top-node', name] as const),
      ['base', 'gone'],
      ...(['gone', 'other', 'd'] as const).map((name) => ['base-node', name] as const),
      ['backing-file', 'x'],
      ...names(),
    ],
  },
];

/** What is found when the job is made. */
function names(): Array<readonly [string, unknown]> {
  return [
    ['job-id', '1st'],
    ['job-id', 'running'],
    ['speed', -1],
    ['filter-node-name', 'a'],
    ['filter-node-name', '1st'],
  ];
}

function makeImages(cwd: string): void {
  const create = (...args: string[]): void => void run(cwd, 'qemu-img', 'create', '-q', ...args);
  for (const [name, backing] of [['a'], ['b', 'a'], ['c', 'b'], ['d', 'c']] as const)
    create('-f', 'qcow2', ...(backing ? ['-b', backing, '-F', 'qcow2'] : []), name, '1M');
  for (const name of ['v', 'busy-target']) create('-f', 'raw', name, '1M');
  for (const name of ['other', 'busy-source']) create('-f', 'qcow2', name, '1M');
  create('-f', 'raw', 'short', '512k');
}

async function openImages(pair: Pair): Promise<void> {
  const add = async (name: string, driver: string, more: Json = {}): Promise<void> => {
    const file = { driver: 'file', filename: name };
    await pair.execute('blockdev-add', { driver, 'node-name': name, file, ...more });
  };
  await add('a', 'qcow2');
  for (const [name, backing] of [
    ['b', 'a'],
    ['c', 'b'],
    ['d', 'c'],
  ] as const)
    // prettier-ignore
    await add(name, 'qcow2', { backing });
  for (const name of ['v', 'busy-target', 'short']) await add(name, 'raw');
  for (const name of ['other', 'busy-source']) await add(name, 'qcow2');
  await pair.execute('block-dirty-bitmap-add', { node: 'd', name: 'busy' });
}

test('of two wrong arguments, QEMU and livedisk tell the same', async (t) => {
  if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img')) return;
  const pair = await Pair.start(t, scratch(t), makeImages);
  await openImages(pair);
  const busy = { device: 'busy-source', target: 'busy-target', sync: 'full', 'job-id': 'running' };
  const started = await pair.execute('blockdev-mirror', busy);
  assert.deepEqual([started.theirs, started.ours], [{ return: {} }, { return: {} }]);
  let count = 0;
  for (const { command, base, wrong } of COMMANDS) {
    for (const [i, [key, value]] of wrong.entries()) {
      for (const [otherKey, otherValue] of wrong.slice(i)) {
        const args = { ...base, [otherKey]: otherValue, [key]: value };
        const { theirs, ours } = await pair.execute(command, args);
        // Alone, some are right: a bitmap without its mode is not.
        assert.ok(theirs.error, `${command} ${JSON.stringify(args)}`);
        assert.deepEqual(ours, theirs, `${command} ${JSON.stringify(args)}`);
        count++;
      }
    }
  }
  assert.ok(count > 400);
});

test('of a bitmap that a job has, QEMU and livedisk tell the same, whatever else is wrong', async (t) => {
  if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img')) return;
  const pair = await Pair.start(t, scratch(t), makeImages);
  await openImages(pair);
  const holder = { device: 'd', target: 'busy-target', sync: 'incremental', bitmap: 'busy' };
  await pair.execute('blockdev-backup', { ...holder, 'job-id': 'running', 'auto-finalize': false });
  for (const sync of ['full', 'top', 'none', 'incremental', 'bitmap'])
    for (const mode of [undefined, 'on-success', 'never', 'always'])
      for (const target of ['v', 'short', 'busy-target', 'd', 'gone']) {
        const args = { device: 'd', target, sync, bitmap: 'busy', 'job-id': 'k', 'bitmap-mode': mode };
        const { theirs, ours } = await pair.execute('blockdev-backup', args);
        assert.ok(theirs.error, JSON.stringify(args));
        assert.deepEqual(ours, theirs, JSON.stringify(args));
      }
});
