import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError, errnoError } from '../../base/error.js';
import { KiB, MiB } from '../../base/limits.js';
import { Flag } from '../../block/request.js';
import { seededBelow } from '../../../test/kit/crash-states.js';
import { HandmadeQcow2 } from '../../../test/kit/handmade-qcow2.js';
import {
  applyWrite,
  childOf,
  DiskShelf,
  type OpenDisk,
  type RecordedDisk,
} from '../../../test/kit/recorded-disk.js';
import { checkQcow2 } from './check/check.js';
import { qcow2Driver } from './driver.js';
import { FieldOffset, V2_HEADER_BYTES, V3_HEADER_BYTES } from './disk/header.js';
import { ENTRY_BYTES, entryOffset } from './disk/layout.js';

/** Guests write nothing but this; no metadata has a run of it. */
const GUEST_BYTE = 0xa5;
const GUEST_RUN = Buffer.alloc(16, GUEST_BYTE);
/** A disk as long as that is full. */
const DISK_BYTES = 2 * MiB;
/** What the process may grow by, however many runs. */
const GROWTH_BYTES = 400 * MiB;
/** `FUZZ_RUNS=100000 FUZZ_SEED=N npm test -- qcow2/fuzz`: longer, and from another seed on. */
const RUNS = 220;
/** From another seed on, so many are needed for what is drawn seldom to be among them for certain. */
const MANY_RUNS = 2000;

type Below = (limit: number) => number;

function soundImage(below: Below): HandmadeQcow2 {
  const clusterBytes = below(2) === 0 ? 512 : 4096;
  const image = new HandmadeQcow2({
    sizeBytes: 200 * clusterBytes,
    clusterBytes,
    clusters: 60,
    version: below(5) === 0 ? 2 : 3,
  });
  for (let i = 0; i < 12; i++) image.data(below(200), 1 + below(100));
  if (below(2) === 0) image.snapshot();
  for (let i = 0; i < 3; i++) image.data(below(200), 1 + below(100));
  if (image.bytes.readUInt32BE(4) === 3) image.entry(below(200), 1n);
  return image;
}

/** Values that have a meaning, or nearly so, in some field. */
function interesting(image: HandmadeQcow2, below: Below): bigint {
  const cluster = BigInt(image.clusterBytes);
  const offset = BigInt(below(64)) * cluster;
  const flags = [0n, 1n << 63n, 1n << 62n, 1n, (1n << 63n) | 1n][below(5)] ?? 0n;
  switch (below(7)) {
    case 0:
      return offset + BigInt(below(512));
    case 1:
      return 1n << BigInt(below(64));
    case 2:
      return (1n << BigInt(below(64))) - 1n;
    case 3:
      return 0xffffffffffffffffn - BigInt(below(70000));
    case 4:
      return BigInt(below(300));
    default:
      return offset | flags;
  }
}

/** Damages an image in one to three places: header, its extensions, tables, counts, or its length. */
function damaged(image: HandmadeQcow2, below: Below): Buffer {
  let { bytes } = image;
  const headerBytes = bytes.readUInt32BE(4) === 3 ? V3_HEADER_BYTES : V2_HEADER_BYTES;
  const table = (start: number, lengthBytes: number): void => {
    const at = start + below(lengthBytes / ENTRY_BYTES) * ENTRY_BYTES;
    bytes.writeBigUInt64BE(BigInt.asUintN(64, interesting(image, below)), at);
  };
  for (let i = 1 + below(3); i > 0; i--) {
    switch (below(13)) {
      case 0:
        bytes.writeUInt32BE(Number(interesting(image, below) & 0xffffffffn), 4 + below(27) * 4);
        break;
      case 1:
        bytes.writeBigUInt64BE(BigInt.asUintN(64, interesting(image, below)), 8 + below(12) * 8);
        break;
      case 2: {
        // Behind the header are its extensions.
        const at = headerBytes + below(12) * 4;
        const type = [0xe2792aca, 0x6803f857, 0x23852875, below(1000)][below(4)] ?? 0;
        bytes.writeUInt32BE(type, at);
        bytes.writeUInt32BE(below(3) === 0 ? 0xffffffff : below(600), at + 4);
        break;
      }
      case 3:
        table(image.l1Offset, Math.min(image.clusterBytes, image.l1Entries * ENTRY_BYTES));
        break;
      case 4:
        table(image.refcountTableOffset, 4 * ENTRY_BYTES);
        break;
      case 5:
        bytes[image.refcountBlockOffset + below(130)] = below(256);
        break;
      case 6:
        bytes = bytes.subarray(0, below(bytes.length + 1));
        if (bytes.length < image.refcountBlockOffset + image.clusterBytes) return bytes;
        break;
      case 7:
        bytes.writeBigUInt64BE(1n << BigInt(below(3) ? 1 : below(8)), FieldOffset.incompatible);
        break;
      case 8: {
        const at = headerBytes + 8 + below(300);
        bytes.writeBigUInt64BE(BigInt(at), FieldOffset.backingOffset);
        bytes.writeUInt32BE(below(3) === 0 ? 1024 + below(2) : below(200), FieldOffset.backingSize);
        for (let byte = at; byte < at + 40; byte++) bytes[byte] = below(256);
        break;
      }
      default: {
        const l2 = entryOffset(image.bytes, image.l1Offset / ENTRY_BYTES + below(image.l1Entries));
        if (l2 > 0 && l2 + image.clusterBytes <= bytes.length) table(l2, image.clusterBytes);
      }
    }
    if (bytes.length < 8 * image.clusterBytes) return bytes;
  }
  return bytes;
}

