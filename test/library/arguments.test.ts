import assert from 'node:assert/strict';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { test } from 'node:test';
import { createEngine, Engine, type Extent } from '../../src/index.js';
import { addDisk, contentOf, DISK_BYTES, engineWithDisk, MiB } from './library-bed.js';

const invalid = { name: 'BlockError', kind: 'invalid' };

test('wrong arguments of requests are refused by kind, and change nothing', async (t) => {
  const { engine, filename } = await engineWithDisk(t);
  const device = await engine.addDevice('disk', { id: 'v', shareRw: true });
  const disk = await engine.openDisk('disk', { writable: true });
  const { backend } = device;
  const text = 'hello' as unknown as Uint8Array;
  const bytes = Buffer.alloc(512, 1);
  for (const [what, request] of [
    ['a string', () => backend.write(0, text)],
    ['a string', () => disk.write(0, text)],
    ['an array', () => backend.write(0, [1, 2] as unknown as Uint8Array)],
    ['wide numbers', () => backend.write(0, new Uint16Array(2) as unknown as Uint8Array)],
    ['nothing', () => backend.read(0, undefined as unknown as Uint8Array)],
    ['a negative offset', () => backend.write(-512, bytes)],
    ['a fraction', () => backend.read(0.5, bytes)],
    ['no number', () => backend.read(NaN, bytes)],
    ['an offset as text', () => backend.write('0' as unknown as number, bytes)],
    ['a large integer', () => backend.write(0n as unknown as number, bytes)],
    ['an unsafe offset', () => backend.write(2 ** 53, bytes)],
    ['a negative length', () => backend.writeZeroes(512, -512)],
    ['a negative length', () => disk.discard(512, -512)],
    ['an unsafe length', () => disk.discard(0, 2 ** 60)],
    ['a length that is none', () => backend.truncate('9' as unknown as number)],
    ['a range beyond the end', () => disk.extents({ offset: DISK_BYTES + 1 }).next()],
    ['a negative status', () => backend.status(-1, 512)],
  ] as Array<[string, () => Promise<unknown>]>)
    await assert.rejects(request, invalid, what);
  for (const [what, request] of [
    ['a string', () => backend.tryWrite(0, text, 0)],
    ['a fraction', () => backend.tryWrite(0.5, bytes, 0)],
    ['no buffer', () => backend.tryRead(0, null as unknown as Uint8Array)],
    ['a negative offset', () => backend.tryRead(-1, bytes)],
  ] as Array<[string, () => boolean]>)
    assert.throws(request, invalid, what);
  await assert.rejects(backend.read(DISK_BYTES, bytes), { kind: 'io' });
  await engine.close();
  assert.deepEqual(await contentOf(filename, MiB), Buffer.alloc(MiB));
});

test('wrong options are refused by kind', async (t) => {
  const { engine, folder } = await engineWithDisk(t);
  const filename = join(folder, 'x');
  type Any = Parameters<typeof engine.addDevice>[1];
  for (const request of [
    () => createEngine({ kind: 'daemon' as 'machine' }),
    () => createEngine({ hosts: 1 } as object),
    () => engine.addNode({ driver: 'null-co' }),
    () => engine.addNode({ driver: 'null-co', 'node-name': 7 }),
    () => engine.addNode(undefined as unknown as Parameters<typeof engine.addNode>[0]),
    () => engine.addDevice('disk', {} as Any),
    () => engine.addDevice('disk', { id: '1x' }),
    () => engine.addDevice('disk', { id: 'd', shareRw: 'on' } as unknown as Any),
    () => engine.addDevice('disk', { id: 'd', sharerw: true } as Any),
    () => engine.addDevice('disk', { id: 'd', readErrors: 'panic' } as unknown as Any),
    () => engine.addDevice('disk', { id: 'd', endpoint: { type: 'tcp' } } as unknown as Any),
    () => engine.createImage({ filename, format: 'qcow2', sizeBytes: 100 }),
    () => engine.createImage({ filename, format: 'qcow2', sizeBytes: -512 }),
    () => engine.createImage({ filename, format: 'nothing', sizeBytes: 512 }),
    () => engine.createImage({ filename: '', format: 'raw', sizeBytes: 512 }),
    () => engine.execute('block-stream', { device: 5 } as unknown as { device: string }),
  ] as Array<() => Promise<unknown>>)
    await assert.rejects(request, invalid, String(request));
  assert.throws(() => engine.onEvent('STOP' as unknown as () => void), invalid);
  await assert.rejects(engine.openDisk('nothing'), { kind: 'not-found' });
  assert.equal(engine.devices.size, 0);
});

test('a disk is read and written as streams, and tells what it holds', async (t) => {
  const { engine, filename, folder } = await engineWithDisk(t);
  assert.ok(engine instanceof Engine);
  const disk = await engine.openDisk('disk', { writable: true });
  const content = Buffer.alloc(3 * MiB + 1000);
  for (let i = 0; i < content.length; i++) content[i] = i % 251;
  async function* pieces(): AsyncGenerator<Buffer> {
    for (let at = 0; at < content.length; at += 77_777) yield content.subarray(at, at + 77_777);
  }
  await pipeline(pieces(), disk.writable({ offset: MiB + 7 }));
  const read: Buffer[] = [];
  for await (const piece of disk.readable({ offset: MiB + 7, lengthBytes: content.length }))
    read.push(piece as Buffer);
  assert.ok(Buffer.concat(read).equals(content));
  const extents: Extent[] = [];
  for await (const extent of disk.extents()) extents.push(extent);
  assert.deepEqual(
    extents.map(({ offset, lengthBytes, data }) => [offset, lengthBytes, data]),
    [
      [0, MiB, false],
      [MiB, 3 * MiB + 65536, true],
      [4 * MiB + 65536, 4 * MiB - 65536, false],
    ],
  );
  await assert.rejects(pipeline([Buffer.alloc(MiB)], disk.writable({ offset: DISK_BYTES - 512 })), {
    errno: 'EIO',
  });
  await disk.close();
  await disk.close();
  const readOnly = await engine.openDisk('disk');
  await assert.rejects(readOnly.write(0, Buffer.alloc(512)), { kind: 'permission' });
  await readOnly.close();
  const overlay = { filename: join(folder, 'o'), format: 'qcow2', sizeBytes: DISK_BYTES };
  await engine.createImage({ ...overlay, backing: { filename, format: 'qcow2' } });
  await engine.close();
  const other = await createEngine();
  await addDisk(other, overlay.filename);
  const chain = await other.openDisk('disk');
  const bytes = Buffer.alloc(content.length);
  await chain.read(MiB + 7, bytes);
  assert.ok(bytes.equals(content));
  await other.close();
});

test('answers and events have the types of the schema', async (t) => {
  const { engine } = await engineWithDisk(t);
  const nodes = await engine.execute('query-named-block-nodes', { flat: true });
  const names: Array<string | undefined> = nodes.map((node) => node['node-name']);
  assert.ok(names.includes('disk'));
  const bytes: number | undefined = nodes.find((node) => node['node-name'] === 'disk')?.image['virtual-size'];
  assert.equal(bytes, DISK_BYTES);
  const jobs = await engine.execute('query-jobs');
  assert.equal(jobs.length, 0);
  const nothing: Record<string, never> = await engine.execute('blockdev-del', { 'node-name': 'disk' });
  assert.deepEqual(nothing, {});
});
