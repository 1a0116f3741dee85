import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { createImage } from '../../src/block/create.js';
import type { DriverDescription, NodeOptions } from '../../src/block/driver.js';
import { blkdebugDriver } from '../../src/drivers/blkdebug/index.js';
import { fileDriver } from '../../src/drivers/file/index.js';
import type { Host } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';
import {
  arbitraryRequest,
  assertOneOfEach,
  assertStatusFits,
  DiskModel,
  type DiskRequest,
  type DiskShape,
  performOn,
} from './disk-model.js';
import { checkCancelledInLine, checkCancelledWhileHeld } from './cancelled-requests.js';
import { hostWithout } from './host-variants.js';
import { jobFilterDrivers, underJobFilters } from './job-filters.js';
import { assertSameBytes, TestBed, type TestDisk } from './test-disk.js';

/** What a suite must know of a driver. */
export interface Subject {
  /** Names the tests. */
  name: string;
  drivers: readonly DriverDescription[];
  shape: DiskShape;
  /** Makes an empty disk that reads as zeroes; answers the options that open it, again and again. */
  create(bed: TestBed, sizeBytes: number): Promise<NodeOptions>;
  /** truncate() makes the disk longer. */
  canGrow: boolean;
  /** Writes are forgotten: the disk reads as zeroes whatever was done to it. */
  keepsNothing?: boolean;
  /** Of holes in its file it says that they are data and zero, as QEMU does. */
  saysZeroData?: boolean;
  /** Runs of each property; fewer where a run is slow. */
  runs?: number;
}

type Wrap = (options: NodeOptions) => NodeOptions;

/** A place in which a suite runs again. */
interface Variant {
  name: string;
  host(): Host;
  /** Puts filters above the disk. */
  wrap: Wrap;
  /** How many of a property's runs: what differs is not in the driver. */
  share?: number;
}

const RUNS = 15;

const plain = (options: NodeOptions): NodeOptions => options;
const underBlkdebug = (options: NodeOptions): NodeOptions => ({ driver: 'blkdebug', image: options });

const VARIANTS: readonly Variant[] = [
  { name: 'synchronous', host: createRealHost, wrap: plain },
  { name: 'asynchronous', host: () => hostWithout(createRealHost(), 'sync'), wrap: plain },
  { name: 'remote', host: () => createRealHost({ everythingIsRemote: true }), wrap: plain, share: 0.4 },
  {
    name: 'without hole punching and fast zeroing',
    host: () => hostWithout(createRealHost(), 'punchHole', 'zeroRange', 'allocate'),
    wrap: plain,
    share: 0.4,
  },
  { name: 'below a pass-through blkdebug', host: createRealHost, wrap: underBlkdebug, share: 0.4 },
  { name: 'below the filters of all jobs', host: createRealHost, wrap: underJobFilters, share: 0.4 },
];

/** For drivers that store bytes by themselves. */
export function protocolConformance(subject: Subject): void {
  forEachVariant(subject, diskTests);
}

/** A filter over a file must not be noticed. `wrap` puts it above its child's options. */
export function filterConformance(
  name: string,
  drivers: readonly DriverDescription[],
  wrap: (child: NodeOptions, bed: TestBed) => NodeOptions | Promise<NodeOptions>,
): void {
  const subject: Subject = {
    name,
    drivers: [fileDriver, ...drivers],
    shape: { sizeBytes: 5 * 4096 + 512, unitBytes: 4096 },
    canGrow: true,
    create: async (bed, sizeBytes) => wrap(await newFile(bed, sizeBytes), bed),
  };
  protocolConformance(subject);
}

/** What a format's suite must know. */
export interface FormatSubject {
  name: string;
  driver: DriverDescription;
  /** Bytes of a cluster, or what plays its part. */
  unitBytes: number;
  runs?: number;
  /**
   * Makes an empty image, over a backing image made by it if there is one; answers what opens it. Absent: the driver's own
   * `create`, with a header that names the backing file.
   */
  create?(bed: TestBed, sizeBytes: number, backing?: NodeOptions): Promise<NodeOptions>;
  /** Of its disks; default: some units. */
  sizeBytes?: number;
  /** truncate() makes the disk longer; the default. */
  canGrow?: boolean;
  saysZeroData?: boolean;
  /** Creation options of its images. */
  options?: NodeOptions;
  /** Guest data is in other children than `file`. */
  hasDataElsewhere?: boolean;
}

