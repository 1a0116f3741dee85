import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Writable } from 'node:stream';
import { deferred } from '../base/async.js';
import { KiB, MiB } from '../base/limits.js';
import { FileSending } from './file-sending.js';
import type { Host, HostFile, HostSocket, SocketAddress } from './host.js';
import { SocketQueue } from './socket-queue.js';
import { RealFile } from './real-file.js';
import { createRealHost } from './real.js';

const FILE_BYTES = 4 * MiB;

const WITHOUT = 'before Linux 6.5 nothing tells what of a file is in the page cache';

interface Bed {
  host: Host;
  file: HostFile;
  path: string;
  bytes: Buffer;
  /** Files of this folder can be sent. */
  canSend: boolean;
  /** A connection's two ends; the reader is not started. */
  pair: (
    address?: SocketAddress,
  ) => Promise<{ writer: HostSocket; reader: HostSocket; drained: () => number }>;
}

async function bedIn(context: TestContext, parent: string): Promise<Bed> {
  const folder = mkdtempSync(join(parent, 'livedisk-queue-'));
  const host = createRealHost();
  const bytes = randomBytes(FILE_BYTES);
  const path = join(folder, 'file');
  writeFileSync(path, bytes);
  const file = await host.files.open(path, { write: true });
  const closers: Array<() => unknown> = [];
  context.after(async () => {
    for (const close of closers) await close();
    await file.close();
    rmSync(folder, { recursive: true });
  });
  const pair: Bed['pair'] = async (address = { type: 'unix', path: join(folder, 'socket') }) => {
    const accepted = deferred<HostSocket>();
    let drains = 0;
    const listener = await host.net.listen(address, (socket) => {
      socket.start({ onData: () => undefined, onClose: () => undefined, onDrain: () => drains++ });
      accepted.resolve(socket);
    });
    const reader = await host.net.connect(listener.address);
    const writer = await accepted.promise;
    closers.push(
      () => writer.destroy(),
      () => reader.destroy(),
      () => listener.close(),
    );
    return { writer, reader, drained: () => drains };
  };
  assert.ok(file instanceof RealFile);
  const canSend = parent === '/dev/shm' || file.sending.isAtHand(0, FILE_BYTES);
  return { host, file, path, bytes, canSend, pair };
}

/** Reads all until the end. */
function readAll(reader: HostSocket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  const all = deferred<Buffer>();
  reader.start({
    onData: (chunk) => chunks.push(Buffer.from(chunk)),
    onClose: (error) => (error ? all.reject(error) : all.resolve(Buffer.concat(chunks))),
  });
  return all.promise;
}

function send(writer: HostSocket, head: string, file: HostFile, position: number, lengthBytes: number): void {
  const bytes = Buffer.from(head);
  assert.equal(writer.sendFile?.(bytes, file, position, lengthBytes), true);
  bytes.fill(0);
}

