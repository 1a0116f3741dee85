import assert from 'node:assert/strict';
import { test } from 'node:test';
import { writeFileSync } from 'node:fs';
import fc from 'fast-check';
import type { NodeOptions } from '../../src/block/driver.js';
import { Permission } from '../../src/block/permissions.js';
import { fileDriver } from '../../src/drivers/file/index.js';
import { forEachVariant } from './conformance.js';
import { seededBelow } from './crash-states.js';
import { assertStatusFits } from './disk-model.js';
import { type ReadOnlyFormat, sectorsOf } from './read-only-formats.js';
import { assertSameBytes, type TestBed, type TestDisk } from './test-disk.js';

const SECTORS = 61;

/** For formats that are only read: what images of them show, in every place in which the suite of the others runs. */
export function readOnlyConformance(format: ReadOnlyFormat): void {
  const { name, driver } = format;
  forEachVariant({ name, drivers: [fileDriver, driver] }, (_subject, getBed, wrap) => {
    const content = sectorsOf(SECTORS, seededBelow(7));
    const image = (bed: TestBed): NodeOptions => {
      const filename = bed.newPath(driver.name);
      writeFileSync(filename, format.make(content));
      return wrap({ driver: driver.name, file: { driver: 'file', filename } });
    };
    const withImage = async (body: (disk: TestDisk) => Promise<void>): Promise<void> => {
      const bed = getBed();
      const disk = await bed.open(image(bed), { readOnly: true });
      try {
        await body(disk);
      } finally {
        await disk.close();
      }
    };

    test('shows its content, and says where it has none', () =>
      withImage(async (disk) => {
        const shown = await disk.readAll();
        assertSameBytes(shown.subarray(0, content.length), content, 'the disk');
        assertSameBytes(
          shown.subarray(content.length),
          Buffer.alloc(shown.length - content.length),
          'its end',
        );
        await assertStatusFits(disk);
      }));

    test('reads of any offset and length, one after the other and at once', () =>
      withImage(async (disk) => {
        const range = fc.tuple(fc.nat(content.length - 1), fc.integer({ min: 1, max: 9000 }));
        await fc.assert(
          fc.asyncProperty(fc.array(range, { minLength: 1, maxLength: 12 }), async (ranges) => {
            const wanted = ranges.map(([at, length]) => [at, Math.min(length, content.length - at)] as const);
            const compare = async ([at, length]: readonly [number, number]): Promise<void> =>
              assertSameBytes(await disk.read(at, length), content.subarray(at, at + length), `at ${at}`);
            for (const each of wanted) await compare(each);
            await Promise.all(wanted.map(compare));
          }),
          { numRuns: 12 },
        );
      }));

    test('takes no writers', async () => {
      const bed = getBed();
      await assert.rejects(bed.open(image(bed)), { message: 'Image is read-only', errno: 'EACCES' });
      const options: NodeOptions = { ...image(bed), 'auto-read-only': true };
      if (options['driver'] !== driver.name) return;
      await assert.rejects(bed.open(options), { message: 'Block node is read-only' });
      await (await bed.open(options, { perm: Permission.consistentRead })).close();
    });
  });
}
