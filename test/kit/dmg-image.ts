import { deflateSync } from 'node:zlib';

const SECTOR_BYTES = 512;

/** Kinds of chunks, by what a block table says of them. */
export const DmgChunk = {
  zero: 0,
  raw: 1,
  ignored: 2,
  adc: 0x80000004,
  zlib: 0x80000005,
  bzip2: 0x80000006,
  lzfse: 0x80000007,
  lzma: 0x80000008,
  comment: 0x7ffffffe,
  end: 0xffffffff,
} as const;

export interface DmgChunkOptions {
  readonly kind: number;
  readonly sectors: number;
  /** As they are in the file. */
  readonly bytes?: Uint8Array;
}

export interface DmgOptions {
  /** Each of them has a block table; they follow one another on the disk. */
  readonly partitions: ReadonlyArray<readonly DmgChunkOptions[]>;
  /** Where the block tables are; default: the property list. */
  readonly tables?: 'plist' | 'resources';
  /** In the file before the data fork. */
  readonly before?: number;
  /** What the tables count places from, within the data fork. */
  readonly dataOffset?: number;
  /** What the trailer says; default: all of them. */
  readonly sectors?: number;
}

/** An image in Apple's Universal Disk Image Format, as libyal's "Mac OS disk image types" has it. */
export function dmgImage(options: DmgOptions): Buffer {
  const { partitions, tables = 'plist', before = 0, dataOffset = 0 } = options;
  const data: Uint8Array[] = [Buffer.alloc(dataOffset, 0x77)];
  let place = 0;
  let sectors = 0;
  const blocks = partitions.map((chunks) => {
    const first = sectors;
    const entries = chunks.map(({ kind, sectors: count, bytes = new Uint8Array(0) }) => {
      const entry = chunkEntry(kind, sectors - first, count, place, bytes.length);
      data.push(bytes);
      place += bytes.length;
      sectors += count;
      return entry;
    });
    entries.push(chunkEntry(DmgChunk.end, sectors - first, 0, place, 0));
    return blockTable(first, sectors - first, dataOffset, entries);
  });
  const fork = Buffer.concat(data);
  const isList = tables === 'plist';
  const described = isList ? propertyList(blocks) : resourceFork(blocks);
  const trailer = Buffer.alloc(SECTOR_BYTES);
  trailer.write('koly', 0, 'latin1');
  trailer.writeUInt32BE(4, 4);
  trailer.writeUInt32BE(SECTOR_BYTES, 8);
  trailer.writeUInt32BE(1, 12);
  const set = (at: number, value: number): void => void trailer.writeBigUInt64BE(BigInt(value), at);
  set(0x18, before);
  set(0x20, fork.length);
  const at = before + fork.length;
  set(isList ? 0xd8 : 0x28, at);
  set(isList ? 0xe0 : 0x30, described.length);
  set(0x1ec, options.sectors ?? sectors);
  return Buffer.concat([Buffer.alloc(before, 0x66), fork, described, trailer]);
}

function chunkEntry(kind: number, sector: number, sectors: number, place: number, length: number): Buffer {
  const entry = Buffer.alloc(40);
  entry.writeUInt32BE(kind, 0);
  for (const [index, value] of [sector, sectors, place, length].entries())
    entry.writeBigUInt64BE(BigInt(value), 8 + 8 * index);
  return entry;
}

function blockTable(sector: number, sectors: number, dataOffset: number, entries: readonly Buffer[]): Buffer {
  const head = Buffer.alloc(204);
  head.write('mish', 0, 'latin1');
  head.writeUInt32BE(1, 4);
  head.writeBigUInt64BE(BigInt(sector), 8);
  head.writeBigUInt64BE(BigInt(sectors), 16);
  head.writeBigUInt64BE(BigInt(dataOffset), 24);
  head.writeUInt32BE(entries.length, 200);
  return Buffer.concat([head, ...entries]);
}

function propertyList(blocks: readonly Buffer[]): Buffer {
  const items = blocks.map((block, index) => {
    const lines = block.toString('base64').replace(/.{52}/g, '$&\n\t\t\t\t');
    return `\t\t\t<dict>
				<key>Attributes</key>
				<string>0x0050</string>
				<key>Data</key>
				<data>
				${lines}
				</data>
				<key>ID</key>
				<string>${index}</string>
				<key>Name</key>
				<string>part ${index}</string>
			</dict>\n`;
  });
  return Buffer.from(`<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>resource-fork</key>
	<dict>
		<key>blkx</key>
		<array>
${items.join('')}\t\t</array>
		<key>plst</key>
		<array>
			<dict>
				<key>Data</key>
				<data>
				${Buffer.alloc(30).toString('base64')}
				</data>
			</dict>
		</array>
	</dict>
</dict>
</plist>
`);
}

/** "Inside Macintosh: More Macintosh Toolbox", Resource Manager: header, resources, and a map of one type. */
function resourceFork(blocks: readonly Buffer[]): Buffer {
  const length = (bytes: number): Buffer => {
    const field = Buffer.alloc(4);
    field.writeUInt32BE(bytes);
    return field;
  };
  const resources = Buffer.concat(blocks.flatMap((block) => [length(block.length), block]));
  const map = Buffer.alloc(28 + 2 + 8 + 12 * blocks.length);
  map.writeUInt16BE(28, 24);
  map.writeUInt16BE(map.length, 26);
  map.write('blkx', 30, 'latin1');
  map.writeUInt16BE(blocks.length - 1, 34);
  map.writeUInt16BE(10, 36);
  let at = 0;
  for (const [index, block] of blocks.entries()) {
    map.writeInt16BE(index, 38 + 12 * index);
    map.writeUInt16BE(0xffff, 40 + 12 * index);
    map.writeUInt32BE(at, 42 + 12 * index);
    at += 4 + block.length;
  }
  const head = Buffer.alloc(256);
  for (const [index, value] of [256, 256 + resources.length, resources.length, map.length].entries())
    head.writeUInt32BE(value, 4 * index);
  return Buffer.concat([head, resources, map]);
}

/** A chunk of that content. */
export function zlibChunk(content: Uint8Array): DmgChunkOptions {
  return { kind: DmgChunk.zlib, sectors: content.length / SECTOR_BYTES, bytes: deflateSync(content) };
}

export function rawChunk(content: Uint8Array): DmgChunkOptions {
  return { kind: DmgChunk.raw, sectors: content.length / SECTOR_BYTES, bytes: content };
}

export function zeroChunk(sectors: number, kind: number = DmgChunk.zero): DmgChunkOptions {
  return { kind, sectors };
}
