import { SECTOR_BYTES } from './constants.js';
import type { BlockShape } from './target.js';

/** struct virtio_blk_config (virtio 1.2, 5.2.4) up to the limits of write zeroes. */
export const CONFIG_BYTES = 60;
export const WCE_OFFSET = 32;
const Offset = {
  capacity: 0,
  segMax: 12,
  blockSize: 20,
  physicalBlock: 24,
  minIo: 26,
  optimalIo: 28,
  queues: 34,
  maxDiscardSectors: 36,
  maxDiscardSegments: 40,
  discardAlignment: 44,
  maxZeroSectors: 48,
  maxZeroSegments: 52,
} as const;

/** As QEMU's export has them: buffers of a request, and sectors of a discard or write zeroes, which are of one segment. */
const MAX_SEGMENTS = 126;
export const MAX_DISCARD_SECTORS = 32768;

export interface BlockConfig {
  shape: BlockShape;
  lengthBytes: number;
  blockSizeBytes: number;
  queueCount: number;
  /** Writes are durable only after a flush. */
  hasWriteCache: boolean;
}

export function encodeBlockConfig(config: BlockConfig): Buffer {
  const bytes = Buffer.alloc(CONFIG_BYTES);
  const { blockSizeBytes, shape } = config;
  const inBlocks = (lengthBytes = blockSizeBytes): number =>
    Math.max(1, Math.floor(lengthBytes / blockSizeBytes));
  bytes.writeBigUInt64LE(BigInt(Math.floor(config.lengthBytes / SECTOR_BYTES)), Offset.capacity);
  bytes.writeUInt32LE(MAX_SEGMENTS, Offset.segMax);
  bytes.writeUInt32LE(blockSizeBytes, Offset.blockSize);
  bytes[Offset.physicalBlock] = Math.floor(Math.log2(inBlocks(shape.physicalBlockBytes)));
  bytes.writeUInt16LE(Math.min(inBlocks(shape.minIoBytes), 0xffff), Offset.minIo);
  bytes.writeUInt32LE(inBlocks(shape.optimalIoBytes), Offset.optimalIo);
  bytes[WCE_OFFSET] = config.hasWriteCache ? 1 : 0;
  bytes.writeUInt16LE(config.queueCount, Offset.queues);
  bytes.writeUInt32LE(MAX_DISCARD_SECTORS, Offset.maxDiscardSectors);
  bytes.writeUInt32LE(1, Offset.maxDiscardSegments);
  bytes.writeUInt32LE(Math.floor(blockSizeBytes / SECTOR_BYTES), Offset.discardAlignment);
  bytes.writeUInt32LE(MAX_DISCARD_SECTORS, Offset.maxZeroSectors);
  bytes.writeUInt32LE(1, Offset.maxZeroSegments);
  return bytes;
}
