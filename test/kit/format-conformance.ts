import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { createImage } from '../../src/block/create.js';
import type { NodeOptions } from '../../src/block/driver.js';
import { type FormatSubject, property, type Subject, withDisk, type Wrap } from './conformance-subject.js';
import {
  arbitraryRequest,
  assertOneOfEach,
  assertStatusFits,
  DiskModel,
  type DiskRequest,
  type DiskShape,
  performOn,
} from './disk-model.js';
import { assertSameBytes, type TestBed } from './test-disk.js';

/** Of `sizeBytes`, over `backing` if there is one; answers what opens it. */
export async function newImage(
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

/** What a format announces to a blkdebug below it, and how it takes the errors from there. */
export function eventTests(subject: Subject, getBed: () => TestBed, hasDataElsewhere: boolean): void {
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

/** Chains of images of the format. */
export function backingTests(format: FormatSubject, getBed: () => TestBed, wrap: Wrap): void {
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
