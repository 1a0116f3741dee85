import { Flag, type RequestKind } from '../../base/io-request.js';
import { MAX_NBD_REQUEST_BYTES } from '../../base/limits.js';
import { MAX_DISCARD_SECTORS } from './block-config.js';
import { broken } from './codec.js';
import { BlockRequestType, BlockStatus, SECTOR_BYTES, WRITE_ZEROES_MAY_UNMAP } from './constants.js';
import type { BlockExportProperties } from './target.js';
import type { Chain } from './chain.js';

/** type, reserved, sector; a segment of a discard: sector, sectors, flags. */
export const HEADER_BYTES = 16;
const SEGMENT_BYTES = 16;

/** What a chain asks; used anew for each. */
export class BlockRequest {
  /** undefined: it is answered by `status` alone, or asks for the disk's name. */
  kind: RequestKind | undefined;
  status: number = BlockStatus.ok;
  wantsId = false;
  offset = 0;
  lengthBytes = 0;
  flags: number = Flag.none;

  /**
   * Reads the header of a chain, whose status byte is cut off. What the driver may not ask, it is answered; a chain that
   * is no request is an error. Errors: those of broken().
   */
  parse(chain: Chain, disk: BlockExportProperties): void {
    this.kind = undefined;
    this.status = BlockStatus.ok;
    this.wantsId = false;
    this.flags = Flag.none;
    this.offset = this.lengthBytes = 0;
    const type = chain.out.readUint32(0);
    switch (type) {
      case BlockRequestType.in:
        return this.#data('read', chain, chain.in.totalBytes, disk);
      case BlockRequestType.out:
        return this.#data('write', chain, chain.out.totalBytes - HEADER_BYTES, disk);
      case BlockRequestType.flush:
        this.kind = 'flush';
        return;
      case BlockRequestType.getId:
        this.wantsId = true;
        return;
      case BlockRequestType.discard:
      case BlockRequestType.writeZeroes:
        return this.#segment(chain, type === BlockRequestType.discard, disk);
      default:
        this.status = BlockStatus.unsupported;
    }
  }

  #data(kind: 'read' | 'write', chain: Chain, lengthBytes: number, disk: BlockExportProperties): void {
    const sector = chain.out.readUint64(8);
    const isWrite = kind === 'write';
    if ((isWrite && !disk.writable) || lengthBytes > MAX_NBD_REQUEST_BYTES) this.status = BlockStatus.ioError;
    else this.#range(kind, sector, lengthBytes, disk);
  }

  #range(kind: RequestKind, sector: number, lengthBytes: number, disk: BlockExportProperties): void {
    const offset = sector * SECTOR_BYTES;
    const isWhole = lengthBytes % SECTOR_BYTES === 0 && offset % disk.blockSizeBytes === 0;
    const end = Math.floor(disk.target.lengthBytes / SECTOR_BYTES) * SECTOR_BYTES;
    if (!isWhole || offset + lengthBytes > end) {
      this.status = BlockStatus.ioError;
      return;
    }
    this.kind = kind;
    this.offset = offset;
    this.lengthBytes = lengthBytes;
  }

  #segment(chain: Chain, isDiscard: boolean, disk: BlockExportProperties): void {
    const { out } = chain;
    if (!disk.writable || out.totalBytes !== HEADER_BYTES + SEGMENT_BYTES) {
      this.status = BlockStatus.ioError;
      return;
    }
    const sector = out.readUint64(HEADER_BYTES);
    const sectors = out.readUint32(HEADER_BYTES + 8);
    const flags = out.readUint32(HEADER_BYTES + 12);
    const mayUnmap = flags === WRITE_ZEROES_MAY_UNMAP;
    if (flags !== 0 && (isDiscard || !mayUnmap)) this.status = BlockStatus.unsupported;
    else if (sectors > MAX_DISCARD_SECTORS) this.status = BlockStatus.ioError;
    else this.#range(isDiscard ? 'discard' : 'zeroes', sector, sectors * SECTOR_BYTES, disk);
    if (mayUnmap) this.flags = Flag.mayUnmap;
  }
}

/** Errors: those of broken(). */
export function checkShape(chain: Chain): void {
  if (chain.out.totalBytes < HEADER_BYTES || chain.in.totalBytes < 1)
    throw broken('a request lacks its header, or the place for its status');
}
