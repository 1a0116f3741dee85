import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { SeededRandom } from '../../src/host/simulated-random.js';
import { THROTTLE_LIMITS } from '../../src/schema/objects.js';
import { run, scratch, skipWithout } from './daemon.js';
import { type Answer, type Json, Pair } from './fuzz-pair.js';

type Call = readonly [command: string, args: Json];

const add = (type: string, id: string, more: Json = {}): Call => [
  'object-add',
  { 'qom-type': type, id, ...more },
];
const get = (path: string, property: string): Call => ['qom-get', { path, property }];
const set = (path: string, property: string, value: unknown): Call => ['qom-set', { path, property, value }];
const KEY = Buffer.from(Array.from({ length: 32 }, (_, i) => i)).toString('base64');
const IV = Buffer.alloc(16, 1).toString('base64');

/** Each with certificates; but for the first, something is wrong in it. */
const CERTIFICATE_FOLDERS = [
  'tls',
  'not-a-ca',
  'no-key',
  'other-ca',
  'other-key',
  'junk-ca',
  'junk-cert',
  'junk-key',
  'encrypted',
];

const CALLS: readonly Call[] = [
  add('iothread', 'io0'),
  add('iothread', 'io0'),
  ...['1x', 'a b', '', 'é'].map((id) => add('iothread', id)),
  ['object-add', { 'qom-type': 'iothread' }],
  ['object-add', { id: 'x' }],
  add('nope', 'x'),
  ...['poll-max-ns', 'poll-grow', 'poll-shrink', 'aio-max-batch', 'thread-pool-min'].flatMap((name) => [
    add('iothread', 'bad', { [name]: -1 }),
    get('/objects/io0', name),
    set('/objects/io0', name, 7),
    set('/objects/io0', name, '7'),
    get('/objects/io0', name),
  ]),
  add('iothread', 'bad', { 'thread-pool-max': 0 }),
  add('iothread', 'bad', { 'thread-pool-max': 2147483648 }),
  add('iothread', 'bad', { 'thread-pool-min': 9, 'thread-pool-max': 8 }),
  set('/objects/io0', 'thread-pool-min', 65),
  add('iothread', 'bad', { nope: 1 }),
  add('main-loop', 'ml', { 'aio-max-batch': 3 }),
  add('main-loop', 'ml'),
  add('main-loop', 'ml2'),
  add('secret', 's0'),
  add('secret', 's0', { data: 'abc', file: 'x' }),
  add('secret', 's0', { file: 'missing' }),
  add('secret', 's0', { file: 'folder' }),
  add('secret', 's0', { data: 'abc' }),
  add('secret', 'file', { file: 'secret.txt' }),
  add('secret', 'bad', { data: 'abc!', format: 'base64' }),
  add('secret', 'bad', { data: 'a b=', format: 'base64' }),
  add('secret', 'short', { data: 'abc', format: 'base64' }),
  add('secret', 'bad', { data: 'x', keyid: 'none' }),
  add('secret', 'bad', { data: 'x', keyid: 'io0' }),
  add('secret', 'bad', { data: 'x', keyid: 's0' }),
  add('secret', 'key', { data: KEY, format: 'base64' }),
  add('secret', 'bad', { data: 'x', keyid: 'key' }),
  add('secret', 'bad', { data: 'x', keyid: 'key', iv: 'eA==' }),
  add('secret', 'bad', { data: 'x', keyid: 'key', iv: IV }),
  add('secret', 'bad', { data: 'YWJj', format: 'base64', keyid: 'key', iv: IV }),
  add('secret', 'bad', { data: IV, format: 'base64', keyid: 'key', iv: IV }),
  add('secret', 'bad', { data: 'x', loaded: true }),
  ...['data', 'file', 'format', 'keyid', 'loaded', 'nope'].map((name) => get('/objects/s0', name)),
  set('/objects/s0', 'data', 'new'),
  set('/objects/s0', 'loaded', true),
  add('authz-simple', 'a0'),
  add('authz-simple', 'a0', { identity: 'me' }),
  set('/objects/a0', 'identity', 'you'),
  get('/objects/a0', 'identity'),
  add('authz-list', 'a1', { policy: 'allow', rules: [{ match: 'x*', policy: 'deny', format: 'glob' }] }),
  add('authz-list', 'bad', { policy: 'x' }),
  add('authz-list', 'bad', { rules: [{ match: 'x' }] }),
  add('authz-list', 'bad', { rules: {} }),
  get('/objects/a1', 'rules'),
  get('/objects/a1', 'policy'),
  add('tls-creds-anon', 'c0', { endpoint: 'server', 'verify-peer': false, dir: '.' }),
  ...['endpoint', 'verify-peer', 'dir', 'priority', 'loaded'].map((name) => get('/objects/c0', name)),
  add('tls-creds-psk', 'bad'),
  add('tls-creds-psk', 'bad', { dir: '/missing' }),
  add('tls-creds-psk', 'bad', { dir: 'tls', endpoint: 'client' }),
  add('tls-creds-psk', 'c1', { dir: 'tls', endpoint: 'client', username: 'alice' }),
  add('tls-creds-psk', 'bad', { dir: 'tls', endpoint: 'server', username: 'alice' }),
  add('tls-creds-psk', 'c2', { dir: 'tls', endpoint: 'server' }),
  add('tls-creds-x509', 'bad'),
  ...['/missing', ...CERTIFICATE_FOLDERS].flatMap((dir) => [
    add('tls-creds-x509', `${dir.replace('/', '')}-s`, { dir, endpoint: 'server' }),
    add('tls-creds-x509', `${dir.replace('/', '')}-c`, { dir }),
    add('tls-creds-x509', `${dir.replace('/', '')}-u`, { dir, endpoint: 'server', 'sanity-check': false }),
  ]),
  add('secret', 'password', { data: 'secret' }),
  add('tls-creds-x509', 'p1', { dir: 'encrypted', endpoint: 'server', passwordid: 'password' }),
  add('tls-creds-x509', 'p2', { dir: 'encrypted', endpoint: 'server', passwordid: 's0' }),
  add('tls-creds-x509', 'p3', { dir: 'encrypted', endpoint: 'server', passwordid: 'none' }),
  add('tls-creds-x509', 'p4', { dir: 'encrypted', endpoint: 'server', passwordid: 'key' }),
  add('tls-cipher-suites', 'c4', { priority: '@SYSTEM' }),
  add('tls-cipher-suites', 'c5'),
  add('throttle-group', 't0', { limits: { 'iops-total': 10 } }),
  get('/objects/t0', 'limits'),
  get('/objects/t0', 'x-iops-total'),
  set('/objects/t0', 'limits', { 'bps-read': 20 }),
  get('/objects/t0', 'limits'),
  set('/objects/t0', 'limits', { 'iops-read': 20 }),
  set('/objects/t0', 'limits', { nope: 1 }),
  set('/objects/t0', 'limits', 5),
  set('/objects/t0', 'x-iops-total', 5),
  set('/objects/t0', 'nope', 5),
  add('throttle-group', 'bad', { 'x-iops-total': 5, limits: { 'iops-read': 3 } }),
  ...['/objects', '/objects/', 'objects', '//objects', '/nope', 'nope', ''].map((path): Call => [
    'qom-list',
    { path },
  ]),
  ...['io0', 's0', 'a0', 'a1', 'c0', 'c1', 't0'].map((id): Call => ['qom-list', { path: `/objects/${id}` }]),
  get('/objects', 'io0'),
  get('/', 'objects'),
  get('/', 'type'),
  set('/objects', 'io0', 1),
  set('/objects/io0', 'type', 'x'),
  ['qom-list-types', { implements: 'tls-creds' }],
  ['qom-list-types', { implements: 'tls-creds', abstract: true }],
  ['qom-list-types', { implements: 'nope' }],
  ...['iothread', 'secret', 'throttle-group', 'tls-creds-x509', 'container', 'nope'].map((typename): Call => [
    'qom-list-properties',
    { typename },
  ]),
  ['object-del', { id: 'io0' }],
  ['object-del', { id: 'io0' }],
];

