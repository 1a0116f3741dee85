import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { qcow2Driver } from '../../src/drivers/qcow2/driver.js';
import { nbdDriver } from '../../src/drivers/nbd/index.js';
import { fileDriver } from '../../src/drivers/file/index.js';
import { createRealHost } from '../../src/host/real.js';
import { NbdClient } from '../../src/wire/nbd/client.js';
import { CommandFlag, TransmissionFlag } from '../../src/wire/nbd/constants.js';
import { NbdServer } from '../../src/wire/nbd/server.js';
import { errorOf } from '../kit/nbd-target.js';
import { TestBed, type TestDisk } from '../kit/test-disk.js';

const MiB = 1024 * 1024;
const SIZE = 8 * MiB;

/** The reason to skip a test that needs these programs; false when they are all there. */
function without(...programs: string[]): string | false {
  const missing = programs.find((program) => spawnSync(program, ['--version']).error);
  return missing === undefined ? false : `${missing} is not installed`;
}

const host = createRealHost();
const peers = new Set<ChildProcess>();
let folder = '';
let bed: TestBed;
let disk: TestDisk;
let server: NbdServer;
let content: Buffer;

/** An own server with the exports 'disk' and 'ro' of one file: data, a hole, and data again. */
before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'livedisk-nbd-'));
  bed = new TestBed(host, [fileDriver, nbdDriver, qcow2Driver], folder);
  content = Buffer.alloc(SIZE);
  for (let i = 0; i < SIZE; i += 512)
    if (i < 2 * MiB || i >= 6 * MiB) content.fill(1 + ((i / 512) % 250), i, i + 512);
  writeFileSync(path('disk.raw'), content.subarray(0, 2 * MiB));
  truncateSync(path('disk.raw'), SIZE);
  disk = await bed.open({ driver: 'file', filename: path('disk.raw') });
  await disk.write(6 * MiB, content.subarray(6 * MiB));
  server = await NbdServer.listen(host, { type: 'unix', path: path('socket') });
  const shared = { target: disk.backend, multiConn: true };
  server.addExport({ ...shared, name: 'disk', readOnly: false, description: 'a disk' });
  server.addExport({ ...shared, name: 'ro', readOnly: true });
});

after(async () => {
  for (const peer of peers) peer.kill('SIGKILL');
  await server.close();
  await disk.close();
  rmSync(folder, { recursive: true, force: true });
});

function path(name: string): string {
  return join(folder, name);
}

function uri(name: string, socket = 'socket'): string {
  return `nbd+unix:///${name}?socket=${path(socket)}`;
}

/** Without blocking: the server runs in this process. */
function tryRun(program: string, ...args: string[]): Promise<{ code: number | null; out: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'], timeout: 60_000 });
    let out = '';
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (chunk: Buffer) => (out += chunk.toString()));
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, out }));
  });
}

async function run(program: string, ...args: string[]): Promise<string> {
  const { code, out } = await tryRun(program, ...args);
  assert.equal(code, 0, `${program} ${args.join(' ')}: ${out}`);
  return out;
}

test('nbdinfo sees exports, sizes, flags and the map', { skip: without('nbdinfo') }, async () => {
  interface NbdInfo {
    exports: Array<Record<string, unknown>>;
  }
  const json = async (...args: string[]): Promise<NbdInfo> =>
    JSON.parse(await run('nbdinfo', '--json', ...args)) as NbdInfo;
  const [info] = (await json(uri('disk'))).exports;
  assert.deepEqual(
    [
      'export-name',
      'description',
      'export-size',
      'is_read_only',
      'can_multi_conn',
      'can_fast_zero',
      'can_df',
    ].map((key) => info?.[key]),
    ['disk', 'a disk', SIZE, false, true, true, true],
  );
  assert.equal((await json(uri('ro'))).exports[0]?.['is_read_only'], true);
  const listed = (await json('--list', uri(''))).exports.map((entry) => entry['export-name']);
  assert.deepEqual(listed, ['disk', 'ro']);
  const map = JSON.parse(await run('nbdinfo', '--json', '--map', uri('disk'))) as Array<
    Record<string, number>
  >;
  assert.deepEqual(
    map.map(({ offset, length, type }) => [offset, length, type]),
    [
      [0, 2 * MiB, 0],
      [2 * MiB, 4 * MiB, 3],
      [6 * MiB, 2 * MiB, 0],
    ],
  );
});

