import assert from 'node:assert/strict';
import test, { type TestContext } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { Feature, Request } from '../../src/wire/vhost-user/constants.js';
import { type FrontEndProperties, VhostFrontEnd } from '../kit/vhost-front-end.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

const OK = 0;
const IO_ERROR = 1;
const UNSUPPORTED = 2;

async function exporting(bed: EngineBed, more: JsonObject = {}): Promise<string> {
  const path = bed.path('vhost.sock');
  await bed.execute('block-export-add', {
    ...{ type: 'vhost-user-blk', id: 'e', 'node-name': 'A', addr: { type: 'unix', path }, writable: true },
    ...more,
  });
  return path;
}

async function started(
  t: TestContext,
  bed: EngineBed,
  path: string,
  more: Partial<FrontEndProperties> = {},
): Promise<VhostFrontEnd> {
  const frontEnd = await VhostFrontEnd.start({ host: bed.engine.host, path, ...more });
  t.after(() => frontEnd.close());
  return frontEnd;
}

async function bedWithExport(
  t: TestContext,
  more: JsonObject = {},
): Promise<{ bed: EngineBed; path: string }> {
  const bed = new EngineBed(t);
  await bed.image('A');
  return { bed, path: await exporting(bed, more) };
}

test('a front-end reads what it wrote, flushes, discards and zeroes', async (t) => {
  const { bed, path } = await bedWithExport(t);
  const guest = await started(t, bed, path);
  const data = Buffer.alloc(65536, 0x5a);
  assert.equal(await guest.write(8, data), OK);
  assert.equal(await guest.request(4, 0), OK);
  assert.deepEqual(await guest.read(8, data.length), data);
  assert.deepEqual(await guest.read(8 + 128, 512), Buffer.alloc(512));
  const segment = (sectors: number, flags: number): { out: [ReturnType<VhostFrontEnd['allocate']>] } => {
    const piece = guest.allocate(16);
    guest.bytes(piece).writeBigUInt64LE(8n, 0);
    guest.bytes(piece).writeUInt32LE(sectors, 8);
    guest.bytes(piece).writeUInt32LE(flags, 12);
    return { out: [piece] };
  };
  assert.equal(await guest.request(13, 0, segment(8, 1)), OK);
  assert.deepEqual(await guest.read(8, 8192), Buffer.concat([Buffer.alloc(4096), data.subarray(0, 4096)]));
  assert.equal(await guest.request(11, 0, segment(8, 0)), OK);
  assert.equal(await guest.request(11, 0, segment(8, 1)), UNSUPPORTED);
  assert.equal(await guest.request(13, 0, segment(8, 2)), UNSUPPORTED);
  assert.equal(await guest.request(13, 0, segment(32769, 0)), IO_ERROR);
});

for (const [form, packed] of [
  ['split', 0n],
  ['packed', Feature.packedRing],
] as const) {
  test(`requests lie in many pieces, in indirect tables, and in several ${form} queues`, async (t) => {
    const { bed, path } = await bedWithExport(t, { 'num-queues': 2 });
    const features = Feature.version1 | Feature.indirect | packed;
    const guest = await started(t, bed, path, { queueCount: 2, queueSize: 32, features });
    const pieces = [1, 511, 700, 4096, 3396].map((lengthBytes) => guest.allocate(lengthBytes));
    pieces.forEach((piece, i) => guest.bytes(piece).fill(i + 1));
    assert.equal(await guest.request(1, 2, { out: pieces, indirect: true, queue: 1 }), OK);
    const into = [513, 8191].map((lengthBytes) => guest.allocate(lengthBytes));
    const { status, filledBytes } = await guest.end(guest.begin(0, 2, { into }));
    assert.equal(status, OK);
    assert.equal(filledBytes, 8705);
    const written = Buffer.concat(pieces.map((piece) => guest.bytes(piece)));
    assert.deepEqual(Buffer.concat(into.map((piece) => guest.bytes(piece))), written);
  });

  test(`with event indexes each side of a ${form} ring is told when it asked for it`, async (t) => {
    const { bed, path } = await bedWithExport(t);
    const features = Feature.version1 | Feature.eventIndex | packed;
    const guest = await started(t, bed, path, { features });
    for (let i = 0; i < 300; i++) assert.equal(await guest.write(i % 64, Buffer.alloc(512, i % 256)), OK);
    assert.equal((await guest.read(299 % 64, 512))[0], 299 % 256);
  });
}

