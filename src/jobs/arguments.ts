import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { Node } from '../block/node.js';
import type { ErrorPolicy } from './error-policy.js';

/** What every block job takes; names as in QMP. */
export interface CommonArguments {
  jobId: string;
  /** Bytes per second; 0: no limit. */
  speed?: number;
  autoFinalize?: boolean;
  autoDismiss?: boolean;
  /** Names the job's filter node, which is then no longer hidden. */
  filterNodeName?: string;
  /** What follows an error of a request that reads the source, and of one that writes; default: report. */
  onReadError?: ErrorPolicy;
  onWriteError?: ErrorPolicy;
}

export interface StreamArguments extends CommonArguments {
  /** The node to be filled. */
  node: Node;
  /** Its new backing file; neither this nor bottom: the whole chain is pulled up. */
  base?: Node;
  /** The lowest node whose data is pulled up. */
  bottom?: Node;
  /** Written into the header in place of the base's filename. */
  backingFile?: string;
}

export interface CommitArguments extends CommonArguments {
  /** The root of the chain. */
  device: Node;
  top: Node;
  base: Node;
  backingFile?: string;
}

export interface MirrorArguments extends CommonArguments {
  device: Node;
  target: Node;
  sync: 'full' | 'top' | 'none';
  /** A power of two, 512 bytes to 64 MiB. */
  granularity?: number;
  /** Most bytes in flight. */
  bufSize?: number;
  copyMode?: 'background' | 'write-blocking';
  /** The node that the target replaces at the end, in place of the device. */
  replaces?: Node;
  /** A fresh image known to read as zeroes. */
  targetIsNew: boolean;
  /**
   * Backing file of the target after the pivot: 'leave' as it is (default); 'source-chain' the source's own (for
   * sync=none the source itself); 'open' what the target's header names. The latter two are for a target that was
   * opened with `backing: null`.
   */
  targetBacking?: 'leave' | 'source-chain' | 'open';
  /** Zeroes may deallocate in the target; default true. */
  unmap?: boolean;
}

export interface BackupArguments extends CommonArguments {
  device: Node;
  target: Node;
  sync: 'full' | 'top' | 'none' | 'incremental' | 'bitmap';
  bitmap?: DirtyBitmap;
  bitmapMode?: 'on-success' | 'never' | 'always';
  compress?: boolean;
}
