import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { createImage } from '../../block/create.js';
import { KiB } from '../../base/limits.js';
import type { NodeOptions } from '../../block/driver.js';
import { createRealHost } from '../../host/real.js';
import { FlatOptions } from '../../schema/flat.js';
import { PacketWriter, Type } from '../../wire/sftp/codec.js';
import { SftpServer } from '../../../test/kit/sftp-server.js';
import { assertSameBytes, TestBed, withFolder } from '../../../test/kit/test-disk.js';
import { allDrivers } from '../index.js';
import { sshDriver } from './index.js';
import {
  endReason,
  fingerprintIn,
  parseSshFilename,
  sshCommand,
  sshFilename,
  type SshPlace,
} from './address.js';

const SERVER = { host: 'host', port: '22' };
const OPTIONS: NodeOptions = { driver: 'ssh', server: SERVER, path: '/file' };
const content = randomBytes(300 * KiB + 100);

function onServer(
  body: (bed: TestBed, server: SftpServer, lines: string[]) => Promise<void>,
): () => Promise<void> {
  return () =>
    withFolder(async (folder) => {
      const server = new SftpServer();
      server.files.set('/file', Buffer.from(content));
      const bed = new TestBed(server.hostOver(createRealHost()), allDrivers, folder);
      const lines: string[] = [];
      bed.graph.onDriverLine = (line) => void lines.push(line);
      await body(bed, server, lines);
      server.end();
    });
}

const place = (options: NodeOptions): SshPlace => ({ server: SERVER, path: '/x', ...options });

test('filenames stand for options, and options for filenames', () => {
  const cases: Array<[filename: string, options: NodeOptions]> = [
    ['ssh://h/x', { server: { host: 'h', port: '22' }, path: '/x' }],
    ['ssh://u@h:2222/a%20b', { server: { host: 'h', port: '2222' }, path: '/a b', user: 'u' }],
    ['ssh://[::1]:7/x', { server: { host: '::1', port: '7' }, path: '/x' }],
    [
      'ssh://h/x?host_key_check=no',
      { server: { host: 'h', port: '22' }, path: '/x', 'host-key-check': { mode: 'none' } },
    ],
    [
      'ssh://h/x?host_key_check=sha1:0a',
      {
        server: { host: 'h', port: '22' },
        path: '/x',
        'host-key-check': { mode: 'hash', type: 'sha1', hash: '0a' },
      },
    ],
  ];
  for (const [filename, options] of cases) {
    assert.deepEqual(parseSshFilename(filename), options, filename);
    const name = sshFilename(options);
    if (name !== undefined) assert.deepEqual(parseSshFilename(name), options, name);
  }
  assert.equal(sshFilename({ server: { host: 'h', port: '22' }, path: '/a b' }), undefined);
  assert.equal(parseSshFilename('sshfs/x'), undefined);
  assert.throws(() => parseSshFilename('ssh:foo'), { message: 'missing hostname in URI' });
  assert.throws(() => parseSshFilename('ssh://h'), { message: 'missing remote path in URI' });
  const unknown = { message: 'unknown host_key_check setting (x)' };
  assert.throws(() => parseSshFilename('ssh://h/x?host_key_check=x'), unknown);
});

test('no name becomes an option or a command of ssh', () => {
  for (const host of ['-oProxyCommand=x', '$(x)', 'a b', '', 'a;b', 'a`b`'])
    assert.throws(() => sshCommand(place({ server: { host, port: '22' } })), { kind: 'invalid' }, host);
  for (const user of ['-x', 'a b', '$(x)', '`x`', ''])
    assert.throws(() => sshCommand(place({ user })), { kind: 'invalid' }, user);
  for (const port of ['-1', 'x', '99999'])
    assert.throws(() => sshCommand(place({ server: { host: 'h', port } })), { kind: 'invalid' }, port);
  assert.deepEqual(sshCommand(place({ user: 'u' })).slice(-8), [
    '-p',
    '22',
    '-l',
    'u',
    '-s',
    '--',
    'host',
    'sftp',
  ]);
});

test('what ssh says at its end is told in the words of QEMU', () => {
  const cases: Array<[said: string, told: string]> = [
    [
      'ssh: connect to host h port 22: Connection refused\r\n',
      "Failed to connect to 'host:22': Connection refused",
    ],
    [
      'ssh: Could not resolve hostname h: Name or service not known\r\n',
      'address resolution failed for host:22: Name or service not known',
    ],
    ['debug1: x\nHost key verification failed.\r\n', 'no host key was found in known_hosts'],
    [
      'u@h: Permission denied (publickey).\r\n',
      'failed to authenticate using publickey authentication and the identities held by your ssh-agent',
    ],
    ['one\nsubsystem request failed on channel 0\n', 'subsystem request failed on channel 0'],
  ];
  for (const [said, told] of cases) assert.equal(endReason(said, place({}))?.message, told);
});

