import type { DriverDescription, NodeOptions } from '../../src/block/driver.js';
import { newImage } from '../../src/block/create.js';
import { parallelsDriver } from '../../src/drivers/parallels/index.js';
import { qedDriver } from '../../src/drivers/qed/index.js';
import { vdiDriver } from '../../src/drivers/vdi/index.js';
import { vhdxDriver } from '../../src/drivers/vhdx/index.js';
import {
  checksumOf,
  HEADER_BYTES,
  HEADER_OFFSETS,
  REGION_OFFSETS,
  REGION_TABLE_BYTES,
} from '../../src/drivers/vhdx/layout.js';
import { vmdkDriver } from '../../src/drivers/vmdk/index.js';
import { vpcDriver } from '../../src/drivers/vpc/index.js';
import type { Damageable } from './damaged-format.js';
import { READ_ONLY_FORMATS } from './read-only-formats.js';
import { DiskShelf } from './recorded-disk.js';

const KiB = 1024;
const MiB = 1024 * KiB;

/** A format of which images can be made in memory, in one file. */
export interface FormatImage extends Damageable {
  readonly name: string;
  readonly driver: DriverDescription;
  readonly options: NodeOptions;
  readonly sizeBytes: number;
}

export const FORMAT_IMAGES: readonly FormatImage[] = [
  {
    name: 'vdi',
    driver: vdiDriver,
    options: {},
    sizeBytes: 4 * MiB,
    metadata: [
      [0x40, 0x50],
      [0x150, 0x220],
    ],
  },
  {
    name: 'vpc',
    driver: vpcDriver,
    options: { 'force-size': true },
    sizeBytes: 6 * MiB,
    metadata: [
      [0, 88],
      [512, 600],
      [1536, 1560],
    ],
  },
  {
    name: 'vpc fixed',
    driver: vpcDriver,
    options: { subformat: 'fixed', 'force-size': true },
    sizeBytes: 64 * KiB,
    metadata: [[64 * KiB, 64 * KiB + 88]],
  },
  {
    name: 'parallels',
    driver: parallelsDriver,
    options: { 'cluster-size': 4096 },
    sizeBytes: 64 * KiB,
    metadata: [[0, 136]],
  },
  {
    name: 'qed',
    driver: qedDriver,
    options: { 'cluster-size': 4096, 'table-size': 1 },
    sizeBytes: 64 * KiB,
    metadata: [
      [0, 72],
      [4096, 4104],
      [8192, 8320],
    ],
  },
  {
    name: 'vmdk',
    driver: vmdkDriver,
    options: { 'zeroed-grain': true },
    sizeBytes: 512 * KiB,
    metadata: [
      [0, 80],
      [512, 900],
      [0x2a00, 0x2a10],
      [0x2c00, 0x2c40],
      [0x3400, 0x3410],
      [0x3600, 0x3640],
    ],
  },
  {
    name: 'vmdk stream',
    driver: vmdkDriver,
    options: { subformat: 'streamOptimized' },
    sizeBytes: 512 * KiB,
    metadata: [
      [0, 80],
      [512, 900],
      [0x3400, 0x3410],
      [0x3600, 0x3640],
      [0x10000, 0x10020],
    ],
  },
  {
    name: 'vhdx',
    driver: vhdxDriver,
    options: { 'block-size': MiB },
    sizeBytes: 4 * MiB,
    metadata: [
      [64 * KiB, 64 * KiB + 80],
      [128 * KiB, 128 * KiB + 80],
      [192 * KiB, 192 * KiB + 80],
      [2 * MiB, 2 * MiB + 40],
      [3 * MiB, 3 * MiB + 200],
      [3 * MiB + 64 * KiB, 3 * MiB + 64 * KiB + 48],
    ],
    seal: (bytes) => {
      for (const [at, length] of [
        ...HEADER_OFFSETS.map((offset) => [offset, HEADER_BYTES] as const),
        ...REGION_OFFSETS.map((offset) => [offset, REGION_TABLE_BYTES] as const),
      ])
        bytes.writeUInt32LE(checksumOf(bytes.subarray(at, at + length)), at + 4);
    },
  },
];

/** All formats' drivers over disks in memory. */
export function formatShelf(): DiskShelf {
  return new DiskShelf(new Set([...FORMAT_IMAGES, ...READ_ONLY_FORMATS].map(({ driver }) => driver)));
}

/** Makes an empty image of that name. */
export async function createOn(shelf: DiskShelf, name: string, format: FormatImage): Promise<void> {
  shelf.put(name);
  const { driver, options, sizeBytes } = format;
  const node = await shelf.opener.open({ driver: 'file', filename: name }, { readOnly: false });
  const disk = await shelf.attach(node);
  const image = newImage(driver, { sizeBytes, options });
  const { root } = disk.backend;
  if (root)
    await driver.create?.(root, image, shelf.graph.host, {
      filename: name,
      create: () => Promise.reject(new Error('one file')),
      secret: () => Buffer.from('password'),
      lookAt: () => Promise.reject(new Error('no backing file')),
    });
  await disk.close();
}
