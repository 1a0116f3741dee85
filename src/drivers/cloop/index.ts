import { BlockError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import { inflateZlib } from '../../codec/index.js';
import type { ChildIo, DriverContext, DriverDescription } from '../../block/driver.js';
import { CLOOP_OPTIONS } from '../../schema/blockdev-options.js';
import { type Chunk, ChunkedMap, type ChunkTable } from '../tables/chunked-map.js';
import { EntryCache } from '../tables/entry-cache.js';
import { readBytes, uint64 } from '../tables/read-bytes.js';
import { readingPermissions, ReadOnlyImage } from '../tables/read-only-node.js';

/** Version 2 of the compressed loop device: a script that mounts it, numbers (big-endian), zlib streams. */
const BEGINNING = '#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n';
const BLOCK_BYTES_AT = 128;
const BLOCKS_AT = 132;
/** Where each block begins, and where the last one ends. */
const OFFSETS_AT = 136;
const SECTOR_BYTES = 512;
const MAX_BLOCK_BYTES = 64 * MiB;
const MAX_BLOCKS = 2 ** 29 - 3;
const MAX_TABLE_BYTES = 512 * MiB;
const PIECE_ENTRIES = 64 * 1024;

interface CloopHeader {
  readonly blockBytes: number;
  readonly blocks: number;
}

/** Errors: invalid, in QEMU's words. */
function parseHeader(bytes: Buffer): CloopHeader {
  const [blockBytes, blocks] = [bytes.readUInt32BE(BLOCK_BYTES_AT), bytes.readUInt32BE(BLOCKS_AT)];
  if (blockBytes === 0) throw invalid('block_size cannot be zero');
  if (blockBytes % SECTOR_BYTES !== 0)
    throw invalid(`block_size ${blockBytes} must be a multiple of ${SECTOR_BYTES}`);
  if (blockBytes > MAX_BLOCK_BYTES)
    throw invalid(`block_size ${blockBytes} must be ${MAX_BLOCK_BYTES / MiB} MB or less`);
  if (blocks > MAX_BLOCKS) throw invalid(`n_blocks ${blocks} must be ${MAX_BLOCKS} or less`);
  if ((blocks + 1) * 8 > MAX_TABLE_BYTES)
    throw invalid('image requires too many offsets, try increasing block size');
  return { blockBytes, blocks };
}

/** Errors: invalid. */
async function checkOffsets(file: ChildIo, { blocks }: CloopHeader): Promise<void> {
  let before = 0;
  for (let first = 0; first <= blocks; first += PIECE_ENTRIES) {
    const count = Math.min(PIECE_ENTRIES, blocks + 1 - first);
    const bytes = await readBytes(file, OFFSETS_AT + first * 8, count * 8);
    for (let i = 0; i < count; i++) {
      const index = first + i;
      const offset = uint64(bytes, i * 8, false);
      const isCorrupt = `at index ${index}, image file is corrupt`;
      if (offset < before) throw invalid(`offsets not monotonically increasing ${isCorrupt}`);
      // Infinity is too far away from anything, and from itself.
      if (index > 0 && !(offset - before <= 2 * MAX_BLOCK_BYTES))
        throw invalid(`invalid compressed block size ${isCorrupt}`);
      before = offset;
    }
  }
}

function invalid(text: string): BlockError {
  return new BlockError('invalid', text, { errno: 'EINVAL' });
}

class CloopTable implements ChunkTable {
  readonly #cache: EntryCache;
  readonly #blockBytes: number;

  constructor(file: ChildIo, { blockBytes }: CloopHeader) {
    this.#cache = new EntryCache(file);
    this.#blockBytes = blockBytes;
  }

  #entryAt(offset: number): number {
    return OFFSETS_AT + 8 * Math.floor(offset / this.#blockBytes);
  }

  find(offset: number): Chunk | undefined {
    const at = this.#entryAt(offset);
    const [place, end] = [this.#cache.tryUint64(at, false), this.#cache.tryUint64(at + 8, false)];
    if (place === -1 || end === -1) return undefined;
    return {
      offset: offset - (offset % this.#blockBytes),
      lengthBytes: this.#blockBytes,
      content: inflateZlib,
      place,
      storedBytes: end - place,
    };
  }

  async load(offset: number): Promise<void> {
    const at = this.#entryAt(offset);
    await this.#cache.load(at);
    await this.#cache.load(at + 8);
  }
}

async function load(driver: DriverContext) {
  const file = driver.child('file');
  const header = parseHeader(await readBytes(file, 0, OFFSETS_AT));
  await checkOffsets(file, header);
  const { blocks, blockBytes } = header;
  const map = new ChunkedMap(file, SECTOR_BYTES, new CloopTable(file, header), driver.host.compute);
  return { lengthBytes: blocks * blockBytes, map };
}

/** Images of the compressed loop device, to be read. */
export const cloopDriver: DriverDescription<typeof CLOOP_OPTIONS> = {
  name: 'cloop',
  kind: 'format',
  options: CLOOP_OPTIONS,
  childPermissions: readingPermissions,
  probe: (header) => {
    const beginning = header.toString('latin1', 0, BEGINNING.length);
    return beginning !== '' && BEGINNING.startsWith(beginning) ? 2 : 0;
  },
  open: (context, settings) => ReadOnlyImage.open('cloop', context, settings, () => load(context)),
};
