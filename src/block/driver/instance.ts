import type { ByteRanges } from '../../base/byte-ranges.js';
import type { PassedFile, PassedMemory } from '../../host/passing.js';
import type { ChangeLog } from '../change-log.js';
import type { SnapshotAccess } from '../snapshot-access.js';
import type {
  ChangingChildren,
  PermissionSet,
  PreparedChange,
  PreparedReopening,
  Reopening,
} from './changes.js';
import type {
  BitmapStore,
  CompactOptions,
  DiscardCounts,
  DriverInfo,
  FileUse,
  ImageAmendment,
  ImageCheck,
  ImageCompaction,
  RepairMode,
} from './image.js';
import type { IoDriver } from './io-driver.js';
import type { MapDriver } from './map-driver.js';
import type { Preallocated } from './new-image.js';
import type { InternalSnapshots } from './snapshots.js';

/**
 * The state of one open node. Calls are unchecked by the driver: the facade (block/node) has verified ranges,
 * flags, permissions and alignment to requestAlignmentBytes.
 */
export interface DriverInstance {
  /** Virtual size. */
  readonly lengthBytes: number;
  /** Smallest unit of I/O; the facade pads and serialises what is smaller. */
  readonly requestAlignmentBytes: number;
  /** Data path of protocol drivers and filters. */
  readonly io?: IoDriver;
  /** Data path of drivers that only map (raw, qcow2): generic code reads, writes and copies. */
  readonly map?: MapDriver;
  /** qcow2's header: what to open as `backing` unless the options say otherwise. */
  readonly backing?: { filename: string; format?: string } | undefined;
  /** Absent: it keeps none. */
  readonly bitmaps?: BitmapStore;
  /** What every change of the node goes through, since a bitmap of it is durable. */
  readonly changeLog?: ChangeLog | undefined;

  /** Makes everything written before the call durable (child included). */
  flush(): Promise<void>;
  /** 'grow' only where supported; kind 'unsupported' else. */
  truncate?(lengthBytes: number): Promise<void>;
  /**
   * Takes space for [from, end), which truncate has just added: what it reads as stays. Durable on return, formats without
   * tables excepted. Nobody uses the range meanwhile; after an error some of it may have been taken. Absent: it cannot.
   */
  preallocate?(from: number, end: number, mode: Preallocated): Promise<void>;
  /** Rewrites the backing reference in the image; durable on return. */
  changeBacking?(filename: string | undefined, format: string | undefined): Promise<void>;
  /**
   * Lets go of all that the image holds above its backing file, which shows it from then on; durable on return. Nobody
   * uses the node meanwhile. Absent: it cannot.
   */
  makeEmpty?(): Promise<void>;
  /** Other options of the image, which nobody uses meanwhile; durable on return. Absent: the format has none to change. */
  amend?(changes: ImageAmendment): Promise<void>;
  /** The node turns read-only or read-write (children are handled by the graph). */
  prepareReadOnly?(readOnly: boolean): Promise<PreparedChange>;
  /**
   * Its options change: generic ones, and of its own those that the description calls mutable. No request is in flight.
   * What it answers is the old until commit. Absent: it cannot be reopened.
   */
  prepareReopen?(reopening: Reopening): Promise<PreparedReopening>;
  /**
   * New cumulative permissions, none while the node is inactive; file takes its OFD locks here. `isActivation`: the
   * image becomes ours with them, and is what lies at its place by now.
   */
  preparePermissions?(permissions: PermissionSet, isActivation: boolean): Promise<PreparedChange>;
  /**
   * A drained section begins: no request comes until drainEnd. Ends what it does by itself; a drained section waits for
   * the promise. Called once for sections that overlap, and always paired.
   */
  drainBegin?(): Promise<void> | void;
  drainEnd?(): void;
  /**
   * The image becomes ours, after those below it have prepared, with the locks: another process may have changed all
   * of it, so it is opened anew, for writing if it may be written then. Its answers are the old ones until commit.
   */
  prepareActivation?(mayWrite: boolean): Promise<PreparedChange>;
  /** The image goes to another process, before those below it: nothing may be cached when this resolves. Else: flush. */
  prepareInactivation?(): Promise<PreparedChange>;
  /**
   * Nobody wants the node any more: what is in flight ends now, with an error, and so does every later request; only
   * close() is called. What cannot be taken back (a call that the kernel holds) is left to itself, with its memory.
   */
  cancelInFlight?(): void;
  /**
   * What was written, and is taken for kept by a server that was lost and came back: since it was asked last, in the node's
   * offsets. Also what is lost, so that reads and flushes fail, or may be, while the server is away: each time, until it is
   * written. Who still has what was written there writes it again. Absent: there is never any, or where is not known.
   */
  takeDoubtful?(): ByteRanges;
  /** What lies behind all that was written has space already: where none is wanted, it has to be given back. */
  readonly hasSpaceAhead?: boolean;
  /** Of files: the open file with its locks, for a process that takes the node over. Absent: that one opens it anew. */
  readonly passed?: Omit<PassedFile, 'fd'> & { readonly fd: number | undefined };
  /** What another process needs to go on with the node besides its options and images. Absent: nothing. */
  readonly memory?: PassedMemory;
  /** It does something of its own, of no request, with what it has in memory. */
  readonly isWorking?: boolean;
  /** What was to be durable is lost: flushes fail, until it is written anew where that helps. */
  readonly hasLostWrites?: boolean;
  /** Of one that was opened by what another process had passed: that one has it no more. */
  own?(): void;
  /** Of connections: this one is given up, what is in flight with it too. */
  yank?(): void;
  info(): DriverInfo;
  /**
   * Checks the image, and repairs it where the node may be written; durable on return. Nobody uses the node meanwhile.
   * Each finding is told as it is made. Absent: the format has no checks.
   */
  check?(repair: RepairMode, say: (line: string) => void): Promise<ImageCheck>;
  /** How the image's file is used; also while it is. Absent: the format has nothing to tell of it. */
  fileUse?(): Promise<FileUse>;
  /**
   * Makes the image's file as short as what is in it allows, whose content stays; durable on return. The image was opened
   * to be checked, and nobody uses the node meanwhile. Absent: the format cannot.
   */
  compact?(options: CompactOptions): Promise<ImageCompaction>;
  /** Absent: the format has none. */
  readonly snapshots?: InternalSnapshots;
  /** Of files: what has become of discards. */
  readonly discards?: DiscardCounts;
  /** Bytes allocated on the host, for actual-size; protocol drivers only. */
  allocatedBytes?(): number;
  /** See ChildIo. Absent: as the child that holds its bytes, else false. */
  readonly hasFixedLength?: boolean;
  /** True when new space reads as zeroes without being written (a fresh image without backing). */
  readonly readsZeroWhenNew?: boolean;
  /** writeZeroes is cheap and, with mayUnmap, deallocates. */
  readonly canWriteZeroes?: boolean;
  /** What it held at some moment, where it keeps that. */
  readonly snapshotAccess?: SnapshotAccess;
  /** Absent: its children stay. */
  readonly changingChildren?: ChangingChildren;
  /** Hears block-layer events by name (blkdebug only). */
  announce?(event: string): Promise<void> | undefined;
  close(): Promise<void>;
}
