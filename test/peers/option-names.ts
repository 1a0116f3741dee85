/**
 * Names of images by their options, as users and headers give them: plain, with strings for every value, dotted,
 * nested, incomplete, wrong. The files are those of option-names.test.ts.
 */
type Options = { [key: string]: unknown };

const text = (options: Options): string => `json:${JSON.stringify(options)}`;

const B = { driver: 'file', filename: 'b.qcow2' };
const raw = (options: Options): Options => ({ driver: 'raw', 'file.filename': 'r.raw', ...options });
const qcow2 = (options: Options): Options => ({ driver: 'qcow2', 'file.filename': 'b.qcow2', ...options });
const overlay = (options: Options): Options => ({ driver: 'qcow2', 'file.filename': 'o.qcow2', ...options });
const file = (options: Options): Options => ({ driver: 'raw', file: { ...B, ...options } });
const nullCo = (options: Options): Options => ({ driver: 'null-co', 'read-zeroes': true, ...options });
const nbd = (options: Options): Options => ({ driver: 'nbd', ...options });
const blkdebug = (options: Options): Options => ({ driver: 'blkdebug', image: qcow2({}), ...options });

const WHICH_DRIVER: Options[] = [
  {},
  { driver: 'qcow2' },
  { driver: 'raw' },
  { driver: 'file' },
  { driver: 'raww', file: B },
  { driver: 'raw', file: { driver: 'nofile', filename: 'b.qcow2' } },
  { filename: 'b.qcow2' },
  { file: 'b.qcow2' },
  { file: B },
  { file: { filename: 'b.qcow2' } },
  { 'file.filename': 'b.qcow2' },
  { 'file.filename': 'o.qcow2' },
  { 'file.filename': 'r.raw' },
  { 'file.filename': 'r.raw', offset: '1M' },
  { 'file.filename': 'r.raw', offset: 1048576 },
  { 'file.filename': 'b.qcow2', offset: '0' },
  { 'file.filename': 'b.qcow2', foo: 'x' },
  { 'file.filename': 'b.qcow2', 'l2-cache-size': 'x' },
  { 'file.filename': 'nofile' },
  { driver: 'qcow2', 'file.driver': 'file', 'file.filename': 'b.qcow2' },
  { driver: 'qcow2', 'file.driver': 'file', file: { filename: 'b.qcow2' } },
  { driver: 'qcow2', 'file.driver': 'nofile', file: B },
  { driver: 'qcow2', file: B },
  { driver: 'file', filename: 'b.qcow2' },
  { driver: 'file', filename: 'nofile' },
];

const CHILDREN: Options[] = [
  { driver: 'raw', filename: 'r.raw' },
  { driver: 'raw', file: { foo: 1 } },
  { driver: 'raw', file: {} },
  { driver: 'raw', file: null },
  { driver: 'raw', file: '' },
  { driver: 'raw', file: 'nonode' },
  { driver: 'raw', file: ['b.qcow2'] },
  { driver: 'raw', file: 'x', 'file.filename': 'r.raw' },
  { driver: 'raw', 'file.filename': 'b.qcow2', file: { filename: 'r.raw' } },
  { driver: 'raw', file: { filename: 'r.raw' }, 'file.filename': 'b.qcow2' },
  { driver: 'raw', 'file.filename': 'nbd:localhost:1' },
  { driver: 'raw', 'file.filename': 'json:{}' },
  { driver: 'raw', 'file.filename': 'file:b.qcow2' },
  { driver: 'raw', 'file.filename': '' },
  { driver: 'raw', 'file.filename': null },
  { driver: 'raw', 'file.driver': 'file' },
  { driver: 'raw', 'file.driver': 'qcow2', 'file.file.filename': 'b.qcow2' },
  { driver: 'raw', file: { driver: 'raw', file: { filename: 'r.raw' }, offset: '1M' } },
  { driver: 'raw', file: { file: { filename: 'r.raw' } } },
  qcow2({ filename: 'b.qcow2' }),
];