for (const [name, parent] of [
  ['the temporary folder', tmpdir()],
  ['memory', '/dev/shm'],
] as const) {
  if (!existsSync(parent)) continue;

  test(`files and bytes go out in order, whoever reads late: ${name}`, async (context) => {
    const { file, bytes, canSend, pair } = await bedIn(context, parent);
    if (!canSend) return context.skip(WITHOUT);
    const { writer, reader, drained } = await pair();
    const expected: Buffer[] = [];
    for (let i = 0; i < 24; i++) {
      const position = i * 100_003;
      const lengthBytes = 64 * KiB + i * 7001;
      send(writer, `head ${i}`, file, position, lengthBytes);
      expected.push(Buffer.from(`head ${i}`), bytes.subarray(position, position + lengthBytes));
      const text = Buffer.from(`text ${i} `.repeat(i * 300));
      if (i % 3 === 0) writer.write(text);
      if (i % 3 === 0) expected.push(text);
    }
    const all = Buffer.concat(expected);
    assert.ok(writer.queuedBytes > 0 && writer.queuedBytes < all.length, 'the kernel takes a part of it');
    assert.equal(drained(), 0);
    const got = readAll(reader);
    writer.end();
    assert.ok((await got).equals(all));
    assert.equal(writer.queuedBytes, 0);
  });

  test(`what is queued is told to be gone, once: ${name}`, async (context) => {
    const { file, bytes, canSend, pair } = await bedIn(context, parent);
    if (!canSend) return context.skip(WITHOUT);
    const { writer, reader, drained } = await pair();
    send(writer, '', file, 0, FILE_BYTES);
    assert.ok(writer.queuedBytes > 0);
    let count = 0;
    const whole = deferred();
    reader.start({
      onData: (chunk) => {
        assert.ok(chunk.equals(bytes.subarray(count, count + chunk.length)));
        count += chunk.length;
        if (count === FILE_BYTES) whole.resolve();
      },
      onClose: () => undefined,
    });
    await whole.promise;
    while (writer.queuedBytes > 0 || drained() === 0) await new Promise(setImmediate);
    assert.equal(drained(), 1);
  });

  test(`a file that closes, or has become shorter, leaves nothing out: ${name}`, async (context) => {
    const { host, file, path, bytes, canSend, pair } = await bedIn(context, parent);
    if (!canSend) return context.skip(WITHOUT);
    const { writer, reader } = await pair();
    const closing = await host.files.open(path, { write: false });
    send(writer, 'a', closing, 0, 2 * MiB);
    send(writer, 'b', closing, 2 * MiB, MiB);
    await closing.close();
    send(writer, 'c', file, 3 * MiB, MiB);
    truncateSync(path, 3 * MiB + 512 * KiB);
    const got = readAll(reader);
    writer.end();
    const all = await got;
    const rest = Buffer.concat([bytes.subarray(3 * MiB, 3 * MiB + 512 * KiB), Buffer.alloc(512 * KiB)]);
    const [a, b, c] = ['a', 'b', 'c'].map((text) => Buffer.from(text));
    const expected = [a, bytes.subarray(0, 2 * MiB), b, bytes.subarray(2 * MiB, 3 * MiB), c, rest];
    assert.ok(all.equals(Buffer.concat(expected.filter((part) => part !== undefined))));
  });

  test(`it is told when the bytes of a file have left, far away as here: ${name}`, async (context) => {
    const { file, bytes, canSend, pair } = await bedIn(context, parent);
    if (!canSend) return context.skip(WITHOUT);
    for (const [address, isLocal] of [
      [undefined, true],
      [{ type: 'inet', host: '127.0.0.1', port: 0 }, false],
    ] as const) {
      const { writer, reader } = await pair(address);
      assert.equal(writer.isLocal, isLocal);
      const left: string[] = [];
      const told =
        (what: string): (() => void) =>
        () =>
          void left.push(what);
      // More than sockets take, however their buffers grow.
      const parts = Array.from({ length: 12 }, (_, i) => `part ${i}`);
      for (const part of parts)
        assert.ok(writer.sendFile?.(Buffer.from('h'), file, 0, FILE_BYTES, told(part)));
      assert.ok(left.length < parts.length, `${left.length} have left before anybody read them`);
      const got = readAll(reader);
      writer.end();
      const each = Buffer.concat([Buffer.from('h'), bytes]);
      assert.ok((await got).equals(Buffer.concat(parts.map(() => each))));
      assert.deepEqual(left, parts);
    }
  });

  test(`the bytes of a file that is closed, or whose peer hangs up, are sent no more: ${name}`, async (context) => {
    const { host, path, canSend, pair } = await bedIn(context, parent);
    if (!canSend) return context.skip(WITHOUT);
    for (const how of ['close', 'hang up'] as const) {
      const { writer, reader } = await pair();
      const file = await host.files.open(path, { write: false });
      const left = deferred();
      assert.ok(writer.sendFile?.(Buffer.from('head'), file, 0, FILE_BYTES, () => left.resolve()));
      if (how === 'close') await file.close();
      else reader.destroy();
      await left.promise;
      if (how === 'hang up') await file.close();
    }
  });

  test(`a peer that hangs up keeps no file: ${name}`, async (context) => {
    const { host, path, canSend, pair } = await bedIn(context, parent);
    if (!canSend) return context.skip(WITHOUT);
    const { writer, reader } = await pair();
    const file = await host.files.open(path, { write: false });
    send(writer, 'head', file, 0, FILE_BYTES);
    reader.start({ onData: () => undefined, onClose: () => undefined });
    reader.destroy();
    while (writer.queuedBytes > 0) await new Promise(setImmediate);
    await file.close();
    assert.equal(writer.write(Buffer.from('late')), 'sent');
  });
}

