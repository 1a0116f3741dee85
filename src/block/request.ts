import { missing } from '../base/assert.js';
import type { ChildIo } from './driver.js';

export { Flag, IoRequest, RequestPool, type RequestKind, type RequestSource } from '../base/io-request.js';

export function hasFlag(flags: number, flag: number): boolean {
  return (flags & flag) !== 0;
}

export function withoutFlag(flags: number, flag: number): number {
  return flags & ~flag;
}

/**
 * What a stretch of a node's address space holds. All bytes of [offset, offset + lengthBytes) are alike in every
 * member.
 */
export interface BlockStatus {
  /** From the offset asked; at least 1 within the node. */
  lengthBytes: number;
  /** This node decides the content; false: its backing file does (or nothing, which reads as zeroes). */
  allocated: boolean;
  /** Reads as zeroes, for certain. */
  zero: boolean;
  /** Has space for bytes: false for holes. With `zero`: a cluster whose bytes its file does not have yet. */
  data: boolean;
  /** Where the bytes are, when they are plain bytes of a child: offset in `hostChild`; without one, in the node itself. */
  hostOffset?: number;
  hostChild?: ChildIo;
}

/** How a mapping driver (raw, qcow2) maps a stretch. */
export interface Mapping {
  /** data: in `child`. zero: reads as zeroes. backing: not in this image. */
  kind: 'data' | 'zero' | 'backing';
  lengthBytes: number;
  /** Who has the bytes: for data that is not compressed; for zero only where it keeps space for them. */
  child: ChildIo | undefined;
  /** Offset in it, else -1. */
  hostOffset: number;
  /** The child's bytes are the disk's. Else (compressed, encrypted) only the driver can read them: readSpecial. */
  plain: boolean;
  /** Data that may be overwritten in place: it is not shared with a snapshot. */
  writable: boolean;
}

export function newMapping(): Mapping {
  return { kind: 'zero', lengthBytes: 0, child: undefined, hostOffset: -1, plain: false, writable: false };
}

/** The child that has the bytes of data, which is plain or encrypted. */
export function placeOf(mapping: Mapping): ChildIo {
  return mapping.child ?? missing('child of mapped data');
}
