import { isPowerOfTwo } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import type { ChildIo } from '../../block/driver.js';
import { hasFlag } from '../../block/request.js';
import { readBytes, uint64 } from '../tables/read-bytes.js';

/**
 * The log of Linux's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst), all of it little-endian and
 * in sectors of the log: a superblock, and then entries, each with the data that it wrote.
 */

const MAGIC = 0x6a736677736872n;
const VERSION = 1n;
const SUPERBLOCK_BYTES = 28;
const ENTRY_BYTES = 32;
export const DEFAULT_SECTOR_BYTES = 512;
const MAX_SECTOR_BYTES = 8 * 1024 * 1024;

export const EntryFlag = { flush: 1, fua: 2, discard: 4, mark: 8 } as const;
const KNOWN_FLAGS = 15;

export interface Superblock {
  readonly entries: number;
  readonly sectorBytes: number;
}

export interface LogEntry {
  /** Where it was, in sectors of the log. */
  readonly sector: number;
  readonly sectors: number;
  readonly flags: number;
}

export function sectorBytesAreValid(bytes: number): boolean {
  return isPowerOfTwo(bytes) && bytes >= DEFAULT_SECTOR_BYTES && bytes <= MAX_SECTOR_BYTES;
}

export function superblockBytes({ entries, sectorBytes }: Superblock): Buffer {
  const bytes = Buffer.alloc(sectorBytes);
  bytes.writeBigUInt64LE(MAGIC, 0);
  bytes.writeBigUInt64LE(VERSION, 8);
  bytes.writeBigUInt64LE(BigInt(entries), 16);
  bytes.writeUInt32LE(sectorBytes, 24);
  return bytes;
}

/** One sector. */
export function entryBytes({ sector, sectors, flags }: LogEntry, sectorBytes: number): Buffer {
  const bytes = Buffer.alloc(sectorBytes);
  bytes.writeBigUInt64LE(BigInt(sector), 0);
  bytes.writeBigUInt64LE(BigInt(sectors), 8);
  bytes.writeBigUInt64LE(BigInt(flags), 16);
  return bytes;
}

/** Errors: invalid, in QEMU's words. */
export async function readSuperblock(log: ChildIo): Promise<Superblock> {
  const bytes = await readBytes(log, 0, SUPERBLOCK_BYTES);
  if (bytes.readBigUInt64LE(0) !== MAGIC) throw invalid('Invalid log superblock magic');
  const version = bytes.readBigUInt64LE(8);
  if (version !== VERSION) throw invalid(`Unsupported log version ${version}`);
  const sectorBytes = bytes.readUInt32LE(24);
  if (!sectorBytesAreValid(sectorBytes)) throw invalid(`Invalid log sector size ${sectorBytes}`);
  return { entries: uint64(bytes, 16), sectorBytes };
}

/** Where each entry's data is, in bytes of the log; the last answer is the log's end. Errors: invalid. */
export async function* readEntries(
  log: ChildIo,
  { entries, sectorBytes }: Superblock,
): AsyncGenerator<LogEntry & { dataOffset: number; end: number }> {
  let at = sectorBytes;
  for (let index = 0; index < entries; index++) {
    if (at + sectorBytes > log.lengthBytes)
      throw invalid(`Log entry ${index} lies behind the end of the log`);
    const bytes = await readBytes(log, at, ENTRY_BYTES);
    const [sector, sectors, flags] = [uint64(bytes, 0), uint64(bytes, 8), uint64(bytes, 16)];
    if (flags > KNOWN_FLAGS) throw invalid(`Invalid flags 0x${flags.toString(16)} in log entry ${index}`);
    const dataOffset = at + sectorBytes;
    const end = dataOffset + (hasFlag(flags, EntryFlag.discard) ? 0 : sectors * sectorBytes);
    if (end > log.lengthBytes) throw invalid(`The data of log entry ${index} lies behind the end of the log`);
    yield { sector, sectors, flags, dataOffset, end };
    at = end;
  }
}

/** Where the next entry goes. Errors: invalid. */
export async function endOfLog(log: ChildIo, superblock: Superblock): Promise<number> {
  let end = superblock.sectorBytes;
  for await (const entry of readEntries(log, superblock)) ({ end } = entry);
  return end;
}

export function invalid(text: string): BlockError {
  return new BlockError('invalid', text);
}
