import assert from 'node:assert/strict';
import { once } from 'node:events';
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import net from 'node:net';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { deferred } from '../base/async.js';
import { type Cleanup, hostConformance } from '../../test/kit/host-conformance.js';
import type { HostSocket } from './host.js';
import { errnoName, nodeError } from './call-error.js';
import type { CallResult } from './native-calls.js';
import { IoVector } from '../base/io-vector.js';
import { cutMemory, isTidy } from '../../test/kit/memory-pieces.js';
import { createRealHost } from './real.js';
import { RealFiles } from './real-files.js';
import { Syscalls } from './syscalls.js';
import { readBuffer, tryReadBuffer, writeBuffer } from './whole-buffers.js';

function newFolder(context: Cleanup, parent: string): string {
  const folder = mkdtempSync(join(parent, 'livedisk-host-'));
  context.after(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** The temporary folder, which is mostly a disk, memory and what is remote, whose files take other paths. */
for (const [name, parent, options] of [
  ['the temporary folder', tmpdir(), {}],
  ['memory', '/dev/shm', {}],
  ['a remote file system', tmpdir(), { everythingIsRemote: true }],
] as const) {
  if (!existsSync(parent)) continue;
  hostConformance(`real host in ${name}`, async (context) => ({
    host: createRealHost(options),
    folder: newFolder(context, parent),
    addresses: [
      { type: 'inet', host: 'localhost', port: 0 },
      { type: 'inet', host: '127.0.0.1', port: 0 },
    ],
    failCompute: () => undefined,
    run: (body) => body(),
  }));
}

test('a file that cannot be opened again is named by its path', async () => {
  const { files } = createRealHost();
  // Nobody may write into a program that runs.
  const path = process.execPath;
  const file = await files.open(path, { write: false });
  await assert.rejects(files.open(path, { write: true, again: file }), (error: Error) => {
    assert.match(error.message, /^Could not open '(.*)': [A-Z][a-z -]+$/);
    assert.equal(error.message.split("'")[1], path);
    return true;
  });
  await file.close();
});

test('what others than the owner may look into is not private', async (context) => {
  const { files } = createRealHost();
  const folder = newFolder(context, tmpdir());
  const path = join(folder, 'file');
  writeFileSync(path, 'text');
  for (const [mode, isPrivate] of [
    [0o600, true],
    [0o640, false],
    [0o602, false],
  ] as const) {
    chmodSync(path, mode);
    assert.equal((await files.stat(path))?.isPrivate, isPrivate, mode.toString(8));
  }
});

test('O_DIRECT reads and writes any memory, and past the end of the file', async (context) => {
  const path = join(newFolder(context, tmpdir()), 'direct');
  const host = createRealHost();
  const file = await host.files
    .open(path, { write: true, create: true, direct: true })
    .catch(() => undefined);
  if (!file) return context.skip('this file system has no O_DIRECT');
  assert.ok([512, 4096].includes(file.traits.alignmentBytes), String(file.traits.alignmentBytes));
  const memory = Buffer.alloc(3 * 4096 + 1, 3).subarray(1);
  await writeBuffer(file, 0, memory.subarray(0, 4096));
  await readBuffer(file, 0, memory);
  assert.deepEqual(memory, Buffer.concat([Buffer.alloc(4096, 3), Buffer.alloc(8192)]));
  assert.equal(tryReadBuffer(file, 0, memory), false);
  await assert.rejects(readBuffer(file, 1, memory), /not aligned/);
  await file.close();
});

test('memory in pieces: of O_DIRECT aligned or not, and more of them than one call takes', async (context) => {
  const path = join(newFolder(context, tmpdir()), 'pieces');
  const host = createRealHost();
  const content = Buffer.from(Array.from({ length: 16 * 4096 }, (_, i) => i % 253));
  const direct = await host.files
    .open(path, { write: true, create: true, direct: true })
    .catch(() => undefined);
  const buffered = await host.files.open(path, { write: true, create: true });
  const aligned = new IoVector();
  aligned.setBuffers(Array.from({ length: 4 }, () => host.files.buffer(4 * 4096)));
  const cases = [aligned, cutMemory(content.length, [1000, 3], 7), cutMemory(content.length, [5])];
  for (const file of direct ? [direct, buffered] : [buffered])
    for (const memory of cases) {
      memory.copyFrom(content, 0);
      await file.write(0, memory, 0, content.length);
      for (const read of [file.read.bind(file), file.tryRead.bind(file)]) {
        memory.fillZero(0, content.length);
        const done = await read(0, memory, 0, content.length);
        if (done !== false) assert.deepEqual(memory.gather(0, content.length), content);
        if (memory !== aligned) assert.ok(isTidy(memory));
      }
    }
  await direct?.close();
  await buffered.close();
});

/** Of a kernel that lacks a call, or a flag of it. */
class LackingSyscalls extends Syscalls {
  readonly #answer: CallResult;

  constructor(errno: number) {
    super();
    this.#answer = { value: -1, errno: errnoName(errno) };
  }

  override async writeDurable(): Promise<CallResult> {
    return this.#answer;
  }
}

test('where no write is durable by itself, a flush makes it so', async (context) => {
  const folder = newFolder(context, tmpdir());
  const { EOPNOTSUPP, ENOSYS, EINVAL } = constants.errno;
  for (const errno of [EOPNOTSUPP, ENOSYS, EINVAL]) {
    const files = new RealFiles(new LackingSyscalls(errno));
    const file = await files.open(join(folder, `${errno}`), { write: true, create: true });
    const memory = new IoVector();
    memory.setBuffers([Buffer.alloc(1000, 7)]);
    for (let at = 0; at < 3000; at += 1000) await file.writeDurable(at, memory, 0, 1000);
    await file.flush();
    assert.equal(file.hasLostWrites, false);
    const read = Buffer.alloc(3000);
    await readBuffer(file, 0, read);
    assert.deepEqual(read, Buffer.alloc(3000, 7));
    await file.close();
  }
});

test('no file has a name with a zero byte in it', async () => {
  const { files } = createRealHost();
  const path = '/tmp/a\0b';
  const message = `Could not open '${path}': No such file or directory`;
  await assert.rejects(files.open(path, { write: false }), { kind: 'not-found', message });
  assert.equal(await files.stat(path), undefined);
});

test('a listener replaces a stale socket, but no other file', async (context) => {
  const folder = newFolder(context, tmpdir());
  const host = createRealHost();
  const path = join(folder, 's');
  const first = await host.net.listen({ type: 'unix', path }, () => undefined);
  const second = await host.net.listen({ type: 'unix', path }, () => undefined);
  const socket = await host.net.connect({ type: 'unix', path });
  socket.start({ onData: () => undefined, onClose: () => undefined });
  socket.destroy();
  await second.close();
  await first.close();
  assert.equal(existsSync(path), false);
  writeFileSync(join(folder, 'file'), 'precious');
  await assert.rejects(
    host.net.listen({ type: 'unix', path: join(folder, 'file') }, () => undefined),
    {
      message: `Failed to bind socket to ${join(folder, 'file')}: Address already in use`,
    },
  );
  await assert.rejects(
    host.net.listen({ type: 'unix', path: `/${'x'.repeat(108)}` }, () => undefined),
    /too long/,
  );
  await assert.rejects(
    host.net.listen({ type: 'unix', path: '' }, () => undefined),
    { kind: 'invalid', message: 'UNIX socket path is empty' },
  );
});

interface NativeCalls {
  koffi: typeof import('koffi');
  dup: (fd: number) => number;
  sendmsg: (fd: number, message: BigUint64Array, flags: number) => number;
}

function nativeCalls(): NativeCalls {
  const koffi = createRequire(import.meta.url)('koffi') as NativeCalls['koffi'];
  const libc = koffi.load(null);
  return {
    koffi,
    dup: libc.func('int dup(int fd)'),
    sendmsg: libc.func('int64_t sendmsg(int fd, const void *message, int flags)'),
  };
}

function descriptorOf(socket: net.Socket): number {
  return (socket as unknown as { _handle: { fd: number } })._handle.fd;
}

test('a connected descriptor is taken over', async (context) => {
  const path = join(newFolder(context, tmpdir()), 's');
  const host = createRealHost();
  const echo = net.createServer((socket) => socket.pipe(socket)).listen(path);
  context.after(() => void echo.close());
  const plain = net.connect(path);
  await once(plain, 'connect');
  const fd = nativeCalls().dup(descriptorOf(plain));
  plain.destroy();
  const socket = await host.net.connect({ type: 'fd', fd });
  const answer = deferred<string>();
  socket.start({ onData: (chunk) => answer.resolve(chunk.toString()), onClose: () => undefined });
  socket.write(Buffer.from('hello'));
  assert.equal(await answer.promise, 'hello');
  socket.destroy();
});

test('a listening descriptor is taken over', async (context) => {
  const host = createRealHost();
  const plain = net.createServer().listen(0, '127.0.0.1');
  await once(plain, 'listening');
  const { port } = plain.address() as net.AddressInfo;
  const fd = nativeCalls().dup((plain as unknown as { _handle: { fd: number } })._handle.fd);
  plain.close();
  await once(plain, 'close');
  const listener = await host.net.listen({ type: 'fd', fd }, (socket) => {
    socket.start({ onData: () => undefined, onClose: () => undefined });
    socket.write(Buffer.from('taken over'));
    socket.end();
  });
  context.after(() => listener.close());
  const client = net.connect(port, '127.0.0.1');
  assert.equal(String(await once(client, 'data')), 'taken over');
  client.destroy();
});

test('descriptors passed over a socket arrive in order, with their data', async (context) => {
  const folder = newFolder(context, tmpdir());
  const host = createRealHost();
  const path = join(folder, 's');
  const got: Array<{ text: string; contents: string[] }> = [];
  const closed = deferred();
  const onConnection = (socket: HostSocket): void => {
    socket.start({
      onData: (chunk) => {
        const contents = (socket.takeFds?.() ?? []).map((fd) => {
          const content = readFileSync(fd, 'utf8');
          closeSync(fd);
          return content;
        });
        got.push({ text: chunk.toString(), contents });
        socket.write(Buffer.from('thanks'));
      },
      onClose: () => closed.resolve(),
    });
  };
  const listener = await host.net.listen({ type: 'unix', path }, onConnection, { receiveFds: true });
  const client = net.connect(path);
  await once(client, 'connect');
  const fds = ['one', 'two'].map((name) => {
    writeFileSync(join(folder, name), `content of ${name}`);
    return openSync(join(folder, name), 'r');
  });
  sendDescriptors(descriptorOf(client), 'take these', fds);
  for (const fd of fds) closeSync(fd);
  assert.equal(String(await once(client, 'data')), 'thanks');
  client.end('bye');
  await closed.promise;
  await listener.close();
  assert.deepEqual(got, [
    { text: 'take these', contents: ['content of one', 'content of two'] },
    { text: 'bye', contents: [] },
  ]);
});

test('descriptors that nobody takes are closed with their socket', async (context) => {
  const folder = newFolder(context, tmpdir());
  const host = createRealHost();
  const path = join(folder, 's');
  const [came, closed] = [deferred(), deferred()];
  const onConnection = (socket: HostSocket): void =>
    socket.start({ onData: () => came.resolve(), onClose: () => closed.resolve() });
  const listener = await host.net.listen({ type: 'unix', path }, onConnection, { receiveFds: true });
  const client = net.connect(path);
  context.after(async () => {
    client.destroy();
    await listener.close();
  });
  await once(client, 'connect');
  const file = join(folder, 'file');
  writeFileSync(file, '');
  const fd = openSync(file, 'r');
  const open = (): number =>
    readdirSync('/proc/self/fd').filter((name) => isLinkTo(`/proc/self/fd/${name}`, file)).length;
  sendDescriptors(descriptorOf(client), 'nobody', [fd]);
  closeSync(fd);
  await came.promise;
  assert.equal(open(), 1, 'it is there');
  client.destroy();
  await closed.promise;
  assert.equal(open(), 0, 'and is closed');
});

function isLinkTo(link: string, file: string): boolean {
  try {
    return readlinkSync(link) === file;
  } catch {
    // It was the listing's own.
    return false;
  }
}

/** sendmsg(2) with one SCM_RIGHTS control message. */
function sendDescriptors(fd: number, text: string, fds: number[]): void {
  const { koffi, sendmsg } = nativeCalls();
  const data = Buffer.from(text.padEnd(80)).subarray(0, text.length);
  const control = Buffer.alloc(128);
  control.writeBigUInt64LE(BigInt(16 + 4 * fds.length), 0);
  control.writeInt32LE(1, 8);
  control.writeInt32LE(1, 12);
  fds.forEach((passed, i) => control.writeInt32LE(passed, 16 + 4 * i));
  const iovec = BigUint64Array.of(koffi.address(data), BigInt(data.length));
  const controlBytes = BigInt(16 + 8 * Math.ceil(fds.length / 2));
  const message = BigUint64Array.of(
    0n,
    0n,
    koffi.address(iovec),
    1n,
    koffi.address(control),
    controlBytes,
    0n,
  );
  assert.equal(sendmsg(fd, message, 0), data.length);
}

test('an errno that Node has no name for has its own', () => {
  const error = Object.assign(new Error('Unknown system error -122: write'), {
    code: 'Unknown system error -122',
    errno: -122,
  });
  const { kind, errno, message } = nodeError(error, undefined, {});
  assert.deepEqual([kind, errno, message], ['no-space', 'EDQUOT', 'Disk quota exceeded']);
});
