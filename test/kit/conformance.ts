import assert from 'node:assert/strict';
import { after, before, describe } from 'node:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DriverDescription, NodeOptions } from '../../src/block/driver.js';
import { blkdebugDriver } from '../../src/drivers/blkdebug/index.js';
import { fileDriver } from '../../src/drivers/file/index.js';
import type { Host } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';
import { drawn, partOf } from './amount.js';
import { type FormatSubject, RUNS, type Subject, type Wrap } from './conformance-subject.js';
import { diskTests } from './disk-conformance.js';
import { backingTests, eventTests, newImage } from './format-conformance.js';
import { hostWithout } from './host-variants.js';
import { jobFilterDrivers, underJobFilters } from './job-filters.js';
import { TestBed } from './test-disk.js';

/** A place in which a suite runs again. The first two are those that differ most, and never left out. */
interface Variant {
  name: string;
  host(): Host;
  /** Puts filters above the disk. */
  wrap: Wrap;
  /** How many of a property's runs: what differs is not in the driver. */
  share?: number;
}
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

export function forEachVariant<S extends Pick<Subject, 'name' | 'drivers' | 'runs'>>(
  subject: S,
  body: (subject: S, bed: () => TestBed, wrap: Wrap) => void,
): void {
  const [main, others] = [VARIANTS.slice(0, 2), VARIANTS.slice(2)];
  for (const variant of [...main, ...drawn(others)]) {
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
      const runs = partOf((subject.runs ?? RUNS) * (variant.share ?? 1));
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
