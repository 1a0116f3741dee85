import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { KiB, MiB } from '../../base/limits.js';
import type { NodeOptions } from '../../block/driver.js';
import { allDrivers } from '../../drivers/index.js';
import type { Host, SocketAddress } from '../../host/host.js';
import { createRealHost } from '../../host/real.js';
import { createImage } from '../../library/whole-images.js';
import { NbdPeer } from '../../../test/kit/nbd-peer.js';
import { TestBed, type TestDisk } from '../../../test/kit/test-disk.js';
import { Command, ReplyType } from './constants.js';
import { NbdServer } from './server.js';

const DISK_BYTES = 8 * MiB;

interface Bed {
  disk: TestDisk;
  bytes: Buffer;
  /** Replies that were sent from the file so far. */
  sentFiles: () => number;
  connect: (structured: boolean) => Promise<NbdPeer>;
}

/** Counts what sockets are asked to send from files, and did. */
function watched(host: Host, sent: () => void): Host {
  const { net } = host;
  const listen: typeof net.listen = (address, onConnection, options) =>
    net.listen(
      address,
      (socket) => {
        const sendFile = socket.sendFile?.bind(socket);
        assert.ok(sendFile);
        socket.sendFile = (...asked) => {
          const isSent = sendFile(...asked);
          if (isSent) sent();
          return isSent;
        };
        onConnection(socket);
      },
      options,
    );
  const connect: typeof net.connect = (address, options) => net.connect(address, options);
  const secure: typeof net.secure = (socket, end) => net.secure(socket, end);
  return { ...host, net: { listen, connect, secure } };
}

/** A disk on a real file, and a server on a unix socket, or on this one. */
async function newBed(
  context: TestContext,
  parent: string,
  optionsOf: (filename: string) => NodeOptions,
  fill: (path: string, bytes: Buffer) => void | Promise<void> = writeFileSync,
  far?: SocketAddress,
): Promise<Bed> {
  let count = 0;
  const host = watched(createRealHost(), () => count++);
  const folder = mkdtempSync(join(parent, 'livedisk-replies-'));
  const path = join(folder, 'disk.raw');
  const bytes = randomBytes(DISK_BYTES);
  await fill(path, bytes);
  const disk = await new TestBed(host, allDrivers, folder).open(optionsOf(path));
  const server = await NbdServer.listen(host, far ?? { type: 'unix', path: join(folder, 'socket') });
  const { address } = server;
  server.addExport({ name: 'disk', target: disk.backend, readOnly: false, multiConn: true });
  context.after(async () => {
    await server.close();
    await disk.close();
    rmSync(folder, { recursive: true });
  });
  const connect = async (structured: boolean): Promise<NbdPeer> => {
    const peer = await NbdPeer.greet(host, address);
    await peer.go('disk', { structured });
    return peer;
  };
  return { disk, bytes, sentFiles: () => count, connect };
}

const MEMORY = existsSync('/dev/shm') ? '/dev/shm' : undefined;
const inMemory = { skip: MEMORY ? false : 'there is no /dev/shm' };

const raw = (filename: string): NodeOptions => ({ driver: 'raw', file: { driver: 'file', filename } });

async function read(peer: NbdPeer, offset: number, lengthBytes: number): Promise<Buffer> {
  const reply = await peer.ask(Command.read, offset, lengthBytes);
  assert.equal(reply.failure, 0);
  return reply.payload.subarray(peer.style === 'simple' ? 0 : 8);
}

for (const parent of [tmpdir(), '/dev/shm']) {
  if (!existsSync(parent)) continue;
  for (const structured of [false, true]) {
    const how = structured ? 'structured' : 'simple';
    test(`long reads are sent from the file, what is written before is there: ${parent}, ${how}`, async (context) => {
      const { bytes, sentFiles, connect } = await newBed(context, parent, raw);
      const peer = await connect(structured);
      const lengths = [512, 64 * KiB - 512, 64 * KiB, 100 * KiB, 256 * KiB, 3 * MiB];
      for (const [i, lengthBytes] of lengths.entries()) {
        const offset = i * 33 * KiB;
        const payload = randomBytes(4 * KiB);
        bytes.set(payload, offset + 512);
        await peer.ask(Command.write, offset + 512, payload.length, { payload });
        assert.ok(
          (await read(peer, offset, lengthBytes)).equals(bytes.subarray(offset, offset + lengthBytes)),
        );
      }
      const longOnes = lengths.filter((lengthBytes) => lengthBytes >= 64 * KiB).length;
      // Before Linux 6.5 nothing tells what of a disk's file is in the page cache.
      if (parent !== '/dev/shm' && sentFiles() === 0) context.diagnostic('files are read here');
      else assert.equal(sentFiles(), longOnes);
    });
  }
}