/** Runs what may fail, but only with a BlockError; answers whether it did. */
async function allowed(what: string, body: () => Promise<unknown>): Promise<boolean> {
  try {
    await body();
    return true;
  } catch (error) {
    assert.ok(
      error instanceof BlockError,
      `${what}: ${error instanceof Error ? error.stack : String(error)}`,
    );
    return false;
  }
}

/** A request somewhere, beyond what the tables first reached too. */
function someRequest({ node, backend }: OpenDisk, below: Below): () => Promise<unknown> {
  const { lengthBytes } = node;
  const reach = Math.min(lengthBytes, MiB);
  const offset = (below(6) === 0 ? lengthBytes - reach : 0) + below(reach);
  const length = 1 + below(Math.min(lengthBytes - offset, 20_000));
  switch (below(7)) {
    case 0:
      return () => allowed('read', () => backend.read(offset, Buffer.alloc(length)));
    case 1: {
      const flags = below(2) === 0 ? 0 : Flag.mayUnmap;
      return () => allowed('zero', () => backend.writeZeroes(offset, length, flags));
    }
    case 2:
      return () => allowed('discard', () => backend.discard(offset, length));
    case 3:
      return () => allowed('flush', () => backend.flush());
    default:
      return () => allowed('write', () => backend.write(offset, Buffer.alloc(length, GUEST_BYTE)));
  }
}

async function performSome(disk: OpenDisk, below: Below): Promise<void> {
  const { lengthBytes } = disk.node;
  if (lengthBytes > 0) {
    const requests = Array.from({ length: 14 }, () => someRequest(disk, below));
    if (below(3) === 0) await Promise.all(requests.map((request) => request()));
    else for (const request of requests) await request();
  }
  if (below(4) === 0) await allowed('grow', () => disk.backend.truncate(lengthBytes + 512 * below(5000)));
}

/** Host clusters of the metadata that a header names, as they are in a file. */
function metadataOf(content: Buffer): Set<number> {
  const clusterBytes = 2 ** content.readUInt32BE(20);
  const found = new Set([0]);
  const l1Offset = Number(content.readBigUInt64BE(40));
  const l1Entries = content.readUInt32BE(36);
  const tableOffset = Number(content.readBigUInt64BE(48));
  const tableBytes = content.readUInt32BE(56) * clusterBytes;
  const range = (offset: number, lengthBytes: number): void => {
    for (let at = offset; at < offset + lengthBytes; at += clusterBytes)
      found.add(Math.floor(at / clusterBytes));
  };
  range(l1Offset, l1Entries * ENTRY_BYTES);
  range(tableOffset, tableBytes);
  for (const [offset, entries] of [
    [l1Offset, l1Entries],
    [tableOffset, tableBytes / ENTRY_BYTES],
  ] as const) {
    for (let i = 0; i < entries; i++) {
      if (offset + (i + 1) * ENTRY_BYTES > content.length) break;
      const named = entryOffset(content, offset / ENTRY_BYTES + i);
      if (named > 0) found.add(Math.floor(named / clusterBytes));
    }
  }
  return found;
}

