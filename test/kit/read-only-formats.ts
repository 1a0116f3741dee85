import type { DriverDescription } from '../../src/block/driver.js';
import { bochsDriver } from '../../src/drivers/bochs/index.js';
import { cloopDriver } from '../../src/drivers/cloop/index.js';
import { dmgDriver } from '../../src/drivers/dmg/index.js';
import { compressAdc } from './adc.js';
import { bochsImage } from './bochs-image.js';
import { cloopImage } from './cloop-image.js';
import { DmgChunk, type DmgChunkOptions, dmgImage, rawChunk, zeroChunk, zlibChunk } from './dmg-image.js';

const SECTOR_BYTES = 512;

/** A format that is only read, and how an image of some content is made. */
export interface ReadOnlyFormat {
  readonly name: string;
  readonly driver: DriverDescription;
  readonly make: (content: Buffer) => Buffer;
  /** Stretches of the file in which headers and tables are. */
  readonly metadata: (image: Buffer) => ReadonlyArray<readonly [from: number, end: number]>;
}

/** Chunks of all kinds that hold that content; zeroes are no bytes. `sectors`: of each chunk, by turns. */
export function chunksOf(content: Buffer, sectors: readonly number[]): DmgChunkOptions[] {
  const chunks: DmgChunkOptions[] = [];
  for (let at = 0; at < content.length;) {
    const part = content.subarray(at, at + SECTOR_BYTES * (sectors[chunks.length % sectors.length] ?? 1));
    at += part.length;
    if (part.every((byte) => byte === 0))
      chunks.push(
        zeroChunk(part.length / SECTOR_BYTES, chunks.length % 2 === 0 ? DmgChunk.zero : DmgChunk.ignored),
      );
    else if (chunks.length % 3 === 0) chunks.push(rawChunk(part));
    else chunks.push(zlibChunk(part));
  }
  return chunks;
}

/** The same in chunks of ADC. */
export function adcChunksOf(content: Buffer, sectors: number): DmgChunkOptions[] {
  const chunks: DmgChunkOptions[] = [];
  for (let at = 0; at < content.length; at += sectors * SECTOR_BYTES) {
    const part = content.subarray(at, at + sectors * SECTOR_BYTES);
    chunks.push({ kind: DmgChunk.adc, sectors: part.length / SECTOR_BYTES, bytes: compressAdc(part) });
  }
  return chunks;
}

/** Half and half, in whole sectors. */
function inTwo(chunks: readonly DmgChunkOptions[]): DmgChunkOptions[][] {
  const half = chunks.length >> 1;
  return [chunks.slice(0, half), chunks.slice(half)];
}

const dmg = (image: Buffer): ReadonlyArray<readonly [number, number]> => {
  const trailer = image.length - SECTOR_BYTES;
  const list = Number(image.readBigUInt64BE(trailer + 0xd8)) || Number(image.readBigUInt64BE(trailer + 0x28));
  return [
    [trailer, trailer + 0x38],
    [trailer + 0xd0, trailer + 0xf0],
    [trailer + 0x1e0, trailer + 0x1f8],
    [list, list + 700],
  ];
};

export const READ_ONLY_FORMATS: readonly ReadOnlyFormat[] = [
  {
    name: 'bochs',
    driver: bochsDriver,
    make: (content) => bochsImage(content, { order: (extents) => extents.reverse() }),
    metadata: () => [
      [64, 96],
      [512, 600],
    ],
  },
  {
    name: 'bochs version 1',
    driver: bochsDriver,
    make: (content) => bochsImage(content, { version: 1, extentBytes: 4 * SECTOR_BYTES }),
    metadata: () => [
      [64, 96],
      [512, 600],
    ],
  },
  {
    name: 'cloop',
    driver: cloopDriver,
    make: (content) => cloopImage(content, 2048),
    metadata: () => [[128, 200]],
  },
  {
    name: 'dmg',
    driver: dmgDriver,
    make: (content) => dmgImage({ partitions: inTwo(chunksOf(content, [3, 8, 5])) }),
    metadata: dmg,
  },
  {
    name: 'dmg with resources',
    driver: dmgDriver,
    make: (content) =>
      dmgImage({
        partitions: inTwo(chunksOf(content, [2])),
        tables: 'resources',
        before: 100,
        dataOffset: 20,
      }),
    metadata: dmg,
  },
  {
    name: 'dmg of ADC',
    driver: dmgDriver,
    make: (content) => dmgImage({ partitions: [adcChunksOf(content, 8)] }),
    metadata: dmg,
  },
];

/** Some data, some zeroes, and some that does not compress, in sectors. */
export function sectorsOf(count: number, below: (bound: number) => number): Buffer {
  const content = Buffer.alloc(count * SECTOR_BYTES);
  for (let sector = 0; sector < count;) {
    const sectors = Math.min(1 + below(9), count - sector);
    const part = content.subarray(sector * SECTOR_BYTES, (sector + sectors) * SECTOR_BYTES);
    sector += sectors;
    const kind = below(3);
    if (kind === 0) continue;
    part.fill(`${below(1000)} `);
    if (kind === 1) for (let at = 0; at < part.length; at++) part[at] = below(256);
  }
  return content;
}
