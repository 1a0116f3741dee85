import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { NodeOptions } from '../../src/block/driver.js';
import { checkCancelledInLine, checkCancelledWhileHeld } from './cancelled-requests.js';
import { property, type Subject, withDisk, type Wrap } from './conformance-subject.js';
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

/** What every disk does, whatever it is made of. */
export function diskTests(subject: Subject, getBed: () => TestBed, wrap: Wrap): void {
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