/** Alike whatever the order: QEMU lists properties in that of a hash table. */
function canonical(answer: Answer): string {
  const list = Array.isArray(answer.return) ? { return: sorted(answer.return) } : answer;
  return inOrder(list);
}

const sorted = (items: unknown[]): unknown[] => [...items].sort((a, b) => compare(inOrder(a), inOrder(b)));

/** As text, the members of objects by name. */
function inOrder(value: unknown): string {
  return JSON.stringify(value, (_, inner: unknown) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => compare(a, b)))
      : inner,
  );
}

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/** Certificates as they should be, and wrong in one way each. */
function makeCertificates(cwd: string): void {
  const ssl = (...words: string[]): string => run(cwd, 'openssl', ...words);
  for (const dir of CERTIFICATE_FOLDERS) mkdirSync(join(cwd, dir));
  const request = ['req', '-newkey', 'rsa:2048', '-nodes'];
  ssl(...request, '-x509', '-keyout', 'ca.key', '-out', 'tls/ca-cert.pem', '-days', '9', '-subj', '/CN=ca');
  ssl(
    ...request,
    '-x509',
    '-keyout',
    'x.key',
    '-out',
    'other-ca/ca-cert.pem',
    '-days',
    '9',
    '-subj',
    '/CN=x',
  );
  ssl(...request, '-keyout', 'tls/server-key.pem', '-out', 's.csr', '-subj', '/CN=localhost');
  const signed = ['-CA', 'tls/ca-cert.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '9'];
  ssl('x509', '-req', '-in', 's.csr', ...signed, '-out', 'tls/server-cert.pem');
  ssl(
    'rsa',
    '-aes128',
    '-passout',
    'pass:secret',
    '-in',
    'tls/server-key.pem',
    '-out',
    'encrypted/server-key.pem',
  );
  const copy = (from: string, to: string): void => copyFileSync(join(cwd, from), join(cwd, to));
  const like = (dir: string, ...names: string[]): void =>
    names.forEach((name) => copy(`tls/${name}.pem`, `${dir}/${name}.pem`));
  like('no-key', 'ca-cert', 'server-cert');
  like('other-ca', 'server-cert', 'server-key');
  like('other-key', 'ca-cert', 'server-cert');
  copy('ca.key', 'other-key/server-key.pem');
  like('not-a-ca', 'server-cert', 'server-key');
  copy('tls/server-cert.pem', 'not-a-ca/ca-cert.pem');
  like('junk-ca', 'server-cert', 'server-key');
  like('junk-cert', 'ca-cert', 'server-key');
  like('junk-key', 'ca-cert', 'server-cert');
  like('encrypted', 'ca-cert', 'server-cert');
  for (const name of ['junk-ca/ca-cert', 'junk-cert/server-cert', 'junk-key/server-key'])
    writeFileSync(join(cwd, `${name}.pem`), 'junk\n');
  writeFileSync(join(cwd, 'tls/keys.psk'), 'alice:00112233\n');
}

function makeFiles(cwd: string): void {
  mkdirSync(join(cwd, 'folder'));
  writeFileSync(join(cwd, 'secret.txt'), 'from a file\n');
  makeCertificates(cwd);
}

test('objects are made, shown and changed as qemu-storage-daemon does', async (t) => {
  if (skipWithout(t, 'qemu-storage-daemon', 'openssl')) return;
  const pair = await Pair.start(t, scratch(t), makeFiles);
  const differences: string[] = [];
  for (const [command, args] of CALLS) {
    const { theirs, ours } = await pair.execute(command, args);
    const [a, b] = [canonical(theirs), canonical(ours)];
    if (a !== b) differences.push(`${command} ${JSON.stringify(args)}\n  ${a}\n  ${b}`);
  }
  assert.equal(differences.join('\n'), '');
  await pair.end();
});

test('limits are refused, or taken, as qemu-storage-daemon does', async (t) => {
  if (skipWithout(t, 'qemu-storage-daemon')) return;
  const pair = await Pair.start(t, scratch(t), () => undefined);
  const random = new SeededRandom(Number(process.env['FUZZ_SEED'] ?? 1));
  const values = [-1, 0, 0, 1, 2, 10, 100, 1000, 1e9, 1e15, 1e15 + 1, Number.MAX_SAFE_INTEGER];
  const differences: string[] = [];
  for (let round = 0; round < 400; round++) {
    const chosen = Array.from({ length: 1 + random.below(4) }, () => [
      THROTTLE_LIMITS[random.below(THROTTLE_LIMITS.length)] ?? 'iops-size',
      values[random.below(values.length)] ?? 0,
    ]);
    const limits = Object.fromEntries(chosen) as Json;
    const { theirs, ours } = await pair.execute('object-add', {
      'qom-type': 'throttle-group',
      id: `g${round}`,
      limits,
    });
    if (JSON.stringify(theirs) !== JSON.stringify(ours))
      differences.push(`${JSON.stringify(limits)}\n  ${JSON.stringify(theirs)}\n  ${JSON.stringify(ours)}`);
  }
  assert.equal(differences.join('\n'), '');
  await pair.end();
});

/** What a program says, without its name. */
function said(cwd: string, program: string, ...words: string[]): string {
  const { status, stdout, stderr } = spawnSync(program, words, { cwd, encoding: 'utf8', timeout: 120_000 });
  return `${status}\n${stdout}${stderr}`.replace(/^(qemu-storage-daemon|qemu-img|livedisk): /gm, '');
}

test('--object is taken, or refused, as qemu-storage-daemon and qemu-img do', (t) => {
  if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img')) return;
  const cwd = scratch(t);
  const program = (kind: string): string[] => [
    process.execPath,
    join(import.meta.dirname, '../../dist/livedisk.cjs'),
    kind,
  ];
  for (const object of [
    'secret,id=1x,data=abc',
    'nope,id=a',
    'iothread',
    'iothread,id=a,poll-max-ns=-1',
    'iothread,id=a,thread-pool-max=x',
    'iothread,id=a,nope=1',
    'throttle-group,id=t,limits.iops-total=10,limits.iops-read=1',
    'throttle-group,id=t,x-iops-total=1k',
    'authz-list,id=a,rules.0.match=x,rules.0.policy=allow',
    'authz-list,id=a,policy=x',
    '{"qom-type":"iothread","id":"z"}',
    'secret,id=s',
    'secret,id=s,data=x',
    'secret,help',
  ]) {
    const words = ['--object', object, '--blockdev', 'file,node-name=a,filename=/nonexistent'];
    const [first = '', ...ours] = [...program('storage-daemon'), ...words];
    assert.equal(said(cwd, first, ...ours), said(cwd, 'qemu-storage-daemon', ...words), object);
    // qemu-img has no threads of that kind.
    if (object.includes('iothread')) continue;
    const tool = ['info', '--object', object, 'missing.raw'];
    const [node = '', ...img] = [...program('img'), ...tool];
    assert.equal(said(cwd, node, ...img), said(cwd, 'qemu-img', ...tool), object);
  }
});
