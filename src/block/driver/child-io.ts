import type { ByteRanges } from '../../base/byte-ranges.js';
import type { ChainStatus } from '../chain-status.js';
import type { FrozenChain } from '../frozen-chain.js';
import type { Located } from '../located.js';
import type { BlockStatus, IoRequest } from '../request.js';
import type { SnapshotAccess } from '../snapshot-access.js';
import type { DriverInfo } from './image.js';

/**
 * A child as its parent's driver sees it: the I/O facade of the child node through this edge. Ranges may be
 * unaligned for the child (the facade aligns them) but must lie inside it, except that writes through an edge with
 * resize permission may extend a growable child, and reads past the end give zeroes.
 *
 * try* answers true when done now, false when the promise form must be used instead (nothing that matters was
 * done). Both throw BlockError.
 */
export interface ChildIo {
  readonly lengthBytes: number;
  readonly isWritable: boolean;
  /** Requests of the parent's own. */
  tryRead(offset: number, buffer: Uint8Array): boolean;
  read(offset: number, buffer: Uint8Array): Promise<void>;
  tryWrite(offset: number, buffer: Uint8Array, flags: number): boolean;
  write(offset: number, buffer: Uint8Array, flags: number): Promise<void>;
  /** Hands a request on: its part [from, from + lengthBytes) is at `offset` of the child. */
  tryReadPart(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean;
  readPart(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void>;
  tryWritePart(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean;
  writePart(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void>;
  writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void>;
  discard(offset: number, lengthBytes: number): Promise<void>;
  flush(): Promise<void>;
  /** It ends before something that its parent has in it, which reads as zeroes: users hear of it, once. */
  tellCutOff(): void;
  /** See DriverInstance. */
  takeDoubtful(): ByteRanges;
  /** For offload: where the first stretch at `offset` has its bytes. `wanted`: see MappedStatus. */
  locate(offset: number, lengthBytes: number, wanted?: () => void): Promise<Located>;
  /** Bytes that it takes on its host; undefined where that is not known. */
  allocatedBytes(): number | undefined;
  /** Status of the child's own layer. */
  status(offset: number, lengthBytes: number): Promise<BlockStatus>;
  /** The same through the child's whole chain. Errors: those of reading tables. */
  chainStatus(offset: number, lengthBytes: number): ChainStatus | Promise<ChainStatus>;
  /** What the child held at some moment, if it keeps that. */
  readonly snapshotAccess: SnapshotAccess | undefined;
  /**
   * What of the range is in layers below the first that is no filter, as far down as `last`, is copied into that one;
   * what a guest writes meanwhile stays. Errors: those of reading and writing.
   */
  copyOnRead(offset: number, lengthBytes: number, last?: Pick<FrozenChain, 'bottom'>): Promise<void>;
  truncate(lengthBytes: number): Promise<void>;
  /**
   * Sees to it that writes to the range cannot run out of space; what it reads as stays. Nobody writes there
   * meanwhile. A storage that cannot promise does nothing. Errors: no-space, limit.
   */
  allocate(offset: number, lengthBytes: number): Promise<void>;
  tryAllocate(offset: number, lengthBytes: number): boolean;
  /** Makes a growable child at least that long, without space of its own. Errors: no-space where it cannot grow. */
  extend(lengthBytes: number): Promise<void>;
  tryExtend(lengthBytes: number): boolean;
  /** See DriverInstance. */
  readonly hasSpaceAhead?: boolean;
  /** Nothing makes it longer: a device, a window of a file, an export. */
  readonly hasFixedLength?: boolean;
  /** What its driver says of it. */
  driverInfo(): DriverInfo;
  /** Tells a blkdebug below of a named event; a promise only when a rule or breakpoint makes the caller wait. */
  announce(event: string): Promise<void> | undefined;
  /** There is one: no step goes past it. */
  readonly isListening: boolean;
  /** Of writes with Flag.compressed: whether the child takes them, in what units, and who it is. */
  readonly compression: { isPossible: boolean; clusterBytes: number; driverName: string };
  /** Starts writeback early; a hint. */
  startWriteback(offset: number, lengthBytes: number): void;
}