/** For formats: as a disk on a file, and with backing files where the format has them. */
export function formatConformance(format: FormatSubject): void {
  const { name, driver, unitBytes } = format;
  const subject: Subject = {
    name,
    drivers: [fileDriver, driver],
    shape: { sizeBytes: format.sizeBytes ?? 5 * unitBytes + 7 * 512, unitBytes },
    canGrow: format.canGrow ?? true,
    create: async (bed, sizeBytes) => newImage(format, bed, sizeBytes),
    ...(format.runs === undefined ? {} : { runs: format.runs }),
    ...(format.saysZeroData === undefined ? {} : { saysZeroData: format.saysZeroData }),
  };
  forEachVariant(subject, (one, bed, wrap) => {
    diskTests(one, bed, wrap);
    eventTests(one, bed, format.hasDataElsewhere ?? false);
    const { runs = RUNS } = one;
    if (driver.options.backing) backingTests({ ...format, runs }, bed, wrap);
  });
}

function forEachVariant(
  subject: Subject,
  body: (subject: Subject, bed: () => TestBed, wrap: Wrap) => void,
): void {
  for (const variant of VARIANTS) {
    describe(`${subject.name}, ${variant.name}`, () => {
      let folder = '';
      let bed: TestBed;
      before(() => {
        folder = mkdtempSync(join(tmpdir(), 'livedisk-conformance-'));
        const all = [...subject.drivers, blkdebugDriver, ...jobFilterDrivers];
        const drivers = new Map(all.map((driver) => [driver.name, driver]));
        bed = new TestBed(variant.host(), drivers.values(), folder);
      });
      after(() => {
        assert.deepEqual([...bed.graph.nodes.keys()], [], 'nodes that were not closed');
        rmSync(folder, { recursive: true });
      });
      const runs = Math.ceil((subject.runs ?? RUNS) * (variant.share ?? 1));
      body({ ...subject, runs }, () => bed, variant.wrap);
    });
  }
}

/** A sparse file of that size. */
async function newFile(bed: TestBed, sizeBytes: number): Promise<NodeOptions> {
  const filename = bed.newPath('raw');
  await fileDriver.createFile?.(bed.host, filename, sizeBytes);
  return { driver: 'file', filename };
}

async function newImage(
  format: FormatSubject,
  bed: TestBed,
  sizeBytes: number,
  backing?: NodeOptions,
): Promise<NodeOptions> {
  if (format.create) return format.create(bed, sizeBytes, backing);
  const { name } = format.driver;
  const filename = bed.newPath(name);
  const { filename: backingFile } = (backing?.['file'] ?? {}) as { filename?: string };
  const backingOptions = backingFile === undefined ? {} : { backingFile, backingFormat: name };
  const { options = {} } = format;
  await createImage(bed.opener, filename, name, { sizeBytes, ...backingOptions, options });
  return { driver: name, file: { driver: 'file', filename } };
}

/** Opens, and closes whatever happens. */
async function withDisk<T>(
  bed: TestBed,
  options: NodeOptions,
  body: (disk: TestDisk) => Promise<T>,
): Promise<T> {
  const disk = await bed.open(options);
  try {
    return await body(disk);
  } finally {
    await disk.close();
  }
}

function property<T>(
  subject: { runs?: number },
  arbitrary: fc.Arbitrary<T>,
  body: (value: T) => Promise<void>,
): Promise<void> {
  return fc.assert(fc.asyncProperty(arbitrary, body), { numRuns: subject.runs ?? RUNS });
}