const VALUES: Options[] = [
  ...['1048576', '1M', '1024k', '0x100000', 1048576, '1.5k', 'x', '', true, 1.5, -512, '-1', null, '99M'].map(
    (offset) => raw({ offset }),
  ),
  raw({ offset: '1M', size: '512' }),
  raw({ offset: '1M', size: '100' }),
  raw({ offset: '1M', size: '8M' }),
  raw({ size: '8M' }),
  raw({ offset: { a: 1 } }),
  raw({ offset: [1] }),
  raw({ foo: 1 }),
  raw({ 'foo.bar': 1 }),
  raw({ 'file.foo': 1 }),
  ...['on', 'yes', true, 'off', 'maybe', '', 1, null].map((value) => raw({ 'read-only': value })),
  ...['unmap', 'on', true, 'ignore', 'off', false, 'banana', 5, null].map((discard) => raw({ discard })),
  ...['off', false, 'banana', 5].map((value) => raw({ 'detect-zeroes': value })),
  ...['5x', '', 5, 'x'.repeat(32)].map((name) => raw({ 'node-name': name })),
  ...['on', true, 'maybe', 1, { a: 1 }].map((direct) => qcow2({ cache: { direct } })),
  qcow2({ cache: 'none' }),
  qcow2({ 'cache.directt': 'on' }),
  qcow2({ 'cache.no-flush': 'true' }),
  ...['auto', 'on', 'off', true, null, 'bar'].map((locking) => file({ locking })),
  ...['threads', 'native', 'io_uring', 'x'].map((aio) => file({ aio })),
  file({ aio: 'native', 'cache.direct': 'on' }),
  file({ aio: 'native', cache: { direct: true } }),
  { ...file({ aio: 'native' }), cache: { direct: true } },
  { ...file({ aio: 'native', 'cache.direct': false }), 'cache.direct': 'on' },
  file({ foo: 1 }),
  ...['1M', 1048576, '0x100000', '1.5k'].map((size) => nullCo({ size })),
  nullCo({ 'latency-ns': -1 }),
  nullCo({ 'latency-ns': '0x10' }),
  nullCo({ foo: 1 }),
];

const NBD: Options[] = [
  nbd({}),
  nbd({ server: {} }),
  nbd({ server: { type: 'x' } }),
  nbd({ server: { type: 'unix' } }),
  nbd({ server: { type: 'unix', path: '/nope' } }),
  nbd({ 'server.type': 'unix', 'server.path': '/nope' }),
  nbd({ server: { type: 'unix', path: '/nope', foo: 1 } }),
  nbd({ server: { type: 'unix', path: '/nope', port: 1 } }),
  nbd({ server: { type: 'inet', host: 'localhost', port: 1 } }),
  nbd({ server: { type: 'inet', host: 'localhost' } }),
  nbd({ server: { type: 'inet', host: 'localhost', port: '1', numeric: 'x' } }),
  nbd({ filename: 'nbd://localhost:1' }),
];

const BLKDEBUG: Options[] = [
  { driver: 'blkdebug', 'image.filename': 'r.raw' },
  { driver: 'blkdebug', image: 'nonode' },
  { driver: 'blkdebug', image: { 'file.filename': 'b.qcow2' } },
  blkdebug({}),
  ...['x', '3', '4k', 512].map((align) => blkdebug({ align })),
  blkdebug({ 'inject-error': [{ event: 'foo' }] }),
  blkdebug({ 'inject-error': [{ event: 'none', errno: 'x' }] }),
  blkdebug({ 'inject-error': [{ event: 'none', errno: 5, foo: 1 }] }),
  blkdebug({ 'inject-error': [{ errno: 5 }] }),
  blkdebug({ 'inject-error.0.event': 'none', 'inject-error.0.errno': '28' }),
  blkdebug({ 'inject-error.0.event': 'none', 'inject-error.0.iotype': 'foo' }),
  blkdebug({ 'inject-error.0.event': 'none', 'inject-error.0.once': 'foo' }),
  blkdebug({ 'inject-error.1.event': 'none' }),
  blkdebug({ 'inject-error': 'x' }),
  blkdebug({ 'set-state': [{ event: 'none', new_state: 'x' }] }),
  blkdebug({ 'take-child-perms': ['foo'] }),
  blkdebug({ 'take-child-perms': ['consistent-read'] }),
  blkdebug({ 'take-child-perms': 'write' }),
  blkdebug({ foo: 'write' }),
];

