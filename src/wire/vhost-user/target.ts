import type { CancelSignal } from '../../base/cancel-signal.js';
import type { IoRequest } from '../../base/io-request.js';

/**
 * The disk behind an export; a block backend is one. Ranges are already checked against lengthBytes. All throw or reject
 * with BlockError. A request is the client's, who waits for its answer; its memory is the guest's, who may change it.
 */
export interface BlockTarget {
  readonly lengthBytes: number;
  /** Every write is durable when it completes; the driver may turn that on and off. */
  writethrough: boolean;
  /** Does a read or write now, if no wait is needed; false: nothing was done, and run() is to be used. */
  tryRun(request: IoRequest): boolean;
  run(request: IoRequest): Promise<void>;
  /**
   * Resolves when nothing that waits goes on by itself: it may be given up, and asked for again. Absent: it always does.
   * Errors: ECANCELED.
   */
  whenHeld?(signal: CancelSignal): Promise<void>;
}

/** Changes to a disk whose clients are gone, and which are still under way: see LostChanges. */
export interface LostOfDisk {
  add(change: { offset: number; lengthBytes: number; over: Promise<void> }): void;
  overlapping(offset: number, lengthBytes: number): Promise<unknown> | undefined;
}

/** What the configuration says of a disk beyond its size; what is left out is as QEMU's export has it. */
export interface BlockShape {
  readonly physicalBlockBytes?: number;
  readonly minIoBytes?: number;
  readonly optimalIoBytes?: number;
  /** Whether the driver may discard, write zeroes without data, and turn the write cache on and off. */
  readonly hasDiscard?: boolean;
  readonly hasWriteZeroes?: boolean;
  readonly hasCacheSwitch?: boolean;
}

export interface BlockExportProperties {
  readonly target: BlockTarget;
  readonly writable: boolean;
  readonly blockSizeBytes: number;
  readonly queueCount: number;
  /** What GET_ID answers. */
  readonly serial: string;
  readonly shape?: BlockShape;
  readonly lost: LostOfDisk;
}
