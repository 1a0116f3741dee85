import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Cleanup, hostConformance } from '../testing/host-conformance.js';
import { createRealHost } from './real.js';

function newFolder(context: Cleanup, parent: string): string {
  const folder = mkdtempSync(join(parent, 'livedisk-host-'));
  context.after(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** The temporary folder, which is mostly a disk, and memory, whose files take other paths. */
for (const parent of new Set([tmpdir(), '/dev/shm'])) {
  if (!existsSync(parent)) continue;
  hostConformance(`real host in ${parent}`, async (context) => ({
    host: createRealHost(),
    folder: newFolder(context, parent),
    addresses: [
      { type: 'inet', host: 'localhost', port: 0 },
      { type: 'inet', host: '127.0.0.1', port: 0 },
    ],
    run: (body) => body(),
  }));
}

test('O_DIRECT reads and writes any memory, and past the end of the file', async (context) => {
  const path = join(newFolder(context, tmpdir()), 'direct');
  const host = createRealHost();
  const file = await host.files
    .open(path, { write: true, create: true, direct: true })
    .catch(() => undefined);
  if (!file) return context.skip('this file system has no O_DIRECT');
  assert.equal(file.traits.alignmentBytes, 4096);
  const memory = Buffer.alloc(3 * 4096 + 1, 3).subarray(1);
  await file.write(0, memory.subarray(0, 4096));
  await file.read(0, memory);
  assert.deepEqual(memory, Buffer.concat([Buffer.alloc(4096, 3), Buffer.alloc(8192)]));
  assert.equal(file.tryRead(0, memory), false);
  await assert.rejects(file.read(1, memory), /not aligned/);
  await file.close();
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
});

test('a connected descriptor is taken over', async (context) => {
  const path = join(newFolder(context, tmpdir()), 's');
  const host = createRealHost();
  const echo = net.createServer((socket) => socket.pipe(socket)).listen(path);
  context.after(() => void echo.close());
  const plain = net.connect(path);
  await new Promise((resolve) => plain.once('connect', resolve));
  const fd = (plain as unknown as { _handle: { fd: number } | null })._handle?.fd ?? -1;
  const socket = await host.net.connect({ type: 'fd', fd });
  const answer = await new Promise<string>((resolve) => {
    socket.start({ onData: (chunk) => resolve(chunk.toString()), onClose: () => undefined });
    socket.write(Buffer.from('hello'));
  });
  assert.equal(answer, 'hello');
  socket.destroy();
  (plain as unknown as { _handle: null })._handle = null;
});
