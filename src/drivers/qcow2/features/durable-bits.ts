import type { BitsPlace } from '../../../block/change-log.js';
import { Flag } from '../../../block/request.js';
import { type BitmapEntry, writeTableEntry } from '../disk/bitmap-directory.js';
import { ENTRY_BYTES } from '../disk/layout.js';
import type { ImageContext } from '../image.js';
import type { OpenImage } from '../open-image.js';
import type { ClusterRun } from '../space/bulk.js';
import { readParts, type StoredBits, writeNew } from './bitmap-table.js';

/** The clusters of a bitmap in the image, all of which it has, so that its bits can be rewritten where they are. */
export class DurableBits implements BitsPlace {
  readonly #context: ImageContext;
  /** Offsets of its clusters, in order. */
  readonly #parts: readonly number[];

  constructor(context: ImageContext, parts: readonly number[]) {
    this.#context = context;
    this.#parts = parts;
  }

  /** Of a bitmap as the image has it; undefined: some of its clusters are not there. Errors: those of reading its table. */
  static async of(image: OpenImage, entry: BitmapEntry): Promise<DurableBits | undefined> {
    const { context } = image;
    const parts = new Set<number>();
    for (const part of await readParts(image, entry, entry.tableEntries)) {
      if (typeof part === 'string') return undefined;
      // What is not counted as theirs alone, or lies beyond the end of the file, is no place to write to.
      const { hostOffset } = part;
      const isTheirs = context.metadata.findAny(hostOffset, context.clusterBytes) === 'bitmap';
      const isInside = hostOffset + context.clusterBytes <= context.meta.lengthBytes;
      if (!isTheirs || !isInside || parts.has(hostOffset)) return undefined;
      parts.add(hostOffset);
    }
    return new DurableBits(context, [...parts]);
  }

  /** Puts a bitmap with these bytes where nothing is; see storeBits. */
  static async place(
    image: OpenImage,
    bytes: Buffer,
    taken: ClusterRun[],
  ): Promise<{ bits: DurableBits; stored: StoredBits }> {
    const { clusterBytes } = image.context;
    const tableEntries = bytes.length / clusterBytes;
    const table = Buffer.alloc(tableEntries * ENTRY_BYTES);
    const parts: number[] = [];
    for (let index = 0; index < tableEntries; index++) {
      const part = bytes.subarray(index * clusterBytes, (index + 1) * clusterBytes);
      const hostOffset = await writeNew(image, 'bitmap', part, taken);
      parts.push(hostOffset);
      writeTableEntry(table, index, hostOffset);
    }
    const tableOffset = await writeNew(image, 'bitmap table', table, taken);
    return { bits: new DurableBits(image.context, parts), stored: { tableOffset, tableEntries } };
  }

  get lengthBytes(): number {
    return this.#parts.length * this.#context.clusterBytes;
  }

  async write(byteOffset: number, bytes: Uint8Array, isDurable: boolean): Promise<void> {
    const flags = isDurable ? Flag.fua : Flag.none;
    for (const { at, hostOffset, lengthBytes } of this.#pieces(byteOffset, bytes.length))
      await this.#context.meta.write(hostOffset, bytes.subarray(at, at + lengthBytes), flags);
  }

  async read(): Promise<Buffer> {
    const bytes = Buffer.alloc(this.lengthBytes);
    for (const { at, hostOffset, lengthBytes } of this.#pieces(0, bytes.length))
      await this.#context.meta.read(hostOffset, bytes.subarray(at, at + lengthBytes));
    return bytes;
  }

  *#pieces(
    byteOffset: number,
    lengthBytes: number,
  ): Generator<{ at: number; hostOffset: number; lengthBytes: number }> {
    const { clusterBytes } = this.#context;
    for (let at = 0; at < lengthBytes;) {
      const inside = (byteOffset + at) % clusterBytes;
      const length = Math.min(lengthBytes - at, clusterBytes - inside);
      const part = this.#parts[Math.floor((byteOffset + at) / clusterBytes)] ?? 0;
      yield { at, hostOffset: part + inside, lengthBytes: length };
      at += length;
    }
  }
}
