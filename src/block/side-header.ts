import { createHash } from 'node:crypto';

/**
 * The first sector of a bitmap's side file. All numbers are big-endian:
 *
 *     0 magic   8 version (1)   12 flags (1: in use, 2: records)   16 id (8)   24 since, ms (8)   32 granularity (8)
 *    40 size of the disk (8)   48 size that it may have instead (8)   56 until when we may write, ms (8, a double)
 *    64 when the image was written last, ms (8, a double)   72 SHA-256 of the bitmap's name   104 SHA-256 of what the
 *    image is called by its host   480 SHA-256 of bytes 0 to 479.
 *
 * The bits follow from BITS_OFFSET on, one a granule, the lowest of a byte first.
 */
export interface SideHeader {
  readonly isInUse: boolean;
  readonly records: boolean;
  readonly id: string;
  readonly sinceMs: number;
  readonly granularityBytes: number;
  readonly sizeBytes: number;
  /** While the disk is being resized it has this size or the other. */
  readonly otherSizeBytes: number;
  /** While it is in use: whoever writes to the image later is somebody else. */
  readonly leaseUntilMs: number;
  /** While it is not in use. */
  readonly modifiedMs: number;
  readonly nameDigest: Buffer;
  readonly identityDigest: Buffer;
}

export const SIDE_HEADER_BYTES = 512;
export const BITS_OFFSET = 4096;
const MAGIC = 'LDSIDEBM';
const VERSION = 1;
const DIGEST_AT = 480;
const Flag = { inUse: 1, records: 2 } as const;

export function digestOf(text: string | Buffer): Buffer {
  return createHash('sha256').update(text).digest();
}

export function encodeSideHeader(header: SideHeader): Buffer {
  const bytes = Buffer.alloc(SIDE_HEADER_BYTES);
  bytes.write(MAGIC, 0, 'latin1');
  bytes.writeUInt32BE(VERSION, 8);
  bytes.writeUInt32BE((header.isInUse ? Flag.inUse : 0) + (header.records ? Flag.records : 0), 12);
  Buffer.from(header.id, 'hex').copy(bytes, 16);
  bytes.writeBigUInt64BE(BigInt(header.sinceMs), 24);
  bytes.writeBigUInt64BE(BigInt(header.granularityBytes), 32);
  bytes.writeBigUInt64BE(BigInt(header.sizeBytes), 40);
  bytes.writeBigUInt64BE(BigInt(header.otherSizeBytes), 48);
  bytes.writeDoubleBE(header.leaseUntilMs, 56);
  bytes.writeDoubleBE(header.modifiedMs, 64);
  header.nameDigest.copy(bytes, 72);
  header.identityDigest.copy(bytes, 104);
  digestOf(bytes.subarray(0, DIGEST_AT)).copy(bytes, DIGEST_AT);
  return bytes;
}

/** 'foreign': it is no side file. 'broken': it is one whose making or whose renewal a crash cut short, or damaged. */
export function decodeSideHeader(bytes: Buffer): SideHeader | 'foreign' | 'broken' {
  if (bytes.length < SIDE_HEADER_BYTES || bytes.toString('latin1', 0, 8) !== MAGIC) return 'foreign';
  if (!digestOf(bytes.subarray(0, DIGEST_AT)).subarray(0, 32).equals(bytes.subarray(DIGEST_AT, 512)))
    return 'broken';
  if (bytes.readUInt32BE(8) !== VERSION) return 'broken';
  const flags = bytes.readUInt32BE(12);
  const number = (at: number): number => Number(bytes.readBigUInt64BE(at));
  const header: SideHeader = {
    isInUse: flags % 2 === 1,
    records: Math.floor(flags / 2) % 2 === 1,
    id: bytes.toString('hex', 16, 24),
    sinceMs: number(24),
    granularityBytes: number(32),
    sizeBytes: number(40),
    otherSizeBytes: number(48),
    leaseUntilMs: bytes.readDoubleBE(56),
    modifiedMs: bytes.readDoubleBE(64),
    nameDigest: Buffer.from(bytes.subarray(72, 104)),
    identityDigest: Buffer.from(bytes.subarray(104, 136)),
  };
  const { sinceMs, granularityBytes, sizeBytes, otherSizeBytes } = header;
  return [sinceMs, granularityBytes, sizeBytes, otherSizeBytes].every(Number.isSafeInteger)
    ? header
    : 'broken';
}