const QCOW2: Options[] = [
  qcow2({ 'cache-size': '1M' }),
  qcow2({ 'cache-size': '0' }),
  qcow2({ 'l2-cache-size': '0' }),
  qcow2({ 'l2-cache-size': 1048576, 'refcount-cache-size': '1M' }),
  qcow2({ 'l2-cache-size': null }),
  qcow2({ 'l2-cache-size': -1 }),
  qcow2({ 'l2-cache-size': '1Mx' }),
  qcow2({ 'cache-size': '1M', 'l2-cache-size': '512k' }),
  qcow2({ 'cache-size': '1M', 'l2-cache-size': '2M' }),
  qcow2({ 'cache-size': '1M', 'refcount-cache-size': '2M' }),
  qcow2({ 'cache-size': '1M', 'refcount-cache-size': '512k', 'l2-cache-size': '512k' }),
  qcow2({ backing: null }),
  qcow2({ backing: '' }),
  qcow2({ 'backing.driver': 'raw' }),
  qcow2({ backing: { 'file.filename': 'r.raw' } }),
  qcow2({ backing: 'nonode' }),
  qcow2({ 'backing.node-name': 'b' }),
  qcow2({ 'backing.foo': 'b' }),
  overlay({}),
  overlay({ backing: null }),
  overlay({ backing: '' }),
  overlay({ backing: null, 'backing.driver': 'raw' }),
  overlay({ backing: 'nonode' }),
  overlay({ 'backing.node-name': 'mid' }),
  overlay({ 'backing.node-name': '5x' }),
  overlay({ 'backing.l2-cache-size': 'x' }),
  overlay({ 'backing.l2-cache-size': '1M' }),
  overlay({ 'backing.driver': 'raw' }),
  overlay({ 'backing.driver': 'raww' }),
  overlay({ backing: { driver: 'raw', file: { filename: 'r.raw' } } }),
  overlay({ backing: { driver: 'raw', 'file.filename': 'r.raw', offset: '1M' } }),
  overlay({ backing: { 'file.filename': 'b.qcow2' } }),
  overlay({ backing: { 'file.node-name': 'below' } }),
  overlay({ backing: { filename: 'b.qcow2' } }),
  overlay({ backing: { foo: 1 } }),
  raw({ backing: null }),
  raw({ backing: { driver: 'raw' } }),
  raw({ backing: 'x' }),
];

const TEXTS = [
  'json:',
  'json:[1]',
  'json:"x"',
  'json:nul',
  'json:{"a":',
  'json:{"a":1,"a":2}',
  'json:{"a" 1}',
  'json:{a:1}',
  'json:{"driver":"raw"}x',
  'json: {"driver":"qcow2","file.filename":"b.qcow2"} ',
  "json:{'driver':'qcow2','file.filename':'b.qcow2'}",
  'b.qcow2',
  'o.qcow2',
  './b.qcow2',
  'file:b.qcow2',
  'loop',
  'b.qcow2/x',
  'x'.repeat(300),
  '1:foo',
  'a b:c',
  'my_x:y',
  ':foo',
  'é:x',
  'nofile',
];

export const NAMES: readonly string[] = [
  ...TEXTS,
  ...[...WHICH_DRIVER, ...CHILDREN, ...VALUES, ...NBD, ...BLKDEBUG, ...QCOW2].map(text),
];

export const nameOf = text;
