import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test, type TestContext } from 'node:test';
import { CertificateFolders } from '../kit/certificates.js';
import { freePort } from '../kit/free-port.js';
import { Daemon, PROGRAM } from './daemon.js';

const MiB = 1024 * 1024;
const SIDES = { theirs: ['qemu-nbd'], ours: [process.execPath, PROGRAM, 'nbd'] } as const;
type Side = keyof typeof SIDES;

function without(...programs: string[]): string | false {
  const missing = existsSync(PROGRAM)
    ? programs.find((program) => spawnSync(program, ['--version']).error)
    : 'dist/livedisk.cjs';
  return missing === undefined ? false : `${missing} is not installed`;
}
const NEEDED = ['openssl', 'qemu-nbd', 'qemu-img', 'qemu-io', 'nbdinfo', 'nbdcopy'];
const skip = without(...NEEDED);

let folder = '';
const path = (...parts: string[]): string => join(folder, ...parts);
let folders: CertificateFolders;

/** The name that a client's certificate shows, as QEMU writes it. */
const CLIENT = '/C=GB/O=Clients, all/CN=a client';
const CLIENT_NAME = 'C=GB,O=Clients\\, all,CN=a client';

before(() => {
  folder = mkdtempSync(join(tmpdir(), 'livedisk-tls-'));
  if (skip !== false) return;
  folders = new CertificateFolders(folder);
  for (const dir of ['good', 'other']) {
    folders.authority(dir);
    folders.certificate(dir, 'server', '/C=GB/O=Servers/CN=localhost');
    folders.certificate(dir, 'client', CLIENT);
  }
  folders.trusting('nobody', 'good');
  for (const [dir, key] of [
    ['psk', 'ab'.repeat(16)],
    ['psk-other', 'cd'.repeat(16)],
  ] as const) {
    mkdirSync(path(dir));
    writeFileSync(path(dir, 'keys.psk'), `qemu:${key}\n`);
  }
  const bytes = Buffer.alloc(4 * MiB);
  for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE((at * 2_654_435_761) % 2 ** 32, at);
  writeFileSync(path('disk.raw'), bytes);
});

after(() => rmSync(folder, { recursive: true, force: true }));

interface Server {
  port: string;
  process: ChildProcess;
  /** What it has printed so far. */
  log(): string;
  stop(): Promise<void>;
}

