import type { IoRequest } from '../../base/io-request.js';
import type { Extent, HeaderStyle } from './codec.js';
import { AllocationState, BASE_ALLOCATION, TransmissionFlag } from './constants.js';

/** What a stretch holds, as a reader of the export sees it. */
export interface TargetStatus {
  /** From the offset asked; at least 1. */
  lengthBytes: number;
  /** Reads as zeroes, for certain. */
  zero: boolean;
  /** Takes space of its own. */
  data: boolean;
}

/**
 * The disk behind an export; a block backend is one. Ranges are already checked against lengthBytes. All throw or reject
 * with BlockError. A request is the client's, who waits for its answer; see IoRequest.
 */
export interface NbdTarget {
  readonly lengthBytes: number;
  /**
   * What it shows are bytes of one file, each at one place for ever: a read may name it instead of copying them (see
   * IoRequest.taker). Absent: no.
   */
  readonly isPlainFile?: boolean;
  /** Does a read or write now, if no wait is needed; false: nothing was done, and run() is to be used. */
  tryRun(request: IoRequest): boolean;
  /** May fail with ECANCELED when the request's signal is cancelled before it has begun: the client is gone. */
  run(request: IoRequest): Promise<void>;
  status(offset: number, lengthBytes: number): Promise<TargetStatus>;
}

/** What a metadata context says of the disk. */
export interface MetaContext {
  readonly name: string;
  /** The stretch that begins at offset; not longer than asked. */
  extentAt(offset: number, lengthBytes: number): Extent | Promise<Extent>;
}

export interface NbdExport {
  readonly name: string;
  readonly description?: string;
  readonly target: NbdTarget;
  readonly readOnly: boolean;
  /** Several connections see one another's completed writes, and a flush on one covers all. */
  readonly multiConn: boolean;
  /** Contexts beside base:allocation, in the order in which they are told. */
  readonly contexts?: readonly MetaContext[];
}

/** All contexts of an export, by their ids. */
export function contextsOf({ target, contexts = [] }: NbdExport): MetaContext[] {
  return [{ name: BASE_ALLOCATION, extentAt: allocationOf(target) }, ...contexts];
}

function allocationOf(target: NbdTarget): MetaContext['extentAt'] {
  return async (offset, lengthBytes) => {
    const { zero, data, lengthBytes: known } = await target.status(offset, lengthBytes);
    const state = (data ? 0 : AllocationState.hole) | (zero ? AllocationState.zero : 0);
    return { lengthBytes: Math.min(known, lengthBytes), state };
  };
}

/** How the handshake finds exports; the name '' is no alias, only an export of that name. */
export interface NbdExportLookup {
  find(name: string): NbdExport | undefined;
  list(): Iterable<NbdExport>;
}

/** What the export offers (the same set as QEMU's server; some only once their headers are agreed). */
export function transmissionFlags(entry: NbdExport, style: HeaderStyle): number {
  const flag = TransmissionFlag;
  let flags = flag.hasFlags | flag.sendFlush | flag.sendFua | flag.sendCache;
  if (entry.readOnly) flags |= flag.readOnly;
  else flags |= flag.sendTrim | flag.sendWriteZeroes | flag.sendFastZero;
  if (entry.multiConn) flags |= flag.canMultiConn;
  if (style !== 'simple') flags |= flag.sendDf;
  if (style === 'extended') flags |= flag.blockStatusPayload;
  return flags;
}