function diskTests(subject: Subject, getBed: () => TestBed, wrap: Wrap): void {
  const { shape } = subject;
  const { sizeBytes } = shape;
  const create = async (bytes = sizeBytes): Promise<NodeOptions> =>
    wrap(await subject.create(getBed(), bytes));

  test('a new disk has its size and reads as zeroes', async () => {
    await withDisk(getBed(), await create(), async (disk) => {
      assert.equal(disk.lengthBytes, sizeBytes);
      assertSameBytes(await disk.readAll(), Buffer.alloc(sizeBytes), 'new disk');
      await assertStatusFits(disk, subject.saysZeroData);
    });
  });

  test('requests beyond the end fail with EIO and change nothing; empty ones at the end do not', async () => {
    await withDisk(getBed(), await create(), async (disk) => {
      const { backend } = disk;
      await disk.write(sizeBytes - 1, Buffer.from([7]));
      const beyond = { errno: 'EIO' };
      await assert.rejects(backend.read(sizeBytes - 1, Buffer.alloc(2)), beyond);
      await assert.rejects(backend.write(sizeBytes - 1, Buffer.alloc(2)), beyond);
      await assert.rejects(backend.writeZeroes(sizeBytes - 1, 2), beyond);
      await assert.rejects(backend.discard(sizeBytes - 1, 2), beyond);
      await assert.rejects(backend.read(sizeBytes + 1, Buffer.alloc(0)), beyond);
      await backend.write(sizeBytes, Buffer.alloc(0));
      await backend.writeZeroes(sizeBytes, 0);
      assert.deepEqual([...(await disk.read(sizeBytes - 2, 2))], [0, subject.keepsNothing ? 0 : 7]);
      assert.equal(disk.lengthBytes, sizeBytes);
    });
  });

  if (subject.keepsNothing) forgettingTests(subject, getBed, create);
  else contentTests(subject, getBed, create);
  if (!subject.keepsNothing) cancelTests(subject, getBed, create);
  if (subject.canGrow) growthTests(subject, getBed, create);
}

type Create = (bytes?: number) => Promise<NodeOptions>;

function historyOf(shape: DiskShape): fc.Arbitrary<DiskRequest[]> {
  return fc.array(arbitraryRequest(shape), { minLength: 1, maxLength: 20 });
}

function forgettingTests(subject: Subject, getBed: () => TestBed, create: Create): void {
  test('whatever is written, the disk reads as zeroes', async () => {
    await property(subject, historyOf(subject.shape), async (requests) => {
      await withDisk(getBed(), await create(), async (disk) => {
        await Promise.all(requests.map((request) => performOn(disk, request)));
        assertSameBytes(await disk.readAll(), Buffer.alloc(subject.shape.sizeBytes), 'at the end');
        await assertStatusFits(disk, subject.saysZeroData);
      });
    });
  });
}

function contentTests(subject: Subject, getBed: () => TestBed, create: Create): void {
  const { shape } = subject;
  const { sizeBytes } = shape;
  const history = historyOf(shape);

  test('zeroes over less than a unit reach the unit at whose start they lie', async () => {
    await withDisk(getBed(), await create(), async (disk) => {
      const model = new DiskModel(Buffer.alloc(sizeBytes));
      const { unitBytes } = shape;
      await model.perform(disk, { kind: 'write', offset: 0, lengthBytes: 2 * unitBytes, value: 1 });
      await model.perform(disk, { kind: 'zero', offset: 0, lengthBytes: 1, value: 0 });
      await model.perform(disk, { kind: 'zero', offset: unitBytes, lengthBytes: 511, value: 0 });
      await model.compare(disk, 'at the end');
    });
  });

  test('requests of any offset and length read back right, and after opening again', async () => {
    await property(subject, history, async (requests) => {
      const options = await create();
      const model = new DiskModel(Buffer.alloc(sizeBytes));
      await withDisk(getBed(), options, async (disk) => {
        for (const request of requests) await model.perform(disk, request);
        await model.compare(disk, 'at the end');
        await assertStatusFits(disk, subject.saysZeroData);
        await disk.backend.flush();
      });
      await withDisk(getBed(), options, (disk) => model.compare(disk, 'opened again'));
    });
  });

  test('of concurrent requests to the same bytes one wins, and no other byte changes', async () => {
    await property(subject, fc.tuple(history, history), async ([first, second]) => {
      const options = await create();
      await withDisk(getBed(), options, async (disk) => {
        let expected: Buffer = Buffer.alloc(sizeBytes);
        for (const requests of [first, second]) {
          await Promise.all(requests.map((request) => performOn(disk, request)));
          const now = await disk.readAll();
          assertOneOfEach(now, expected, requests);
          expected = now;
        }
        assertSameBytes(await disk.readAll(), expected, 'read a second time');
        await assertStatusFits(disk, subject.saysZeroData);
      });
    });
  });
}

