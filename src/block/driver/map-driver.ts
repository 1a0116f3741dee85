import type { Mapping } from '../request.js';
import type { ChildIo } from './child-io.js';

/**
 * A driver that answers where things are and lets generic code move the bytes. The generic code holds a range lock
 * on the guest range of every asynchronous request: shared for reads and overwrites in place, exclusive (rounded
 * out to clusterBytes) around reserve..link/abort, unmap and discard. So map, reserve and unmap never race for one
 * guest cluster, and no host cluster is freed while I/O to it is in flight.
 */
export interface MapDriver {
  /** Unit of host space and of range locks; 1 for raw, which has no tables. */
  readonly clusterBytes: number;
  /** What has a status of its own, and what reservations, zeroes and discards are in: a cluster, or a part of one. */
  readonly unitBytes: number;
  /** All of it is plain bytes of one child, each at one place for ever. Absent: what is freed there may be used anew. */
  readonly isFixed?: boolean;
  /** The child that hears of block-layer events. */
  readonly events: ChildIo;
  /** Fills all of `out` for a stretch that begins at offset, at most lengthBytes long; false: tables are not in memory. */
  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean;
  map(offset: number, lengthBytes: number, out: Mapping): Promise<void>;
  /**
   * Tells what map() tells of the range, but for what is in the backing file, from the beginning to the end, and keeps no
   * tables in memory for it. False: not all of it can be told without a look at each entry. The range is not held: it may be
   * changed meanwhile, and then what was told is not used. Absent: map() is asked.
   */
  mapAll?(
    offset: number,
    lengthBytes: number,
    tell: (offset: number, mapping: Mapping) => void,
  ): Promise<boolean>;
  /** What has data had its place from the start: whether there is any, the file says. Absent: no. */
  readonly isPreallocated?: boolean;
  /** All of the mapping is on stable storage: data that is overwritten in place, durably, needs no flush. Absent: not known. */
  readonly isMappingDurable?: boolean;
  /** Reads data that is not plain, from `offset` on, as it was mapped; absent where all is plain. Its range is held. */
  readSpecial?(mapping: Mapping, offset: number, buffer: Uint8Array): Promise<void>;
  /**
   * Puts the guest's bytes of `offset` at hostOffset of the child: into a reservation that is not plain, or over writable
   * data that is not. Its range is held alone. Absent where there is neither.
   */
  writeSpecial?(child: ChildIo, hostOffset: number, offset: number, buffer: Uint8Array): Promise<void>;
  /**
   * Compresses the guest's bytes of a whole cluster that holds no data, and publishes it; its range is held alone. False:
   * it would not become smaller, and nothing was done. Absent where nothing is compressed.
   */
  writeCompressed?(offset: number, bytes: Uint8Array): Promise<boolean>;
  /** Images of the format may compress, and this one does not: what is to be compressed is written as it is. */
  readonly takesUncompressed?: boolean;
  /**
   * Clusters for a write to [offset, offset + lengthBytes) that map() does not call writable data. Covers at
   * least the first byte; may cover less than asked. Nothing is visible until link().
   */
  reserve(offset: number, lengthBytes: number): Promise<Reservation>;
  /** The same at once; undefined: use reserve. */
  tryReserve?(offset: number, lengthBytes: number): Reservation | undefined;
  /**
   * Makes whole units read as zeroes without writing data ([offset, +lengthBytes) is aligned to unitBytes, except
   * that it may end at the image's end). Flags: mayUnmap frees the clusters; noFallback is for whom it writes to. kind
   * 'unsupported': write zeroes instead.
   */
  zeroClusters(offset: number, lengthBytes: number, flags: number): Promise<void>;
  /** Frees whole units (aligned as above); afterwards they must not show older data of the backing file. */
  discardClusters(offset: number, lengthBytes: number): Promise<void>;
}

/** Clusters that hold no guest data yet. The caller fills the host range, then links or aborts. */
export interface Reservation {
  /** Guest range, aligned to unitBytes; its end may reach past the end of the image. */
  readonly offset: number;
  readonly lengthBytes: number;
  /** Contiguous range in it, lengthBytes long. */
  readonly child: ChildIo;
  readonly hostOffset: number;
  /** It takes the guest's bytes as they are; else writeSpecial puts them there. */
  readonly plain: boolean;
  /** The host range reads as zeroes as it is: what is not written need not be zeroed. Only where it is plain. */
  readonly readsZero: boolean;
  /**
   * What the range held before, for the copy-on-write of its unwritten head and tail: 'zero' all zeroes,
   * 'mixed' ask map() (still answers the old mapping until link).
   */
  readonly before: 'zero' | 'mixed';
  /** Publishes the clusters in the (in-memory) tables. Asserts that the old mapping is unchanged. */
  link(): void;
  /** Gives the clusters back. */
  abort(): void;
}
