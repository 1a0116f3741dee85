import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { type Options, Sides } from './storage-sides.js';

const missing = ['qemu-storage-daemon', 'qemu-img'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;

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
