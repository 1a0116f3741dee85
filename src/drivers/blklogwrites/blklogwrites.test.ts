import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { NodeOptions } from '../../block/driver.js';
import { hasFlag } from '../../block/request.js';
import { createRealHost } from '../../host/real.js';
import { protocolConformance } from '../../../test/kit/conformance.js';
import { assertSameBytes, TestBed, type TestDisk, withFolder } from '../../../test/kit/test-disk.js';
import { fileDriver } from '../file/index.js';
import { allDrivers } from '../index.js';
import { EntryFlag, type LogEntry, readEntries, readSuperblock, superblockBytes } from './format.js';
import { blklogwritesDriver } from './index.js';

const SIZE = 64 * 1024;

async function newFile(bed: TestBed, sizeBytes: number): Promise<NodeOptions> {
  const filename = bed.newPath('raw');
  await fileDriver.createFile?.(bed.host, filename, sizeBytes);
  return { driver: 'file', filename };
}

protocolConformance({
  name: 'blklogwrites',
  drivers: [fileDriver, blklogwritesDriver],
  shape: { sizeBytes: 5 * 4096 + 512, unitBytes: 4096 },
  canGrow: true,
  create: async (bed, size) => ({
    driver: 'blklogwrites',
    file: await newFile(bed, size),
    log: await newFile(bed, 0),
  }),
});

async function withBed(body: (bed: TestBed) => Promise<void>): Promise<void> {
  await withFolder((folder) => body(new TestBed(createRealHost(), allDrivers, folder)));
}

interface Logged {
  entries: LogEntry[];
  /** The disk that the log gives. */
  replayed: Buffer;
}

async function readLog(bed: TestBed, log: NodeOptions): Promise<Logged> {
  const disk = await bed.open({ ...log, 'read-only': true }, { readOnly: true });
  const io = disk.backend.root;
  assert.ok(io);
  const superblock = await readSuperblock(io);
  const { sectorBytes } = superblock;
  const replayed = Buffer.alloc(SIZE);
  const entries: LogEntry[] = [];
  for await (const { dataOffset, end, ...entry } of readEntries(io, superblock)) {
    entries.push(entry);
    const data = Buffer.alloc(end - dataOffset);
    await io.read(dataOffset, data);
    const { sector, sectors, flags } = entry;
    const at = sector * sectorBytes;
    if (hasFlag(flags, EntryFlag.discard)) replayed.fill(0, at, at + sectors * sectorBytes);
    else data.copy(replayed, at);
  }
  await disk.close();
  return { entries, replayed };
}

async function contents(bed: TestBed, file: NodeOptions): Promise<Buffer> {
  const disk = await bed.open(file, { readOnly: true });
  const bytes = await disk.readAll();
  await disk.close();
  return bytes;
}

const entry = (sector: number, sectors: number, flags = 0): LogEntry => ({ sector, sectors, flags });

test('each change is an entry, and the log gives the same disk again', () =>
  withBed(async (bed) => {
    const [file, log] = [await newFile(bed, SIZE), await newFile(bed, 0)];
    const disk = await bed.open({ driver: 'blklogwrites', file, log });
    await disk.write(0, Buffer.alloc(4096, 1));
    await disk.write(100, Buffer.alloc(10, 2));
    await disk.backend.writeZeroes(1024, 2048);
    await disk.backend.flush();
    await disk.write(8192, Buffer.alloc(512, 3));
    await disk.backend.discard(8192, 1024);
    await disk.write(9216, Buffer.alloc(512, 4), 1);
    await disk.close();
    const { entries, replayed } = await readLog(bed, log);
    assert.deepEqual(entries.slice(0, 6), [
      entry(0, 8),
      entry(0, 1),
      entry(2, 4),
      entry(0, 0, EntryFlag.flush),
      entry(16, 1),
      entry(16, 2, EntryFlag.discard),
    ]);
    assert.deepEqual(entries[6], entry(18, 1, EntryFlag.fua));
    // What a discard leaves is the file system's affair; in the log it is zeroes.
    const written = await contents(bed, file);
    assertSameBytes(replayed.subarray(8192, 9216), Buffer.alloc(1024), 'what was discarded');
    written.fill(0, 8192, 9216);
    assertSameBytes(replayed, written, 'the disk that the log gives');
  }));

test('changes that are made at once stand in the log in the order in which they were made', () =>
  withBed(async (bed) => {
    const [file, log] = [await newFile(bed, SIZE), await newFile(bed, 0)];
    const disk = await bed.open({ driver: 'blklogwrites', file, log });
    const change = (i: number, of: TestDisk): Promise<void> => {
      const at = ((i * 7) % 13) * 512;
      if (i % 5 === 4) return of.backend.flush();
      return i % 3 === 2 ? of.backend.writeZeroes(at, 1536) : of.write(at, Buffer.alloc(2048, i));
    };
    await Promise.all(Array.from({ length: 60 }, (_, i) => change(i, disk)));
    await disk.close();
    const { entries, replayed } = await readLog(bed, log);
    assert.ok(entries.length >= 50);
    assertSameBytes(replayed, await contents(bed, file), 'the disk that the log gives');
  }));

test('a log goes on where it ended', () =>
  withBed(async (bed) => {
    const [file, log] = [await newFile(bed, SIZE), await newFile(bed, 0)];
    for (const [value, appends] of [
      [1, false],
      [2, true],
      [3, true],
    ] as const) {
      const options = { driver: 'blklogwrites', file, log, ...(appends && { 'log-append': true }) };
      const disk = await bed.open(options);
      await disk.write(value * 4096, Buffer.alloc(4096, value));
      await disk.close();
    }
    const { entries, replayed } = await readLog(bed, log);
    assert.deepEqual(
      entries.filter(({ sectors }) => sectors > 0),
      [entry(8, 8), entry(16, 8), entry(24, 8)],
    );
    assertSameBytes(replayed, await contents(bed, file), 'the disk that the log gives');
  }));

test('a log that is broken is refused, whatever it says', () =>
  withBed(async (bed) => {
    const file = await newFile(bed, SIZE);
    const broken = async (bytes: Buffer, message: RegExp): Promise<void> => {
      const log = await newFile(bed, 0);
      const raw = await bed.open(log);
      await raw.backend.truncate(bytes.length);
      await raw.write(0, bytes);
      await raw.close();
      const options = { driver: 'blklogwrites', file, log, 'log-append': true };
      await assert.rejects(bed.open(options), { kind: 'invalid', message });
      assert.equal(bed.graph.nodes.size, 0);
    };
    const good = superblockBytes({ entries: 2, sectorBytes: 512 });
    const changed = (at: number, value: number): Buffer => {
      const bytes = Buffer.from(good);
      bytes[at] = value;
      return bytes;
    };
    await broken(changed(0, 0), /^Invalid log superblock magic$/);
    await broken(changed(8, 2), /^Unsupported log version 2$/);
    await broken(changed(24, 1), /^Invalid log sector size 513$/);
    await broken(good, /^Log entry 0 lies behind the end of the log$/);
    await broken(changed(23, 0xff), /^Log entry 0 lies behind/);
    const huge = Buffer.alloc(512);
    huge.fill(0xff, 8, 16);
    await broken(Buffer.concat([good, huge]), /^The data of log entry 0 lies behind/);
    huge.fill(0xff, 16, 24);
    await broken(Buffer.concat([good, huge]), /^Invalid flags 0x/);
  }));