async function serve(context: TestContext, side: Side, ...args: string[]): Promise<Server> {
  const port = String(await freePort());
  const pidFile = path(`${port}.pid`);
  const [program, ...first] = SIDES[side];
  const more = ['-t', '-e', '0', '-f', 'raw', '-b', '127.0.0.1', '-p', port, '--pid-file', pidFile];
  const child = spawn(program, [...first, ...args, '--tls-creds', 'tls', ...more, 'disk.raw'], {
    cwd: folder,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  context.after(() => child.kill('SIGKILL'));
  const closed = once(child, 'close');
  let log = '';
  child.stderr.on('data', (chunk: Buffer) => (log += chunk.toString()));
  while (!existsSync(pidFile)) {
    assert.equal(child.exitCode, null, log);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return {
    port,
    process: child,
    log: () => log,
    stop: async () => {
      child.kill('SIGTERM');
      await closed;
    },
  };
}

interface Answer {
  code: number | null;
  out: string;
}

/** The program's answer, without what differs from one server to the next. */
async function answer(port: string, program: string, ...args: string[]): Promise<Answer> {
  const child = spawn(program, args, { cwd: folder, timeout: 60_000, stdio: ['ignore', 'pipe', 'pipe'] });
  let out = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk: Buffer) => (out += chunk.toString()));
  const [code] = (await once(child, 'close')) as [number | null];
  out = out
    .replaceAll(port, 'PORT')
    .replace(/\n.* ops; .*/g, '')
    // A connection that is dropped with something unread is reset; a wrong key is told about by us only.
    .replace(/(Cannot read from TLS channel|TLS handshake failed|gnutls_handshake): .*/g, '$1: TEXT');
  return { code, out };
}

const credentials = (type: string, dir: string, endpoint = 'client', more = ''): string[] => [
  '--object',
  `tls-creds-${type},id=tls,endpoint=${endpoint},dir=${path(dir)}${more}`,
];

/** Programs that come to a server, each with credentials or none. */
function clients(port: string, kind: 'x509' | 'psk'): Array<[program: string, ...args: string[]]> {
  const opts = `driver=nbd,host=127.0.0.1,port=${port}`;
  const dirs = kind === 'x509' ? ['good', 'other', 'nobody'] : ['psk', 'psk-other'];
  const uri = (dir: string): string =>
    kind === 'x509'
      ? `nbds://127.0.0.1:${port}/?tls-certificates=${path(dir)}`
      : `nbds://qemu@127.0.0.1:${port}/?tls-psk-file=${path(dir, 'keys.psk')}`;
  return [
    ['qemu-img', 'info', '--image-opts', opts],
    ['qemu-nbd', '--list', '-b', '127.0.0.1', '-p', port],
    ['nbdinfo', '--size', `nbd://127.0.0.1:${port}/`],
    ...dirs.flatMap((dir): Array<[string, ...string[]]> => {
      const creds = credentials(kind, dir);
      const secure = `${opts},tls-creds=tls`;
      const write = ['-c', 'write -P 7 1M 1M', '-c', 'flush', '-c', 'read -P 7 1M 1M', '-c', 'read 0 3M'];
      return [
        ['qemu-img', 'info', ...creds, '--image-opts', secure],
        ['qemu-io', ...creds, '--image-opts', secure, ...write],
        ['qemu-nbd', '--list', ...creds, '--tls-creds', 'tls', '-b', '127.0.0.1', '-p', port],
        ['nbdinfo', '--size', uri(dir)],
        ['nbdinfo', '--map', uri(dir)],
      ];
    }),
  ];
}

const SETTINGS: Array<[title: string, kind: 'x509' | 'psk', args: () => string[]]> = [
  ['certificates of clients are asked for', 'x509', () => credentials('x509', 'good', 'server')],
  ['any client comes in', 'x509', () => credentials('x509', 'good', 'server', ',verify-peer=off')],
  [
    'one name comes in',
    'x509',
    () => [
      ...credentials('x509', 'good', 'server'),
      '--object',
      `authz-simple,id=who,identity=${CLIENT_NAME.replaceAll(',', ',,')}`,
      '--tls-authz',
      'who',
    ],
  ],
  [
    'a list lets nobody in',
    'x509',
    () => [
      ...credentials('x509', 'good', 'server'),
      '--object',
      'authz-list,id=who,policy=deny,rules.0.match=CN=*,rules.0.format=glob,rules.0.policy=allow',
      '--tls-authz',
      'who',
    ],
  ],
  [
    'whom to ask is not there',
    'x509',
    () => [...credentials('x509', 'good', 'server'), '--tls-authz', 'nobody'],
  ],
  ['keys that both have', 'psk', () => credentials('psk', 'psk', 'server')],
];

for (const [title, kind, args] of SETTINGS)
  test(`clients are told what qemu-nbd tells them: ${title}`, { skip }, async (t) => {
    const told: Record<Side, Answer[]> = { ours: [], theirs: [] };
    for (const side of ['theirs', 'ours'] as const) {
      const server = await serve(t, side, ...args());
      for (const [program, ...words] of clients(server.port, kind))
        told[side].push(await answer(server.port, program, ...words));
      await server.stop();
    }
    const names = clients('PORT', kind);
    names.forEach((words, i) => assert.deepEqual(told.ours[i], told.theirs[i], words.join(' ')));
  });

test('much goes over TLS both ways, on four connections', { skip }, async (t) => {
  for (const [kind, uri] of [
    ['x509', (port: string) => `nbds://127.0.0.1:${port}/?tls-certificates=${path('good')}`],
    ['psk', (port: string) => `nbds://qemu@127.0.0.1:${port}/?tls-psk-file=${path('psk', 'keys.psk')}`],
  ] as const) {
    const server = await serve(t, 'ours', ...credentials(kind, kind === 'x509' ? 'good' : 'psk', 'server'));
    const copy = async (from: string, to: string): Promise<void> => {
      const { code, out } = await answer(server.port, 'nbdcopy', '--connections=4', from, to);
      assert.equal(code, 0, out);
    };
    await copy(uri(server.port), path('copy.raw'));
    assert.deepEqual(readFileSync(path('copy.raw')), readFileSync(path('disk.raw')));
    const changed = readFileSync(path('copy.raw')).reverse();
    writeFileSync(path('copy.raw'), changed);
    await copy(path('copy.raw'), uri(server.port));
    await server.stop();
    assert.deepEqual(readFileSync(path('disk.raw')), changed);
  }
});

/** Subjects of certificates, as openssl takes them. */
const SUBJECTS = [
  CLIENT,
  '/CN= lead',
  '/CN=#hash/O=tr\\ ail ',
  '/CN=a\\+b"c<d>e;f=g\\\\h',
  '/CN=\u00e9 \u00fc \u6f22',
  '/CN=a/emailAddress=x@y.z/OU=b',
  '/DC=org/DC=example/UID=joe/CN=joe+OU=c',
  '/L=London/ST=State/street=Road/serialNumber=12/GN=g/SN=s/title=T/businessCategory=b/description=d',
  '/postalCode=1/pseudonym=p/initials=i/generationQualifier=q/dnQualifier=d/name=n',
  '/CN=a/unstructuredName=u/x500UniqueIdentifier=z/jurisdictionC=GB/organizationIdentifier=o',
];

test('clients have the names that qemu-nbd gives them', { skip }, async (t) => {
  SUBJECTS.forEach((subject, i) => {
    folders.trusting(`client${i}`, 'good');
    folders.certificate(`client${i}`, 'client', subject, 'good');
  });
  const logs: string[] = [];
  for (const side of ['theirs', 'ours'] as const) {
    const nobody = ['--object', 'authz-list,id=who,policy=deny', '--tls-authz', 'who'];
    const server = await serve(t, side, ...credentials('x509', 'good', 'server'), ...nobody);
    const opts = `driver=nbd,host=127.0.0.1,port=${server.port},tls-creds=tls`;
    for (const [i] of SUBJECTS.entries()) {
      const words = ['info', ...credentials('x509', `client${i}`), '--image-opts', opts];
      assert.equal((await answer(server.port, 'qemu-img', ...words)).code, 1);
    }
    while (server.log().split(' is denied').length <= SUBJECTS.length)
      await new Promise((resolve) => setTimeout(resolve, 20));
    await server.stop();
    logs.push(server.log());
  }
  assert.equal(logs[1], logs[0]);
});

test('exports are listed over TLS as qemu-nbd lists them', { skip }, async (t) => {
  const [program, ...first] = SIDES.ours;
  for (const [kind, dir, others] of [
    ['x509', 'good', ['other', 'nobody']],
    ['psk', 'psk', ['psk-other']],
  ] as const)
    for (const side of ['theirs', 'ours'] as const) {
      const server = await serve(t, side, ...credentials(kind, dir, 'server'));
      const { port } = server;
      for (const from of [dir, ...others])
        for (const more of [[], ['--tls-hostname', 'localhost'], ['--tls-hostname', 'elsewhere']]) {
          const words = [
            '--list',
            ...credentials(kind, from),
            '--tls-creds',
            'tls',
            '-b',
            '127.0.0.1',
            '-p',
            port,
          ];
          const theirs = await answer(port, 'qemu-nbd', ...words, ...more);
          const ours = await answer(port, program, ...first, ...words, ...more);
          // Why the server hung up is told in other words.
          if (theirs.out.includes('Failed to read option reply')) theirs.out = ours.out;
          assert.deepEqual(ours, theirs, [side, from, ...more].join(' '));
        }
      await server.stop();
    }
});

test('objects say who comes in as they are when somebody comes', { skip }, async (t) => {
  const port = String(await freePort());
  const argv = ['--chardev', 'socket,id=q,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=q'];
  for (const start of [
    ['qemu-storage-daemon', ...argv],
    [process.execPath, PROGRAM, 'storage-daemon', ...argv],
  ]) {
    rmSync(path('qmp.sock'), { force: true });
    const daemon = await Daemon.start(t, folder, start);
    const execute = async (command: string, args: object): Promise<void> =>
      void (await daemon.execute(command, args as never));
    const isLetIn = async (): Promise<boolean> => {
      const opts = `driver=nbd,host=127.0.0.1,port=${port},tls-creds=tls,export=disk`;
      const words = ['info', ...credentials('x509', 'good'), '--image-opts', opts];
      return (await answer(port, 'qemu-img', ...words)).code === 0;
    };
    const dir = path('good');
    await execute('object-add', { 'qom-type': 'tls-creds-x509', id: 'tls', dir, endpoint: 'server' });
    await execute('object-add', { 'qom-type': 'authz-list', id: 'list', policy: 'deny' });
    await execute('blockdev-add', { driver: 'file', 'node-name': 'disk', filename: path('disk.raw') });
    const addr = { type: 'inet', data: { host: '127.0.0.1', port } };
    await execute('nbd-server-start', { addr, 'tls-creds': 'tls', 'tls-authz': 'list' });
    await execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'disk' });
    const seen = [await isLetIn()];
    await execute('qom-set', { path: '/objects/list', property: 'policy', value: 'allow' });
    seen.push(await isLetIn());
    const rules = [{ match: CLIENT_NAME, policy: 'deny' }];
    await execute('qom-set', { path: '/objects/list', property: 'rules', value: rules });
    seen.push(await isLetIn());
    await execute('object-del', { id: 'list' });
    seen.push(await isLetIn());
    await execute('qom-set', { path: '/objects/tls', property: 'verify-peer', value: false });
    seen.push(await isLetIn());
    assert.deepEqual(seen, [false, true, false, false, true], start.join(' '));
    await daemon.kill();
  }
});

