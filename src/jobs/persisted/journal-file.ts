import { readBuffer } from '../../host/whole-buffers.js';
import { dirname } from 'node:path';
import { alignDown, alignUp, isPowerOfTwo } from '../../base/align.js';
import { assert } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { IoVector } from '../../base/io-vector.js';
import { KiB, MAX_IMAGE_BYTES, MiB } from '../../base/limits.js';
import { DirtyBitmap, type Stretch } from '../../block/dirty-bitmap.js';
import { crc32 } from '../../codec/checksum.js';
import type { Host, HostFile } from '../../host/host.js';
import type { JsonObject } from '../../schema/types.js';

/**
 * A job's journal: two heads, of which the newer that is whole counts, and a bitmap of what the target may lack, bit after
 * bit from the disk's beginning. A head: magic (8 bytes), CRC-32 of the rest, length of its text, number (each 4 bytes,
 * little endian), text (JSON).
 */
const MAGIC = Buffer.from('LDJOBJ1\n', 'latin1');
const HEAD_BYTES = 64 * KiB;
const TEXT_OFFSET = 20;
const BITMAP_OFFSET = 2 * HEAD_BYTES;
const SECTOR_BYTES = 4 * KiB;
const MIN_GRANULE_BYTES = 512;
const MAX_GRANULE_BYTES = 64 * MiB;
/** Two of them never have one journal. */
const LOCK_BYTE = 1;

export interface JournalShape {
  readonly diskBytes: number;
  readonly granularityBytes: number;
}

/** The file itself: what it holds is written when this is asked for, and durable after flush(). */
export class JournalFile {
  readonly path: string;
  readonly #file: HostFile;
  #number: number;

  private constructor(file: HostFile, number: number) {
    this.path = file.path;
    this.#file = file;
    this.#number = number;
  }

  /** A new one, in which all is left to do; durable. Errors: exists; those of files; limit for the head. */
  static async create(host: Host, path: string, head: JsonObject, left: DirtyBitmap): Promise<JournalFile> {
    const file = await host.files.open(path, { write: true, create: true, exclusive: true });
    try {
      lock(file);
      const journal = new JournalFile(file, 0);
      await journal.writeBits(left, { offset: 0, lengthBytes: left.sizeBytes });
      await journal.writeHead(head);
      await journal.writeHead(head);
      await journal.flush();
      await host.files.syncDirectory(dirname(path));
      return journal;
    } catch (error) {
      await file.close().catch(() => undefined);
      await host.files.unlink(path).catch(() => undefined);
      throw error;
    }
  }

  /** Errors: corrupt; busy while a job uses it; those of files. */
  static async open(
    host: Host,
    path: string,
    shapeOf: (head: JsonObject) => JournalShape,
    write = true,
  ): Promise<{ journal: JournalFile; head: JsonObject; left: DirtyBitmap }> {
    const file = await host.files.open(path, { write });
    try {
      if (write) {
        lock(file);
        // Who made it may have been killed before its name was durable.
        await host.files.syncDirectory(dirname(path));
      }
      const heads = [await readHead(file, 0), await readHead(file, HEAD_BYTES)].filter(
        (one) => one !== undefined,
      );
      const [newest] = heads.sort((a, b) => b.number - a.number);
      if (!newest) throw new BlockError('corrupt', `'${path}' is no journal of a job`);
      const { diskBytes, granularityBytes } = shapeOf(newest.head);
      const isSound =
        Number.isSafeInteger(diskBytes) &&
        diskBytes >= 0 &&
        diskBytes <= MAX_IMAGE_BYTES &&
        isPowerOfTwo(granularityBytes) &&
        granularityBytes >= MIN_GRANULE_BYTES &&
        granularityBytes <= MAX_GRANULE_BYTES;
      const needed = isSound ? BITMAP_OFFSET + Math.ceil(diskBytes / granularityBytes / 8) : Infinity;
      if (file.sizeBytes() < needed) throw new BlockError('corrupt', `The journal '${path}' is broken`);
      const left = new DirtyBitmap(diskBytes, granularityBytes);
      await readBits(file, left);
      return { journal: new JournalFile(file, newest.number), head: newest.head, left };
    } catch (error) {
      await file.close().catch(() => undefined);
      throw error;
    }
  }