/** Requests that nobody wants any more; each byte is what it was, or what one that was done put there. */
function cancelTests(subject: Subject, getBed: () => TestBed, create: Create): void {
  const history = fc.array(arbitraryRequest(subject.shape), { minLength: 1, maxLength: 8 });

  test('requests that are cancelled before their turn do nothing', async () => {
    await property(subject, history, async (requests) => {
      await withDisk(getBed(), await create(), async (disk) => {
        await disk.write(0, Buffer.alloc(disk.lengthBytes, 5));
        await checkCancelledWhileHeld(getBed(), disk, requests);
      });
    });
  });

  test('requests that are cancelled while others are in their way are done, or not begun', async () => {
    await property(subject, fc.tuple(history, fc.nat(40)), async ([requests, turns]) => {
      await withDisk(getBed(), await create(), (disk) => checkCancelledInLine(disk, requests, turns));
    });
  });
}

function growthTests(subject: Subject, getBed: () => TestBed, create: Create): void {
  const { sizeBytes, unitBytes } = subject.shape;
  const large: DiskShape = { sizeBytes: 2 * sizeBytes, unitBytes };

  test('a grown disk keeps its data, reads as zeroes beyond, and takes writes there', async () => {
    const history = fc.array(arbitraryRequest(subject.shape), { maxLength: 8 });
    const later = fc.array(arbitraryRequest(large), { maxLength: 8 });
    await property(subject, fc.tuple(history, later), async ([requests, more]) => {
      const options = await create();
      const model = new DiskModel(Buffer.alloc(sizeBytes));
      await withDisk(getBed(), options, async (disk) => {
        for (const request of requests) await model.perform(disk, request);
        await disk.backend.truncate(large.sizeBytes);
        model.resize(large.sizeBytes);
        assert.equal(disk.lengthBytes, large.sizeBytes);
        await model.compare(disk, 'after growing');
        for (const request of more) await model.perform(disk, request);
      });
      await withDisk(getBed(), options, (disk) => model.compare(disk, 'opened again'));
    });
  });
}

/** What a format announces to a blkdebug below it, and how it takes the errors from there. */
function eventTests(subject: Subject, getBed: () => TestBed, hasDataElsewhere: boolean): void {
  const { sizeBytes, unitBytes } = subject.shape;
  const over = async (rules: NodeOptions): Promise<NodeOptions> => {
    const options = await subject.create(getBed(), sizeBytes);
    return { ...options, file: { driver: 'blkdebug', image: options['file'] ?? null, ...rules } };
  };

  test('requests read back right over a blkdebug', async () => {
    const history = fc.array(arbitraryRequest(subject.shape), { maxLength: 12 });
    await property(subject, history, async (requests) => {
      const options = await over({});
      const model = new DiskModel(Buffer.alloc(sizeBytes));
      await withDisk(getBed(), options, async (disk) => {
        for (const request of requests) await model.perform(disk, request);
        await model.compare(disk, 'at the end');
      });
    });
  });

  if (hasDataElsewhere) return;
  test('a write that fails below fails with that error, and leaves old or new data', async () => {
    const options = await over({
      'inject-error': [{ event: 'pwritev', state: 2, iotype: 'write', errno: 28, once: true }],
      'set-state': [{ event: 'write_aio', state: 1, new_state: 2 }],
    });
    const model = new DiskModel(Buffer.alloc(sizeBytes));
    const write = (value: number): DiskRequest => ({
      kind: 'write',
      offset: 0,
      lengthBytes: unitBytes,
      value,
    });
    await withDisk(getBed(), options, async (disk) => {
      await assert.rejects(performOn(disk, write(1)), { errno: 'ENOSPC' });
      assertOneOfEach(await disk.readAll(), model.bytes, [write(1)], 'failed');
      await model.perform(disk, write(2));
      await model.perform(disk, { ...write(3), offset: 2 * unitBytes });
      await model.compare(disk, 'after the failure');
    });
  });
}