test('nobody who hangs up, or says nothing, or nonsense, in the handshake is kept', { skip }, async (t) => {
  const server = await serve(t, 'ours', ...credentials('x509', 'good', 'server'));
  const startTls = Buffer.concat([
    Buffer.from([0, 0, 0, 3]),
    Buffer.from('IHAVEOPT'),
    Buffer.from([0, 0, 0, 5, 0, 0, 0, 0]),
  ]);
  const descriptors = (): number =>
    spawnSync('ls', [`/proc/${server.process.pid}/fd`], { encoding: 'utf8' }).stdout.split('\n').length;
  const before = descriptors();
  for (const [i, said] of [
    Buffer.alloc(0),
    Buffer.from('GET / HTTP/1.0\r\n\r\n'),
    Buffer.from([22, 3, 1, 2, 0, 1, 0]),
    Buffer.alloc(65_536, 22),
  ].entries()) {
    const socket = connect(Number(server.port), '127.0.0.1');
    socket.on('error', () => undefined);
    socket.write(startTls);
    let seen = 0;
    // The greeting, and the answer to STARTTLS.
    while (seen < 18 + 20) seen += ((await once(socket, 'data')) as [Buffer])[0].length;
    socket.write(said);
    // Whether the server has read all of it decides if the end is an error here.
    if (i % 2 === 0) socket.destroy();
    else await new Promise((resolve) => socket.on('close', resolve));
  }
  while (descriptors() > before) await new Promise((resolve) => setTimeout(resolve, 20));
  const uri = `nbds://127.0.0.1:${server.port}/?tls-certificates=${path('good')}`;
  assert.equal((await answer(server.port, 'nbdinfo', '--size', uri)).code, 0);
  await server.stop();
});