test('what cannot be sent from the page cache is left to who asks', async (context) => {
  const { host, path, pair } = await bedIn(context, tmpdir());
  const { writer } = await pair();
  assert.equal(writer.sendFile?.(Buffer.alloc(1), { not: 'a file' }, 0, MiB), false);
  const closed = await host.files.open(path, { write: false });
  await closed.close();
  assert.equal(writer.sendFile?.(Buffer.alloc(1), closed, 0, MiB), false);
  assert.equal(writer.queuedBytes, 0);
});

/** A queue whose socket takes nothing of files at once, and what comes to the socket in which way. */
function stuckQueue(): {
  queue: SocketQueue;
  sending: FileSending;
  stream: Writable;
  told: string[];
  breakFile: () => void;
  goOn: () => void;
} {
  let isBroken = false;
  let goOn = (): void => undefined;
  const told: string[] = [];
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      told.push(`stream ${chunk.length}`);
      goOn = done;
    },
  });
  const system = {
    isCached: () => true,
    readNoWait: () => 1,
    sendFile: () => ({ value: -1, errno: isBroken ? 'EIO' : 'EAGAIN' }),
    read: (_fd: number, _memory: unknown, _at: number, lengthBytes: number) => (isBroken ? -1 : lengthBytes),
  };
  const traits = { isRemote: false, inMemory: false };
  const descriptor = { fd: 5, isClosed: false };
  const sending = new FileSending(descriptor as never, system as never, traits as never, false);
  const sendNow = (_fd: number, bytes: Uint8Array): unknown => {
    told.push(`at once ${bytes.length}`);
    return { value: bytes.length, errno: '' };
  };
  const queue = new SocketQueue(
    stream,
    { sendNow } as never,
    () => (stream.destroyed ? undefined : 3),
    () => undefined,
  );
  return { queue, sending, stream, told, breakFile: () => void (isBroken = true), goOn: () => goOn() };
}

for (const when of ['it is sent', 'the file closes'] as const)
  test(`what cannot be read any more when ${when} is no zeroes: the connection is cut`, () => {
    const { queue, sending, stream, told, breakFile, goOn } = stuckQueue();
    const next = (): void => queue.sendFile(Buffer.from('next'), sending, 0, 1);
    queue.sendFile(Buffer.from('head'), sending, 0, MiB, next);
    assert.ok(queue.queuedBytes > 0);
    breakFile();
    if (when === 'the file closes') sending.recall();
    else goOn();
    assert.equal(stream.destroyed, true);
    assert.equal(queue.queuedBytes, 0);
    assert.deepEqual(told, ['at once 4', `stream ${4 * KiB}`], 'nothing takes the place of what is missing');
  });

test('who sends on when the last bytes of a file leave comes behind them', () => {
  const { queue, sending, told, goOn } = stuckQueue();
  queue.sendFile(Buffer.from('first'), sending, 0, 3 * KiB, () =>
    queue.sendFile(Buffer.from('second'), sending, 0, 2 * KiB),
  );
  for (let i = 0; i < 3; i++) goOn();
  assert.deepEqual(told, ['at once 5', `stream ${3 * KiB}`, 'stream 6', `stream ${2 * KiB}`]);
});
