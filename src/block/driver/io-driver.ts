import type { HostFile } from '../../host/host.js';
import type { BlockStatus, IoRequest } from '../request.js';

/**
 * Requests are aligned, in range, and never overlap a request that the facade was told to serialise. Of reads and writes,
 * the part [from, from + lengthBytes) of the request's memory is to be moved; it may lie in several pieces, and be
 * memory that a guest changes at any time: see IoRequest. It is the driver's until its promise settles, no longer.
 */
export interface IoDriver {
  /** A file of the host that has its bytes, at the same offsets, and may answer a read: see IoRequest.taker. */
  readonly file?: HostFile;
  tryRead?(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean;
  read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void>;
  tryWrite?(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean;
  write(request: IoRequest, from: number, lengthBytes: number, offset: number, flags: number): Promise<void>;
  /** A write() with Flag.fua is durable by itself. Absent or false: the facade flushes the node after it. */
  readonly honoursFua?: boolean;
  /** kind 'unsupported' makes the facade write zeroes (unless Flag.noFallback). */
  writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void>;
  /** A hint: a driver that cannot discard just returns. */
  discard(offset: number, lengthBytes: number): Promise<void>;
  status(offset: number, lengthBytes: number): Promise<BlockStatus>;
  /** See ChildIo. Absent: it neither promises space nor grows, and finds out at the write. */
  allocate?(offset: number, lengthBytes: number): Promise<void>;
  tryAllocate?(offset: number, lengthBytes: number): boolean;
  extend?(lengthBytes: number): Promise<void>;
  tryExtend?(lengthBytes: number): boolean;
  startWriteback?(offset: number, lengthBytes: number): void;
  /** What copyFrom() waits for is a peer, who may take as long as he likes. */
  readonly copiesToPeer?: boolean;
  /** Of a peer, whose status is dear: another one after each loss, when what it said before may be so no more. */
  readonly connection?: number;
  /**
   * Offload: takes plain bytes of a file of the host, maybe another node's, without reading them: by copy_file_range, or
   * from the page cache into a socket. Answers how much it took. Until then nobody uses their place for anything else, or
   * whoever lets them sees to the copy; what is written there meanwhile may be taken in their place.
   */
  copyFrom?(source: IoDriver, sourceOffset: number, offset: number, lengthBytes: number): Promise<number>;
}
