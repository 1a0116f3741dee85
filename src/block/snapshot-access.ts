import type { BlockStatus, IoRequest } from './request.js';

/** What a node held at some moment, beside what it holds now. Requests lie within it. */
export interface SnapshotAccess {
  readonly lengthBytes: number;
  /** Errors: permission (EACCES) where the moment is not held, or is lost. */
  read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void>;
  /** Of a first stretch. Errors: the same. */
  status(offset: number, lengthBytes: number): Promise<BlockStatus>;
  /** The moment is not needed there any more: what was kept for it goes. */
  discard(offset: number, lengthBytes: number): Promise<void>;
}
