import type { DriverOptions } from '../../schema/blockdev-options.js';
import type { ChildIo } from './child-io.js';
import type { Settings } from './options.js';

/** Two-step change: prepare may await and fail; then exactly one of commit (must not fail, no I/O) or abort. */
export interface PreparedChange {
  commit(): void;
  abort(): void;
}

/** What a node is to be from now on (block/reopen). */
export interface Reopening<O extends DriverOptions = DriverOptions> {
  readonly settings: Settings<O>;
  readonly readOnly: boolean;
  /** Not read-only, and the image is ours. */
  readonly mayWrite: boolean;
  /** A child in the place of the one of that role; it may be read only, before commit. */
  newChild(role: string): ChildIo | undefined;
}

export interface PreparedReopening extends PreparedChange {
  /** The virtual size that the node will have, where it may be another. */
  readonly lengthBytes?: number;
}

export interface PermissionSet {
  /** Sum of Permission bits that the users of this node hold together. */
  perm: number;
  /** Bits that all users let others have. */
  shared: number;
}

/** Children that come and go while a node is open (x-blockdev-change). No request is in flight meanwhile. */
export interface ChangingChildren {
  /** The role of one that comes. Errors: in QEMU's words. */
  roleOfNext(child: Pick<ChildIo, 'lengthBytes'>): string;
  added(role: string): void;
  /** Errors: it may not go. */
  checkRemoval(role: string): void;
  removed(role: string): void;
}