  /** In place of the older head. Errors: limit, when it is too long. */
  async writeHead(head: JsonObject): Promise<void> {
    const text = Buffer.from(
      JSON.stringify(head, (_, value: unknown) => (typeof value === 'bigint' ? Number(value) : value)),
    );
    if (text.length > HEAD_BYTES - TEXT_OFFSET)
      throw new BlockError('limit', 'What the job is to do is too long for its journal');
    const bytes = Buffer.alloc(HEAD_BYTES);
    this.#number++;
    MAGIC.copy(bytes);
    bytes.writeUInt32LE(text.length, 12);
    bytes.writeUInt32LE(this.#number, 16);
    text.copy(bytes, TEXT_OFFSET);
    bytes.writeUInt32LE(crc32(bytes.subarray(12, TEXT_OFFSET + text.length)), 8);
    const used = alignUp(TEXT_OFFSET + text.length, SECTOR_BYTES);
    await this.#write((this.#number % 2) * HEAD_BYTES, bytes.subarray(0, used));
  }

  /** Whole sectors around the bits of a stretch of the disk. */
  async writeBits(left: DirtyBitmap, { offset, lengthBytes }: Stretch): Promise<void> {
    const perByte = left.granularityBytes * 8;
    const first = alignDown(Math.floor(offset / perByte), SECTOR_BYTES);
    const end = alignUp(Math.ceil((offset + lengthBytes) / perByte), SECTOR_BYTES);
    for (let at = first; at < end; at += MiB) {
      const bytes = Buffer.alloc(Math.min(MiB, end - at));
      left.serialise(at, bytes);
      await this.#write(BITMAP_OFFSET + at, bytes);
    }
  }

  async #write(position: number, bytes: Buffer): Promise<void> {
    const memory = IoVector.of(bytes);
    if (!this.#file.tryWrite(position, memory, 0, bytes.length))
      await this.#file.write(position, memory, 0, bytes.length);
  }

  flush(): Promise<void> {
    return this.#file.flush();
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

function lock(file: HostFile): void {
  const isFree = file.lockByteShared(LOCK_BYTE) && !file.isByteLockedByOther(LOCK_BYTE);
  if (!isFree) throw new BlockError('busy', `The journal '${file.path}' is in use by a job`);
}

async function readHead(
  file: HostFile,
  position: number,
): Promise<{ number: number; head: JsonObject } | undefined> {
  const bytes = Buffer.alloc(HEAD_BYTES);
  await file.read(position, IoVector.of(bytes), 0, HEAD_BYTES);
  const length = bytes.readUInt32LE(12);
  if (!bytes.subarray(0, 8).equals(MAGIC) || length > HEAD_BYTES - TEXT_OFFSET) return undefined;
  if (crc32(bytes.subarray(12, TEXT_OFFSET + length)) !== bytes.readUInt32LE(8)) return undefined;
  try {
    const head: unknown = JSON.parse(bytes.toString('utf8', TEXT_OFFSET, TEXT_OFFSET + length));
    if (typeof head !== 'object' || head === null || Array.isArray(head)) return undefined;
    return { number: bytes.readUInt32LE(16), head: head as JsonObject };
  } catch {
    return undefined;
  }
}

async function readBits(file: HostFile, left: DirtyBitmap): Promise<void> {
  assert(left.isClean, 'bits are read into an empty bitmap');
  for (let at = 0; at < left.serialisedBytes; at += MiB) {
    const bytes = Buffer.alloc(Math.min(MiB, left.serialisedBytes - at));
    await readBuffer(file, BITMAP_OFFSET + at, bytes);
    left.deserialise(at, bytes);
  }
}