test('what a driver may not ask is answered with an error', async (t) => {
  const { bed, path } = await bedWithExport(t, { 'logical-block-size': 4096 });
  const guest = await started(t, bed, path);
  const sectors = DISK_BYTES / 512;
  const into = [guest.allocate(4096)];
  assert.equal(await guest.request(0, sectors - 8, { into }), OK);
  assert.equal(await guest.request(0, sectors, { into }), IO_ERROR);
  assert.equal(await guest.request(0, 1, { into }), IO_ERROR);
  assert.equal(await guest.request(0, 0, { into: [guest.allocate(100)] }), IO_ERROR);
  assert.equal(await guest.request(0, 2 ** 52, { into }), IO_ERROR);
  assert.equal(await guest.request(77, 0, { into }), UNSUPPORTED);
  const id = guest.allocate(20);
  assert.equal(await guest.request(8, 0, { into: [id] }), OK);
  assert.equal(guest.bytes(id).toString('latin1').replace(/\0+$/, ''), 'vhost_user_blk');
});

test('an export for reading refuses changes', async (t) => {
  const { bed, path } = await bedWithExport(t, { writable: false });
  const guest = await started(t, bed, path);
  assert.notEqual((await guest.askNumber(Request.getFeatures)) & Feature.readOnly, 0n);
  assert.equal(await guest.write(0, Buffer.alloc(512)), IO_ERROR);
  assert.equal(await guest.request(4, 0), OK);
});

test('the size of a disk that is resized reaches the front-end', async (t) => {
  const { bed, path } = await bedWithExport(t);
  const guest = await started(t, bed, path);
  const capacity = async (): Promise<bigint> => {
    const payload = Buffer.alloc(12 + 60);
    payload.writeUInt32LE(60, 4);
    return (await guest.ask(Request.getConfig, payload)).readBigUInt64LE(12);
  };
  assert.equal(await capacity(), BigInt(DISK_BYTES / 512));
  await bed.execute('block_resize', { 'node-name': 'A', size: 2 * DISK_BYTES });
  assert.equal(await capacity(), BigInt((2 * DISK_BYTES) / 512));
  assert.equal(await guest.write((2 * DISK_BYTES) / 512 - 1, Buffer.alloc(512)), OK);
});

test('a front-end stays through a mirror with pivot, and its export goes by name', async (t) => {
  const { bed, path } = await bedWithExport(t);
  const guest = await started(t, bed, path);
  assert.equal(await guest.write(0, Buffer.alloc(MiB, 0x11)), OK);
  await bed.execute('drive-mirror', {
    ...{ device: 'A', 'job-id': 'm', sync: 'full', target: bed.path('B.qcow2'), 'node-name': 'B' },
  });
  await bed.event('BLOCK_JOB_READY', 'm');
  assert.equal(await guest.write(16, Buffer.alloc(4096, 0x22)), OK);
  await bed.execute('block-job-complete', { device: 'm' });
  await bed.event('BLOCK_JOB_COMPLETED', 'm');
  assert.equal(await guest.write(32, Buffer.alloc(4096, 0x33)), OK);
  assert.deepEqual(await bed.execute('query-block-exports'), [
    { 'node-name': 'B', 'shutting-down': false, type: 'vhost-user-blk', id: 'e' },
  ]);
  const expected = Buffer.alloc(65536, 0x11);
  expected.fill(0x22, 16 * 512, 24 * 512).fill(0x33, 32 * 512, 40 * 512);
  assert.deepEqual(await guest.read(0, 65536), expected);
  assert.equal(
    await bed.refusal('nbd-server-remove', { name: 'e' }),
    "Block export 'e' is not an NBD export",
  );
  await bed.execute('block-export-del', { id: 'e' });
  await guest.closed();
  assert.deepEqual(await bed.execute('query-block-exports'), []);
});
