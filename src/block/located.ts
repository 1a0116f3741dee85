import type { IoDriver } from './driver.js';
import type { Release } from './range-lock.js';

/** A stretch of a node's content, for a reader that can use more than bytes. */
export type Located =
  /** Plain bytes of a host file; release() when done with them. */
  | { kind: 'plain'; io: IoDriver; offset: number; lengthBytes: number; release: Release }
  | { kind: 'zero'; lengthBytes: number }
  /** Only read() can tell. */
  | { kind: 'other'; lengthBytes: number };
