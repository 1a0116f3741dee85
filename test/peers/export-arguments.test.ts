import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { run, scratch, skipWithout } from './daemon.js';
import { type Json, Pair } from './fuzz-pair.js';

const RIGHT = { type: 'nbd', id: 'e', 'node-name': 'a', name: 'free' };
const LONG = 'x'.repeat(4097);

/** Arguments that are wrong, some of them for want of a server. */
const WRONG: ReadonlyArray<Json> = [
  { id: '1st' },
  { id: 'taken' },
  { 'node-name': 'gone' },
  { 'node-name': 'read-only', writable: true },
  { 'node-name': 'base', writable: true },
  { name: 'taken' },
  { name: LONG },
  { description: LONG },
  { bitmaps: ['gone'] },
  { bitmaps: [{ node: 'gone', name: 'bits' }] },
];

async function startPair(context: TestContext): Promise<Pair> {
  const makeImages = (cwd: string): void => {
    run(cwd, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'base.qcow2', '1M');
    run(cwd, 'qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'a.qcow2');
  };
  const pair = await Pair.start(context, scratch(context), makeImages);
  const file = (name: string): Json => ({ driver: 'file', filename: `${name}.qcow2` });
  const sized = { driver: 'null-co', size: 1048576 };
  const setUp: ReadonlyArray<readonly [string, Json]> = [
    ['blockdev-add', { driver: 'qcow2', 'node-name': 'base', file: file('base') }],
    ['blockdev-add', { driver: 'qcow2', 'node-name': 'a', file: file('a'), backing: 'base' }],
    ['blockdev-add', { ...sized, 'node-name': 'read-only', 'read-only': true }],
  ];
  for (const [command, args] of setUp) {
    const { theirs, ours } = await pair.execute(command, args);
    assert.deepEqual([theirs, ours], [{ return: {} }, { return: {} }]);
  }
  return pair;
}

test('of two wrong arguments of an export, QEMU and livedisk tell the same', async (context) => {
  if (skipWithout(context, 'qemu-storage-daemon', 'qemu-img')) return;
  const pair = await startPair(context);
  const compare = async (args: Json, what: string): Promise<void> => {
    const { theirs, ours } = await pair.execute('block-export-add', args);
    if (!theirs.error) {
      assert.deepEqual(ours, theirs, what);
      await pair.execute('block-export-del', { id: args['id'] });
      return;
    }
    // The long name need not be shown.
    const plain = (text: string): string =>
      text.replace(/permissions '[^']*'/g, 'permissions').replace(/x{4097}/, 'LONG');
    const desc = plain(ours.error?.desc ?? 'no error');
    assert.equal(desc, plain(theirs.error.desc), what);
  };
  for (const isServing of [false, true]) {
    if (isServing) {
      await pair.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd.sock' } } });
      const taken = await pair.execute('block-export-add', { ...RIGHT, id: 'taken', name: 'taken' });
      assert.deepEqual([taken.theirs, taken.ours], [{ return: {} }, { return: {} }]);
    }
    for (const one of WRONG)
      for (const other of WRONG) {
        const args = { ...RIGHT, ...one, ...other };
        await compare(args, JSON.stringify({ isServing, ...one, ...other }).replaceAll(LONG, 'LONG'));
      }
  }
});

const VHOST = {
  ...{ type: 'vhost-user-blk', id: 'e', 'node-name': 'a' },
  addr: { type: 'unix', path: 'disk.vhost' },
};

const WRONG_VHOST: ReadonlyArray<Json> = [
  { id: '1st' },
  { id: 'taken' },
  { 'node-name': 'gone' },
  { 'node-name': 'read-only', writable: true },
  { name: 'unexpected' },
  { addr: { type: 'inet', host: 'localhost', port: '0' } },
  { addr: { type: 'unix', path: 'nowhere/disk.vhost' } },
  { 'logical-block-size': 511 },
  { 'logical-block-size': 768 },
  { 'logical-block-size': 4194304 },
  { 'num-queues': 0 },
  { 'num-queues': 65536 },
];

test('of two wrong arguments of a vhost-user export, QEMU and livedisk tell the same', async (context) => {
  if (skipWithout(context, 'qemu-storage-daemon', 'qemu-img')) return;
  const pair = await startPair(context);
  const both = async (command: string, args: Json): Promise<string | undefined> => {
    const { theirs, ours } = await pair.execute(command, args);
    assert.deepEqual(ours, theirs, `${command} ${JSON.stringify(args)}`);
    return theirs.error?.desc;
  };
  assert.equal(await both('block-export-add', { ...VHOST, id: 'taken' }), undefined);
  assert.equal(await both('block-export-add', { ...VHOST, addr: undefined }), "Parameter 'addr' is missing");
  for (const one of WRONG_VHOST)
    for (const other of WRONG_VHOST)
      assert.notEqual(await both('block-export-add', { ...VHOST, ...one, ...other }), undefined);
  await both('query-block-exports', {});
  await both('nbd-server-remove', { name: 'taken' });
  await both('block-export-del', { id: 'taken' });
  await both('query-block-exports', {});
});