function backingTests(format: FormatSubject, getBed: () => TestBed, wrap: Wrap): void {
  const { unitBytes } = format;
  const baseBytes = 3 * unitBytes + 3 * 512;
  const shape: DiskShape = { sizeBytes: 5 * unitBytes + 512, unitBytes };

  interface Chain {
    options: NodeOptions;
    base: NodeOptions;
    model: DiskModel;
    baseContent: Buffer;
  }

  /** [base] <-- [middle] <-- [top]; the base full of data and shorter or longer than the rest. */
  const createChain = async (topBytes: number, baseLength = baseBytes): Promise<Chain> => {
    const bed = getBed();
    const base = await newImage(format, bed, baseLength);
    const baseContent = Buffer.alloc(baseLength);
    for (let i = 0; i < baseLength; i++) baseContent[i] = 1 + ((i / 512) % 250);
    await withDisk(bed, base, (disk) => disk.write(0, baseContent));
    const middle = await newImage(format, bed, topBytes, base);
    const top = await newImage(format, bed, topBytes, middle);
    const content = Buffer.alloc(topBytes);
    baseContent.copy(content);
    return { options: wrap(top), base, model: new DiskModel(content), baseContent };
  };

  const assertBaseUntouched = async (chain: Chain): Promise<void> => {
    await withDisk(getBed(), chain.base, async (disk) =>
      assertSameBytes(await disk.readAll(), chain.baseContent, 'the backing file'),
    );
  };

  test('a chain reads, writes and discards right, and never touches its backing files', async () => {
    await property(format, fc.array(arbitraryRequest(shape), { maxLength: 15 }), async (requests) => {
      const chain = await createChain(shape.sizeBytes);
      const { model } = chain;
      await withDisk(getBed(), chain.options, async (disk) => {
        await model.compare(disk, 'before any write');
        for (const request of requests) await model.perform(disk, request);
        await model.compare(disk, 'at the end');
        await assertStatusFits(disk);
      });
      await withDisk(getBed(), chain.options, (disk) => model.compare(disk, 'opened again'));
      await assertBaseUntouched(chain);
    });
  });

  test('concurrent requests over a backing file each copy what they do not write', async () => {
    await property(format, fc.array(arbitraryRequest(shape), { maxLength: 15 }), async (requests) => {
      const chain = await createChain(shape.sizeBytes);
      await withDisk(getBed(), chain.options, async (disk) => {
        await Promise.all(requests.map((request) => performOn(disk, request)));
        assertOneOfEach(await disk.readAll(), chain.model.bytes, requests);
      });
      await assertBaseUntouched(chain);
    });
  });

  test('zeroes and discards hide the data of the backing file', async () => {
    for (const kind of ['zero', 'unmap'] as const) {
      const chain = await createChain(shape.sizeBytes);
      const { model } = chain;
      await withDisk(getBed(), chain.options, async (disk) => {
        await model.perform(disk, { kind, offset: unitBytes, lengthBytes: unitBytes, value: 0 });
        await model.perform(disk, { kind, offset: 100, lengthBytes: 1000, value: 0 });
        await model.perform(disk, { kind: 'write', offset: 2 * unitBytes, lengthBytes: unitBytes, value: 9 });
        await model.perform(disk, {
          kind: 'discard',
          offset: 2 * unitBytes,
          lengthBytes: unitBytes,
          value: 0,
        });
        await model.compare(disk, `after ${kind}`);
        const status = await disk.backend.status(unitBytes, 512);
        assert.ok(status.zero && status.allocated, 'a zeroed cluster is known to be zero');
      });
      await withDisk(getBed(), chain.options, (disk) => model.compare(disk, 'opened again'));
    }
  });

  if (format.canGrow === false) return;
  test('growing over a longer backing file does not bring its data to light', async () => {
    const chain = await createChain(2 * unitBytes + 512, 4 * unitBytes);
    const { model } = chain;
    model.bytes = Buffer.from(chain.baseContent.subarray(0, 2 * unitBytes + 512));
    await withDisk(getBed(), chain.options, async (disk) => {
      await model.compare(disk, 'before growing');
      await disk.backend.truncate(5 * unitBytes);
      model.resize(5 * unitBytes);
      await model.compare(disk, 'after growing');
      await model.perform(disk, { kind: 'write', offset: 3 * unitBytes + 100, lengthBytes: 10, value: 8 });
    });
    await withDisk(getBed(), chain.options, (disk) => model.compare(disk, 'opened again'));
  });
}