/** Whether guest data is in a write; a copy on write has other bytes around it. */
function isGuestData(bytes: Buffer): boolean {
  return bytes.length < GUEST_RUN.length
    ? bytes.every((byte) => byte === GUEST_BYTE)
    : bytes.includes(GUEST_RUN);
}

/** The clusters in which a guest's bytes were written over what the disk named as metadata at that moment. */
function trespasses(file: RecordedDisk): number[] {
  let content: Buffer = Buffer.from(file.initial);
  const clusterBytes = 2 ** content.readUInt32BE(20);
  let metadata: Set<number> | undefined;
  const found: number[] = [];
  for (const event of file.log) {
    if (event.kind !== 'write') continue;
    if (isGuestData(event.bytes)) {
      metadata ??= metadataOf(content);
      const first = Math.floor(event.offset / clusterBytes);
      const end = Math.ceil((event.offset + event.bytes.length) / clusterBytes);
      for (let cluster = first; cluster < end; cluster++) if (metadata.has(cluster)) found.push(cluster);
    } else {
      metadata = undefined;
    }
    content = applyWrite(content, event.offset, event.bytes);
  }
  return found;
}

/** One damaged image: read, checked, written. Answers how far it came. */
async function fuzzOnce(seed: number): Promise<'refused' | 'read' | 'written'> {
  const below = seededBelow(seed);
  const content = damaged(soundImage(below), below);
  const isSynchronous = below(2) === 0;
  const shelf = new DiskShelf([qcow2Driver]);
  const put = (): RecordedDisk => {
    const file = shelf.put('image', content);
    file.failure = (event, offset) =>
      event === 'write' && offset > DISK_BYTES ? errnoError('ENOSPC') : undefined;
    file.synchronous = isSynchronous;
    return file;
  };
  const unread = put();
  await allowed('check', () => checkQcow2(childOf(unread)));
  let reader: OpenDisk | undefined;
  const options = { backing: null, 'l2-cache-size': 1024, 'refcount-cache-size': 1024 };
  await allowed('open', async () => {
    reader = await shelf.open('image', { ...options, readOnly: true });
  });
  if (!reader) return 'refused';
  const end = Math.min(reader.node.lengthBytes, 512 * KiB);
  for (let at = 0; at < end; at += 10_000) {
    const length = Math.min(10_000, end - at);
    await allowed('read', () => reader?.read(at, length) ?? Promise.resolve());
    await allowed('status', () => reader?.backend.status(at, length) ?? Promise.resolve());
  }
  await allowed('close', () => reader?.close() ?? Promise.resolve());
  assert.ok(unread.contents().equals(content), 'reading changes nothing');
  const file = put();
  let writer: OpenDisk | undefined;
  await allowed('open for writing', async () => {
    writer = await shelf.open('image', options);
  });
  if (!writer) return 'read';
  await performSome(writer, below);
  await allowed('close', () => writer?.close() ?? Promise.resolve());
  assert.deepEqual(trespasses(file), [], 'guest data over metadata');
  return 'written';
}

test('a damaged image never crashes, hangs or grows, and guest data never goes over its metadata', async () => {
  const before = process.resourceUsage().maxRSS;
  const outcomes = { refused: 0, read: 0, written: 0 };
  const from = Number(process.env['FUZZ_SEED'] ?? 1);
  const runs = Number(process.env['FUZZ_RUNS'] ?? RUNS);
  for (let seed = from; seed < from + runs; seed++) {
    try {
      outcomes[await fuzzOnce(seed)]++;
    } catch (error) {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : String(error)}`, {
        cause: error,
      });
    }
  }
  const grownBytes = (process.resourceUsage().maxRSS - before) * KiB;
  assert.ok(grownBytes < GROWTH_BYTES, `grew by ${grownBytes} bytes`);
  // The damage is not so great that nothing was tried.
  if (runs >= (from === 1 ? RUNS : MANY_RUNS))
    assert.ok(Math.min(...Object.values(outcomes)) > runs / 50, JSON.stringify(outcomes));
});
