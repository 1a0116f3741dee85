import fc from 'fast-check';
import type { DriverDescription, NodeOptions } from '../../src/block/driver.js';
import type { DiskShape } from './disk-model.js';
import type { TestBed, TestDisk } from './test-disk.js';

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
export type Wrap = (options: NodeOptions) => NodeOptions;

/** Runs of a property, where a subject does not say. */
export const RUNS = 15;

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
/** Opens, and closes whatever happens. */
export async function withDisk<T>(
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

export function property<T>(
  subject: { runs?: number },
  arbitrary: fc.Arbitrary<T>,
  body: (value: T) => Promise<void>,
): Promise<void> {
  return fc.assert(fc.asyncProperty(arbitrary, body), { numRuns: subject.runs ?? RUNS });
}