test('the same over TCP, by name and by our own client', { skip: without('nbdinfo') }, async () => {
  const tcp = await NbdServer.listen(host, { type: 'inet', host: '127.0.0.1', port: 0 });
  tcp.addExport({ name: 'disk', target: disk.backend, readOnly: true, multiConn: true });
  const { address } = tcp;
  assert.ok(address.type === 'inet');
  const filename = `nbd://127.0.0.1:${address.port}/disk`;
  assert.equal(Number(await run('nbdinfo', '--size', filename)), SIZE);
  const node = await bed.opener.openImage(filename, 'nbd', { readOnly: true });
  assert.equal(node.filename, filename);
  const remote = await bed.attach(node, { readOnly: true });
  assert.ok((await remote.readAll()).equals(content));
  await remote.close();
  await tcp.close();
});

test('nbdcopy copies out and in', { skip: without('nbdcopy') }, async () => {
  await run('nbdcopy', uri('disk'), 'out.raw');
  assert.ok(readFileSync(path('out.raw')).equals(content));
  const changed = Buffer.from(content);
  changed.fill(0xab, 3 * MiB, 5 * MiB).fill(0, 0, MiB);
  writeFileSync(path('in.raw'), changed);
  await run('nbdcopy', 'in.raw', uri('disk'));
  assert.ok((await disk.readAll()).equals(changed));
  writeFileSync(path('in.raw'), content);
  await run('nbdcopy', 'in.raw', uri('disk'));
  assert.ok((await disk.readAll()).equals(content));
});

test('qemu-img reads, compares and writes', { skip: without('qemu-img') }, async () => {
  const info = JSON.parse(await run('qemu-img', 'info', '--output=json', uri('disk'))) as Record<
    string,
    unknown
  >;
  assert.equal(info['virtual-size'], SIZE);
  await run('qemu-img', 'convert', '-O', 'qcow2', uri('ro'), 'copy.qcow2');
  await run('qemu-img', 'compare', 'copy.qcow2', uri('disk'));
  await run('qemu-img', 'convert', '-n', '-O', 'raw', 'copy.qcow2', uri('disk'));
  assert.ok((await disk.readAll()).equals(content));
  const map = JSON.parse(await run('qemu-img', 'map', '--output=json', uri('disk'))) as Array<{
    zero: boolean;
  }>;
  assert.deepEqual(
    map.map(({ zero }) => zero),
    [false, true, false],
  );
});