test(
  'all is read, in pieces as the server gives them, and zeroes behind it',
  onServer(async (bed, server) => {
    server.mostBytes = 7001;
    const disk = await bed.open({ ...OPTIONS }, { readOnly: true });
    assert.equal(disk.lengthBytes, Math.ceil(content.length / 512) * 512);
    assertSameBytes(await disk.readAll(), Buffer.concat([content, Buffer.alloc(412)]), 'the file');
    await disk.close();
  }),
);

test(
  'an image is made, written, flushed and grown; nothing is cut off',
  onServer(async (bed, server) => {
    await createImage(bed.opener, 'ssh://host/new', 'qcow2', { sizeBytes: 256 * KiB });
    const file = { ...OPTIONS, path: '/new' };
    const disk = await bed.open({ driver: 'qcow2', file });
    await disk.write(0, content.subarray(0, 128 * KiB));
    await disk.backend.flush();
    assert.ok(server.requests.includes(Type.extended), 'no fsync');
    await disk.close();
    const again = await bed.open({ driver: 'qcow2', file }, { readOnly: true });
    assertSameBytes(await again.read(0, 128 * KiB), content.subarray(0, 128 * KiB), 'what was written');
    await again.close();
    await sshDriver.createAt?.(bed.host, { server: SERVER, path: '/made' }, KiB);
    assert.equal(server.files.get('/made')?.length, KiB);
    const whole = await bed.open({ ...OPTIONS });
    await assert.rejects(whole.node.io.truncate(512), {
      message: 'ssh driver does not support shrinking files',
    });
    await whole.close();
  }),
);

test(
  'a file that is not there is told in the words of QEMU',
  onServer(async (bed) => {
    const text =
      "failed to open remote file '/none': SFTP server: No such file (libssh error code: 1, sftp error code: 2)";
    await assert.rejects(bed.open({ ...OPTIONS, path: '/none' }), { message: text, kind: 'not-found' });
  }),
);

test(
  'the key of the server is looked at before a file is asked for',
  onServer(async (bed, server) => {
    server.says = 'debug1: Server host key: ssh-ed25519 SHA256:AAEC\n';
    assert.deepEqual(fingerprintIn(server.says), { key: 'ssh-ed25519', hash: '000102' });
    const check = (hash: string): NodeOptions => ({ mode: 'hash', type: 'sha256', hash });
    const message =
      "remote host ssh-ed25519 key fingerprint 'sha256:000102' does not match host_key_check 'sha256:000103'";
    await assert.rejects(bed.open({ ...OPTIONS, 'host-key-check': check('000103') }), { message });
    assert.deepEqual(server.requests, []);
    await (await bed.open({ ...OPTIONS, 'host-key-check': check('00:01:02') }, { readOnly: true })).close();
  }),
);

test(
  'the end of ssh is an I/O error of what is under way, and of all later',
  onServer(async (bed, server, lines) => {
    const disk = await bed.open({ ...OPTIONS });
    server.silentTypes.add(Type.read);
    const reads = [0, 8 * KiB].map((at) => assert.rejects(disk.read(at, KiB), { errno: 'EIO' }));
    while (!server.requests.includes(Type.read)) await bed.host.clock.macrotask();
    server.end();
    await Promise.all(reads);
    assert.match(lines[0] ?? '', /^ssh: The ssh program has ended: ended by SIGKILL$/);
    await assert.rejects(disk.write(0, Buffer.alloc(512)), { errno: 'EIO' });
    await assert.rejects(disk.backend.flush(), { errno: 'EIO' });
    await assert.rejects(disk.close(), { errno: 'EIO' });
    server.refuses = true;
    server.says = 'Host key verification failed.\r\n';
    await assert.rejects(bed.open({ ...OPTIONS }), { message: 'no host key was found in known_hosts' });
  }),
);

test(
  'what is no SFTP ends the connection',
  onServer(async (bed, server) => {
    const wrong: Buffer[] = [
      Buffer.from('Welcome to this machine!\n'),
      Buffer.alloc(8),
      new PacketWriter(Type.data).uint32(99).string('x').finish(),
      new PacketWriter(Type.data)
        .uint32(3)
        .string(Buffer.alloc(64 * KiB))
        .finish(),
      new PacketWriter(Type.handle).uint32(2).finish(),
    ];
    for (const bytes of wrong) {
      server.wrong = new Map([[Type.read, bytes]]);
      const disk = await bed.open({ ...OPTIONS }, { readOnly: true });
      await assert.rejects(disk.read(0, KiB), { errno: 'EIO' });
      await disk.close();
    }
    server.wrong = new Map([[Type.init, Buffer.from('motd: welcome to this machine!')]]);
    await assert.rejects(bed.open({ ...OPTIONS }), { message: 'The SFTP server sends what is no SFTP' });
  }),
);

test(
  'older spellings of options are the newer ones',
  onServer(async (bed, server) => {
    const flat = FlatOptions.of({ driver: 'ssh', host: 'h', path: '/file', host_key_check: 'no', user: 'u' });
    const node = await bed.opener.openFlat(flat, { readOnly: true, discard: 'unmap' });
    assert.equal(node.filename, 'ssh://u@h:22/file?host_key_check=no');
    assert.ok(server.commands[0]?.includes('StrictHostKeyChecking=no'));
    await bed.graph.closeNode(node);
  }),
);
