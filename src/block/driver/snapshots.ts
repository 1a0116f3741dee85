import type { Json } from './options.js';

/** What an internal snapshot is to be called, and what it says of its moment. */
export interface NewSnapshot {
  name: string;
  /** Seconds since 1970, and nanoseconds. */
  dateSec: number;
  dateNsec: number;
  /** Time of the guest. */
  clockNs: bigint;
  /** Instructions that the guest had executed; -1: not counted. */
  icount: bigint;
  /** The state of the machine. */
  vmState?: Uint8Array;
}

/** An internal snapshot in the terms of queries. */
export interface InternalSnapshot {
  readonly id: string;
  readonly name: string;
  readonly vmStateBytes: number;
  /** Of the disk as it was. */
  readonly diskBytes: number;
  /** QAPI's SnapshotInfo. */
  readonly info: { [key: string]: Json };
}

/**
 * Snapshots inside an image. What changes them is durable on return, and nobody uses the node meanwhile; errors leave the
 * image as it was. `id` is one of the list.
 */
export interface InternalSnapshots {
  /** In the order of the image. */
  readonly list: readonly InternalSnapshot[];
  take(snapshot: NewSnapshot): Promise<void>;
  /** The disk is what it was, its size too. */
  goTo(id: string): Promise<void>;
  delete(id: string): Promise<void>;
  /** From now on the node, which is only read, shows the disk as it was then. */
  show(id: string): Promise<void>;
  /** A part of the machine's state, which lies inside it. */
  readVmState(id: string, offset: number, buffer: Uint8Array): Promise<void>;
  /** A part of the state that lies beside the disk as it is now, which the next snapshot does not keep; zeroes where there is none. */
  readPresentVmState(offset: number, buffer: Uint8Array): Promise<void>;
  /** The same; durable with the next flush. */
  writePresentVmState(offset: number, bytes: Uint8Array): Promise<void>;
}