test('qemu-io writes, discards and is refused', { skip: without('qemu-io') }, async () => {
  const io = (name: string, ...commands: string[]): Promise<{ code: number | null; out: string }> =>
    tryRun('qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri(name));
  const steps = [
    'write -P 7 1M 64k',
    'write -z 1088k 4k',
    'write -f -P 8 1000 24',
    'discard 2M 64k',
    'flush',
  ];
  const done = await io('disk', ...steps, 'read -P 7 1M 64k', 'read -P 0 1088k 4k', 'read -P 8 1000 24');
  assert.deepEqual([done.code, /failed/.test(done.out)], [0, false], done.out);
  assert.equal((await disk.read(1000, 1))[0], 8);
  assert.match((await io('ro', 'read 0 512')).out, /Permission denied/);
  await disk.write(0, content);
});

test('libnbd in all its ways', { skip: without('nbdsh') }, async () => {
  const script = `
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.set_uri_allow_local_file(True)
h.connect_uri(${JSON.stringify(uri('disk'))})
assert h.get_structured_replies_negotiated() and h.can_meta_context("base:allocation")
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
cookies = [h.aio_pread(nbd.Buffer(65536), i * 65536) for i in range(64)]
while h.aio_in_flight() > 0: h.poll(-1)
for c in cookies: assert h.aio_command_completed(c)
h.pwrite(b"\\x11" * 4096, 8192, nbd.CMD_FLAG_FUA)
assert h.pread_structured(4096, 8192, lambda *a: 0, nbd.CMD_FLAG_DF) == b"\\x11" * 4096
holes = []
def chunk(data, offset, status, error):
    if status == nbd.READ_HOLE: holes.append((offset, len(data)))
h.pread_structured(4 << 20, 1 << 20, chunk)
assert holes == [(2 << 20, 3 << 20)], holes
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(4096, 8192) == bytes(4096)
h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
h.cache(4096, 0)
extents = []
h.block_status(${SIZE}, 0, lambda context, offset, entries, error: extents.extend(entries))
assert sum(extents[0::2]) == ${SIZE}
def fails(errno, f, *args):
    try: f(*args)
    except nbd.Error as ex: assert ex.errno == errno, ex.errno
    else: assert False, "no error"
fails("EINVAL", h.pread, 512, ${SIZE})
fails("ENOSPC", h.pwrite, bytes(512), ${SIZE})
h.flush()
h.shutdown()
`;
  // libnbd's module belongs to the system's Python, whatever other Python comes first.
  await run('env', `PATH=/usr/bin:${process.env['PATH'] ?? ''}`, 'nbdsh', '-c', script);
  await disk.write(0, content);
});

/** Starts a server and waits until it answers on its socket, which is there a moment before. */
async function start(socket: string, program: string, ...args: string[]): Promise<ChildProcess> {
  const child = spawn(program, args, { cwd: folder, stdio: 'ignore' });
  peers.add(child);
  while (child.exitCode === null) {
    try {
      (await host.net.connect({ type: 'unix', path: path(socket) })).destroy();
      return child;
    } catch {
      await host.clock.sleep(25);
    }
  }
  throw new Error(`${program} does not listen`);
}

function nbdkit(socket: string, ...args: string[]): Promise<ChildProcess> {
  return start(socket, 'nbdkit', '-f', '-U', path(socket), ...args);
}

function connect(socket: string, exportName = '', more: object = {}): Promise<NbdClient> {
  return NbdClient.connect({ host, address: { type: 'unix', path: path(socket) }, exportName, ...more });
}

test('our client against qemu-nbd', { skip: without('qemu-nbd', 'qemu-img') }, async () => {
  writeFileSync(path('q.raw'), content);
  await start(
    'q',
    'qemu-nbd',
    '-k',
    path('q'),
    '-t',
    '-e',
    '4',
    '-x',
    'q',
    '--discard=unmap',
    '-f',
    'raw',
    'q.raw',
  );
  const remote = await bed.open({ driver: 'nbd', server: { type: 'unix', path: path('q') }, export: 'q' });
  assert.ok((await remote.readAll()).equals(content));
  const changed = Buffer.from(content);
  for (let i = 0; i < 64; i++) changed.fill(i + 1, i * 70_000, i * 70_000 + 9_000);
  await Promise.all(
    Array.from({ length: 64 }, (_, i) =>
      remote.write(i * 70_000, changed.subarray(i * 70_000, i * 70_000 + 9_000)),
    ),
  );
  await remote.backend.writeZeroes(7 * MiB, 65_536, 0);
  changed.fill(0, 7 * MiB, 7 * MiB + 65_536);
  await remote.backend.flush();
  assert.ok((await remote.readAll()).equals(changed));
  assert.ok(readFileSync(path('q.raw')).equals(changed));
  await remote.backend.discard(4 * MiB, MiB);
  const status = await remote.node.io.status(4 * MiB, 4 * MiB);
  assert.deepEqual([status.zero, status.lengthBytes], [true, MiB]);
  await remote.close();
  const denied = await errorOf(connect('q', 'nope'));
  assert.equal(denied.message, 'Requested export not available');
});

for (const [what, ...args] of [
  ['of today'],
  ['without structured replies', '--no-sr'],
  ['of a handshake that is not fixed', '--mask-handshake=0'],
  ['of the oldstyle handshake', '--oldstyle'],
  [
    'of large blocks',
    '--filter=blocksize-policy',
    'blocksize-minimum=4096',
    'blocksize-maximum=65536',
    'blocksize-error-policy=error',
  ],
] as const) {
  test(`our client against an nbdkit ${what}`, { skip: without('nbdkit') }, async () => {
    const socket = `k${what.length}`;
    const filters = args.filter((arg) => arg.startsWith('--'));
    const parameters = args.filter((arg) => !arg.startsWith('--'));
    await nbdkit(socket, ...filters, 'memory', '8M', ...parameters);
    const remote = await bed.open({ driver: 'nbd', server: { type: 'unix', path: path(socket) } });
    await remote.write(0, content);
    await remote.write(1000, Buffer.alloc(10, 0xcc));
    // That nbdkit offers its oldstyle clients zeroes and flushes, and then refuses them.
    const isOldstyle = filters.includes('--oldstyle');
    if (isOldstyle) await remote.write(3 * MiB + 100, Buffer.alloc(MiB));
    else {
      await remote.backend.writeZeroes(3 * MiB + 100, MiB);
      await remote.backend.flush();
    }
    const expected = Buffer.from(content);
    expected.fill(0xcc, 1000, 1010).fill(0, 3 * MiB + 100, 4 * MiB + 100);
    assert.ok((await remote.readAll()).equals(expected));
    if (isOldstyle) assert.equal((await errorOf(remote.close())).errno, 'EINVAL');
    else await remote.close();
  });
}

test('a qcow2 image lives in an export until that is full', { skip: without('qemu-img') }, async () => {
  await fileDriver.createFile?.(host, path('small'), 2 * MiB);
  const small = await bed.open({ driver: 'file', filename: path('small') });
  server.addExport({ name: 'small', target: small.backend, readOnly: false, multiConn: true });
  await createImage(bed.opener, uri('small'), 'qcow2', { sizeBytes: SIZE });
  const child = { driver: 'nbd', server: { type: 'unix', path: path('socket') }, export: 'small' };
  const image = await bed.open({ driver: 'qcow2', file: child });
  await image.write(5 * MiB, content.subarray(0, MiB));
  assert.equal((await errorOf(image.write(0, content.subarray(0, 2 * MiB)))).kind, 'no-space');
  await image.backend.flush();
  assert.ok((await image.read(5 * MiB, MiB)).equals(content.subarray(0, MiB)));
  await image.close();
  await run('qemu-img', 'check', '-f', 'qcow2', uri('small'));
  const pattern = await tryRun('qemu-io', '-r', '-f', 'qcow2', '-c', 'read -P 1 5M 512', uri('small'));
  assert.deepEqual([pattern.code, /failed/.test(pattern.out)], [0, false], pattern.out);
  await server.removeExport('small', 'hard');
  await small.close();
});

test('errors and delays of an nbdkit', { skip: without('nbdkit') }, async () => {
  await nbdkit('e', '--filter=error', 'memory', '1M', 'error-pwrite=ENOSPC', 'error-pwrite-rate=100%');
  const failing = await connect('e');
  assert.equal((await errorOf(failing.write(0, Buffer.alloc(4096), 0))).kind, 'no-space');
  await failing.read(0, Buffer.alloc(4096));
  await failing.close();
  await nbdkit('d', '--filter=delay', 'memory', '1M', 'rdelay=30');
  const slow = await connect('d', '', { requestTimeoutMs: 300 });
  const pending = errorOf(slow.read(0, Buffer.alloc(4096)));
  await slow.write(0, Buffer.alloc(4096), 0);
  assert.equal((await pending).errno, 'ETIMEDOUT');
  assert.equal((await errorOf(slow.flush())).errno, 'EIO');
  await slow.close();
  await nbdkit('z', '--filter=nozero', 'memory', '1M', 'zeromode=none');
  const plain = await connect('z');
  assert.equal(plain.has(TransmissionFlag.sendWriteZeroes), false);
  await plain.close();
  await nbdkit('f', '--filter=nozero', 'memory', '1M', 'zeromode=emulate', 'fastzeromode=slow');
  const unhurried = await connect('f');
  assert.equal((await errorOf(unhurried.writeZeroes(0, 4096, CommandFlag.fastZero))).kind, 'unsupported');
  await unhurried.close();
});

test(
  'a peer that is killed or stopped takes no request with it for ever',
  { skip: without('nbdkit') },
  async () => {
    const killed = await nbdkit('kill', '--filter=delay', 'memory', '1M', 'rdelay=30');
    const first = await connect('kill');
    const pending = errorOf(first.read(0, Buffer.alloc(4096)));
    await first.write(0, Buffer.alloc(512), 0);
    killed.kill('SIGKILL');
    assert.equal((await pending).errno, 'EIO');
    assert.equal((await errorOf(first.read(0, Buffer.alloc(512)))).errno, 'EIO');
    await first.close();
    const stopped = await nbdkit('stop', 'memory', '1M');
    const second = await connect('stop', '', { requestTimeoutMs: 300 });
    stopped.kill('SIGSTOP');
    assert.equal((await errorOf(second.write(0, Buffer.alloc(MiB), 0))).errno, 'ETIMEDOUT');
    await second.close();
    assert.equal((await errorOf(connect('stop', '', { handshakeTimeoutMs: 300 }))).kind, 'timeout');
  },
);
