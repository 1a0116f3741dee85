const SECTOR_BYTES = 512;

export interface BochsOptions {
  readonly version?: 1 | 2;
  readonly extentBytes?: number;
  /** How long the header is, behind which the catalog lies. */
  readonly headerBytes?: number;
  /** In what order extents come to be in the file; default: that of the disk. */
  readonly order?: (extents: number[]) => number[];
}

/** A growing redolog, as the Bochs developers' guide has it; sectors of zeroes are left out. */
export function bochsImage(content: Buffer, options: BochsOptions = {}): Buffer {
  const { version = 2, extentBytes = 8 * SECTOR_BYTES, headerBytes = SECTOR_BYTES } = options;
  const { order = (all: number[]) => all } = options;
  const extents = Math.ceil(content.length / extentBytes);
  const bits = extentBytes / SECTOR_BYTES;
  const bitmapBytes = Math.ceil(bits / 8 / SECTOR_BYTES) * SECTOR_BYTES;
  const header = Buffer.alloc(headerBytes);
  header.write('Bochs Virtual HD Image', 0, 'latin1');
  header.write('Redolog', 32, 'latin1');
  header.write('Growing', 48, 'latin1');
  const numbers = [version * 0x10000, headerBytes, extents, Math.ceil(bits / 8), extentBytes];
  for (const [index, value] of numbers.entries()) header.writeUInt32LE(value, 64 + 4 * index);
  header.writeBigUInt64LE(BigInt(content.length), version === 1 ? 84 : 88);
  const catalog = Buffer.alloc(extents * 4, 0xff);
  const used = Array.from({ length: extents }, (_, i) => i).filter((i) =>
    content.subarray(i * extentBytes, (i + 1) * extentBytes).some((byte) => byte !== 0),
  );
  const data = order(used).flatMap((extent, place) => {
    catalog.writeUInt32LE(place, extent * 4);
    const bytes = Buffer.alloc(extentBytes);
    content.copy(bytes, 0, extent * extentBytes);
    return [bitmapOf(bytes, bitmapBytes), bytes];
  });
  return Buffer.concat([header, catalog, ...data]);
}

function bitmapOf(extent: Buffer, bitmapBytes: number): Buffer {
  const bitmap = Buffer.alloc(bitmapBytes);
  for (let sector = 0; sector * SECTOR_BYTES < extent.length; sector++) {
    const bytes = extent.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
    if (bytes.some((byte) => byte !== 0)) bitmap[sector >> 3]! |= 1 << (sector & 7);
  }
  return bitmap;
}
