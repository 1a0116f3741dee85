import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { scratch } from '../kit/program.js';
import { run } from './daemon.js';
import { type Command, converse, failure, hasQemu } from './machine-side.js';

const skip = hasQemu ? false : 'not installed: qemu-system-x86_64';

const DISK = 'if=none,id=d0,file=FOLDER/disk.img,format=raw';

/** How long things took is each side's own: what is compared is whether it is more than nothing. */
function comparable(message: JsonValue): JsonValue {
  const text = JSON.stringify(message, (key: string, value: JsonValue) =>
    /_ns$|_depth$/.test(key) ? Number(value) > 0 : value,
  );
  return JSON.parse(text.replaceAll(/(_ns)=[1-9]\d*/g, '$1=some')) as JsonValue;
}

test(
  'what is told of requests, of those that fail and of intervals',
  { skip, timeout: 300_000 },
  async (t) => {
    const folder = scratch(t);
    run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'disk.img', '1M');
    const INTERVALS = ',stats-intervals.0=600,stats-intervals.1=4294967295';
    const commands: Command[] = [
      ['query-blockstats'],
      'info blockstats',
      'qemu-io d0 "aio_read -i 0 512"',
      ['query-blockstats'],
      // Only asynchronous requests of qemu-io count there.
      'qemu-io d0 "aio_read -q 0 512"',
      'qemu-io d0 "aio_write -q 0 512"',
      'qemu-io d0 "aio_flush"',
      ['query-blockstats'],
      'info blockstats',
      'qemu-io d0 "discard -q 0 64k"',
    ];
    for (const [drive, device] of [
      [INTERVALS, ',account-invalid=off'],
      [',stats-account-failed=off', ''],
      [',stats-account-failed=off,stats-account-invalid=off', ',account-failed=on,account-invalid=auto'],
    ] as const) {
      const args = ['-drive', DISK + drive, '-device', `virtio-blk,drive=d0,id=v${device}`];
      const ours = await converse('ours', folder, args, commands);
      const theirs = await converse('theirs', folder, args, commands);
      assert.deepEqual(ours.map(comparable), theirs.map(comparable), drive + device);
    }
  },
);

test('a file tells of discards as there', { skip, timeout: 120_000 }, async (t) => {
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'disk.img', '1M');
  const args = ['-drive', `${DISK},discard=unmap`];
  const commands: Command[] = [
    'qemu-io d0 "discard -q 0 64k"',
    'qemu-io d0 "write -q -z -u 64k 64k"',
    'qemu-io d0 "discard -q 100 300"',
    'qemu-io d0 "discard -q 4096 600"',
    ['query-blockstats', { 'query-nodes': true }],
  ];
  const specific = async (side: 'ours' | 'theirs'): Promise<unknown> => {
    const answers = (await converse(side, folder, args, commands)) as JsonObject[];
    const nodes = answers
      .map((answer) => answer['return'])
      .find((value) => Array.isArray(value)) as JsonObject[];
    return nodes.map((node) => node['driver-specific']);
  };
  assert.deepEqual(await specific('ours'), await specific('theirs'));
});

test('lists of intervals that cannot be', { skip, timeout: 120_000 }, (t) => {
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'disk.img', '1M');
  for (const more of [
    ...['0=-1', '0=1x', '0=', '0=4294967296', '00=3'].map((list) => `${DISK},stats-intervals.${list}`),
    ...['=1:60', '.0.a=3', '.0=1,stats-intervals.2=2'].map((list) => `${DISK},stats-intervals${list}`),
    ...['stats-account-invalid=maybe', 'stats-foo=1'].map((flag) => `${DISK},${flag}`),
    'if=none,id=d0,file=FOLDER/nope,stats-intervals.0=0',
    'if=none,id=d0,stats-intervals.1=5',
  ]) {
    const args = ['-drive', more];
    assert.deepEqual(failure('ours', folder, args), failure('theirs', folder, args), more);
  }
});