test(
  'many reads of a client that takes none for a while are answered in order',
  inMemory,
  async (context) => {
    const { disk, bytes, sentFiles, connect } = await newBed(context, MEMORY ?? '', raw);
    const peer = await connect(false);
    peer.socket.pause();
    const reads = Array.from({ length: 28 }, (_, i) => i * 256 * KiB);
    for (const [cookie, offset] of reads.entries()) peer.request(Command.read, offset, 256 * KiB, { cookie });
    while (sentFiles() < 2) await new Promise((resolve) => setTimeout(resolve, 1));
    assert.ok(disk.backend.statistics.read.operations < reads.length, 'a client is not served without end');
    peer.socket.resume();
    for (const [i, offset] of reads.entries()) {
      const { payload, failure, cookieLow } = await peer.reply(256 * KiB);
      assert.deepEqual([failure, cookieLow], [0, i]);
      assert.ok(payload.equals(bytes.subarray(offset, offset + 256 * KiB)), `read ${i}`);
    }
    assert.equal(sentFiles(), reads.length);
    assert.equal(disk.backend.statistics.read.bytes, reads.length * 256 * KiB);
  },
);

test(
  'to a client that may be far away holes are sent, not the pages of a file',
  inMemory,
  async (context) => {
    const far = { type: 'inet', host: '127.0.0.1', port: 0 } as const;
    const { bytes, sentFiles, connect } = await newBed(context, MEMORY ?? '', raw, writeFileSync, far);
    const peer = await connect(true);
    assert.ok((await read(peer, 0, MiB)).equals(bytes.subarray(0, MiB)));
    assert.equal(sentFiles(), 0);
  },
);

test('a window of a file is sent from where it is', inMemory, async (context) => {
  const window = (filename: string): NodeOptions => ({ ...raw(filename), offset: MiB, size: 4 * MiB });
  const { bytes, sentFiles, connect } = await newBed(context, MEMORY ?? '', window);
  const peer = await connect(true);
  assert.ok((await read(peer, 64 * KiB, MiB)).equals(bytes.subarray(MiB + 64 * KiB, 2 * MiB + 64 * KiB)));
  assert.equal(sentFiles(), 1);
});

test('holes are still told as holes', async (context) => {
  const { sentFiles, connect } = await newBed(context, tmpdir(), raw, (path) => {
    writeFileSync(path, Buffer.alloc(0));
    writeFileSync(path, Buffer.alloc(DISK_BYTES));
  });
  const peer = await connect(true);
  await peer.ask(Command.writeZeroes, 0, MiB);
  const reply = await peer.ask(Command.read, 0, 512 * KiB);
  assert.equal(reply.type, ReplyType.offsetHole);
  assert.equal(sentFiles(), 0);
});

test('clusters that may be freed and used anew are read', async (context) => {
  const qcow2 = (filename: string): NodeOptions => ({ driver: 'qcow2', file: { driver: 'file', filename } });
  const { bytes, sentFiles, connect } = await newBed(context, tmpdir(), qcow2, (filename) =>
    createImage({ filename, format: 'qcow2', sizeBytes: DISK_BYTES }),
  );
  const peer = await connect(true);
  await peer.ask(Command.write, 0, MiB, { payload: bytes.subarray(0, MiB) });
  assert.ok((await read(peer, 0, MiB)).equals(bytes.subarray(0, MiB)));
  assert.equal(sentFiles(), 0);
});

test('what goes through a filter is read', async (context) => {
  for (const optionsOf of [
    (filename: string): NodeOptions => ({
      driver: 'raw',
      file: { driver: 'blkdebug', image: { driver: 'file', filename } },
    }),
    (filename: string): NodeOptions => ({ driver: 'copy-on-read', file: raw(filename) }),
  ]) {
    const { bytes, sentFiles, connect } = await newBed(context, tmpdir(), optionsOf);
    const peer = await connect(false);
    assert.ok((await read(peer, 0, MiB)).equals(bytes.subarray(0, MiB)));
    assert.equal(sentFiles(), 0);
  }
});
