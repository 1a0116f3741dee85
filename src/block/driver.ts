import type { Host } from '../host/host.js';
import type { DriverOptions, GenericOptions } from '../schema/blockdev-options.js';
import type { ToolOption } from '../schema/create-options.js';
import type { LuksAmendment } from '../schema/encryption-options.js';
import type { FlatOptions } from '../schema/flat.js';
import type { FilledOf, Members } from '../schema/types.js';
import type { DirtyBitmap } from './dirty-bitmap.js';
import type { FrozenChain } from './frozen-chain.js';
import type { Located } from './located.js';
import type { NodeModes } from './modes.js';
import type { ObjectRegistry } from './objects/object-registry.js';
import type { ChainStatus } from './chain-status.js';
import type { BlockStatus, IoRequest, Mapping } from './request.js';
import type { SnapshotAccess } from './snapshot-access.js';

/** Plain JSON values; of options, as QMP or a library caller gives them. */
export type Json = null | boolean | number | bigint | string | Json[] | { [key: string]: Json };
export type NodeOptions = { [key: string]: Json };

/** Options of one node as they were given, checked and typed: neither children nor defaults. */
export type GivenOptions = GenericOptions & { readonly [key: string]: Json };

/** What a driver opens with: the generic options with what is inherited, and its own with their defaults. */
export type Settings<O extends DriverOptions = DriverOptions> = GenericOptions &
  FilledOf<O['members']> & { readonly cache: CacheSettings };

export interface CacheSettings {
  /** O_DIRECT. */
  readonly direct: boolean;
  /** Flushes are not sent on: for images that need not outlive a crash. */
  readonly 'no-flush': boolean;
}

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
  /** For offload: where the first stretch at `offset` has its bytes. */
  locate(offset: number, lengthBytes: number): Promise<Located>;
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
  copyOnRead(offset: number, lengthBytes: number, last?: FrozenChain): Promise<void>;
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

/** What a driver may use of its node and surroundings. */
export interface DriverContext {
  readonly host: Host;
  /** What options name by an id: secrets, limits. */
  readonly objects: ObjectRegistry;
  readonly nodeName: string;
  /** For messages: the node's full name, as the graph stands. */
  readonly filename: string;
  readonly readOnly: boolean;
  readonly modes: NodeModes;
  /** Not read-only, and the image is ours (see block/activity); a change of either takes effect at its commit. */
  readonly mayWrite: boolean;
  /** Opened to be checked, whatever is wrong with it. */
  readonly forCheck: boolean;
  /** Only what the image says of itself is asked for. */
  readonly onlyLook: boolean;
  /** The image is ours, not another process's (see block/activity). */
  readonly isActive: boolean;
  /** Its content is to be used: the bitmaps that the image keeps are loaded. */
  readonly loadsBitmaps: boolean;
  /** The node's bitmaps, oldest first; the driver adds those that the image keeps, and stores them, and any of its own. */
  readonly dirtyBitmaps: DirtyBitmap[];
  /** The child of that role; asserts that it is attached. */
  child(role: string): ChildIo;
  hasChild(role: string): boolean;
  /** A file that the image names, seen from where the image is. Errors: invalid where that is no folder. */
  nameOf(filename: string): string;
  /** The chain below as far as a node, by name, fixed until it is released. Errors: not-found, invalid. */
  freezeChain(bottom: string): FrozenChain;
  /** Of a node, by their names. Errors: not-found. */
  dirtyBitmap(node: string, name: string): DirtyBitmap;
  /** Something the monitor may turn into an event, such as a corrupt image. */
  report(event: DriverEvent): void;
  /** A line for people, where QEMU prints one on standard error. */
  tell(line: string): void;
  /** The same, as a warning of the program. */
  warn(text: string): void;
}

/** A file that an image says is a part of it. It is a plain file, whatever its name looks like. */
export interface NamedFile {
  /** It becomes the child of that role. */
  readonly role: string;
  /** As the image says it. */
  readonly filename: string;
  /** What it is to the image, for messages. */
  readonly what: string;
  /** A relative name is seen from where the program is, not from where the image is. */
  readonly isFromHere?: boolean;
}

export type DriverEvent = {
  name: 'corrupted';
  message: string;
  offset?: number;
  sizeBytes?: number;
  fatal: boolean;
};

/** A file that an image says is a part of it. It is a plain file, whatever its name looks like. */
export interface NamedFile {
  /** It becomes the child of that role. */
  readonly role: string;
  /** As the image says it. */
  readonly filename: string;
  /** What it is to the image, for messages. */
  readonly what: string;
}

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

/**
 * The bitmaps that an image keeps. They are loaded when it is opened or becomes ours, and stored when it is closed, turns
 * read-only or is given away; whoever opens it after a crash finds that they are inconsistent.
 */
export interface BitmapStore {
  /** The image can keep some: not each version of a format does. */
  readonly isSupported: boolean;
  /** Errors, in QEMU's words: why a new one cannot be kept. */
  checkNew(name: string, granularityBytes: number): void;
  /** The image keeps it no longer; durable on return. */
  remove(name: string): Promise<void>;
}

export interface PermissionSet {
  /** Sum of Permission bits that the users of this node hold together. */
  perm: number;
  /** Bits that all users let others have. */
  shared: number;
}

/** Driver-specific facts for `image` in query-block and `img info`. */
export interface DriverInfo {
  clusterSizeBytes?: number;
  /** Where a guest's memory would be kept, behind the disk. */
  vmStateOffset?: number;
  isDirty?: boolean;
  /** Queries do not tell whether it is dirty. */
  hasNoDirtyFlag?: boolean;
  isCorrupt?: boolean;
  isEncrypted?: boolean;
  /** The whole `format-specific` object as QMP prints it. */
  formatSpecific?: { [key: string]: Json };
  compressedClusters?: boolean;
  /** QAPI's SnapshotInfo of each internal snapshot. */
  snapshots?: readonly Json[];
}

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
}

/** What an image is to be like from now on; what is not given stays. */
export interface ImageAmendment {
  version?: 2 | 3;
  lazyRefcounts?: boolean;
  keySlots?: KeySlotAmendment;
}

/** Which passwords an encrypted image opens with. */
export interface KeySlotAmendment {
  amendment: LuksAmendment;
  /** Also what may make all data unreadable. */
  isForced: boolean;
}

/** What a check repairs: space that nobody uses, or everything that can be. */
export type RepairMode = 'none' | 'leaks' | 'all';

/** What a check of an image found and what is left of it; counts of clusters unless named otherwise. */
export interface ImageCheck {
  /** Parts of the image that could not be read. */
  checkErrors: number;
  corruptions: number;
  leaks: number;
  corruptionsFixed: number;
  leaksFixed: number;
  totalClusters: number;
  allocatedClusters: number;
  fragmentedClusters: number;
  compressedClusters: number;
  /** First byte behind the last cluster in use. */
  imageEndOffset: number;
}

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

  /** Makes everything written before the call durable (child included). */
  flush(): Promise<void>;
  /** 'grow' only where supported; kind 'unsupported' else. */
  truncate?(lengthBytes: number): Promise<void>;
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
  /** Of connections: this one is given up, what is in flight with it too. */
  yank?(): void;
  info(): DriverInfo;
  /**
   * Checks the image, and repairs it where the node may be written; durable on return. Nobody uses the node meanwhile.
   * Each finding is told as it is made. Absent: the format has no checks.
   */
  check?(repair: RepairMode, say: (line: string) => void): Promise<ImageCheck>;
  /** Absent: the format has none. */
  readonly snapshots?: InternalSnapshots;
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
  /** Hears block-layer events by name (blkdebug only). */
  announce?(event: string): Promise<void> | undefined;
  close(): Promise<void>;
}

/**
 * Requests are aligned, in range, and never overlap a request that the facade was told to serialise. Of reads and writes,
 * the part [from, from + lengthBytes) of the request's memory is to be moved; it may lie in several pieces, and be
 * memory that a guest changes at any time: see IoRequest. It is the driver's until its promise settles, no longer.
 */
export interface IoDriver {
  tryRead?(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean;
  read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void>;
  tryWrite?(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean;
  write(request: IoRequest, from: number, lengthBytes: number, offset: number, flags: number): Promise<void>;
  /** A write() with Flag.fua is durable by itself. Absent or false: the facade flushes the node after it. */
  readonly honoursFua?: boolean;
  /** kind 'unsupported' makes the facade write zeroes (unless Flag.noFallback). */
  writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void>;
  /** A hint: a driver that cannot discard just returns. */
  discard(offset: number, lengthBytes: number): Promise<void>;
  status(offset: number, lengthBytes: number): Promise<BlockStatus>;
  /** See ChildIo. Absent: it neither promises space nor grows, and finds out at the write. */
  allocate?(offset: number, lengthBytes: number): Promise<void>;
  tryAllocate?(offset: number, lengthBytes: number): boolean;
  extend?(lengthBytes: number): Promise<void>;
  tryExtend?(lengthBytes: number): boolean;
  startWriteback?(offset: number, lengthBytes: number): void;
  /**
   * Offload: where the plain bytes are, for copy_file_range. Only file answers.
   * `from` may be a file of another node.
   */
  copyFrom?(source: IoDriver, sourceOffset: number, offset: number, lengthBytes: number): Promise<number>;
}

/**
 * A driver that answers where things are and lets generic code move the bytes. The generic code holds a range lock
 * on the guest range of every asynchronous request: shared for reads and overwrites in place, exclusive (rounded
 * out to clusterBytes) around reserve..link/abort, unmap and discard. So map, reserve and unmap never race for one
 * guest cluster, and no host cluster is freed while I/O to it is in flight.
 */
export interface MapDriver {
  /** Unit of host space and of range locks; 1 for raw, which has no tables. */
  readonly clusterBytes: number;
  /** What has a status of its own, and what reservations, zeroes and discards are in: a cluster, or a part of one. */
  readonly unitBytes: number;
  /** The child that hears of block-layer events. */
  readonly events: ChildIo;
  /** Fills all of `out` for a stretch that begins at offset, at most lengthBytes long; false: tables are not in memory. */
  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean;
  map(offset: number, lengthBytes: number, out: Mapping): Promise<void>;
  /** All of the mapping is on stable storage: data that is overwritten in place, durably, needs no flush. Absent: not known. */
  readonly isMappingDurable?: boolean;
  /** Reads data that is not plain, from `offset` on, as it was mapped; absent where all is plain. Its range is held. */
  readSpecial?(mapping: Mapping, offset: number, buffer: Uint8Array): Promise<void>;
  /**
   * Puts the guest's bytes of `offset` at hostOffset of the child: into a reservation that is not plain, or over writable
   * data that is not. Its range is held alone. Absent where there is neither.
   */
  writeSpecial?(child: ChildIo, hostOffset: number, offset: number, buffer: Uint8Array): Promise<void>;
  /**
   * Compresses the guest's bytes of a whole cluster that holds no data, and publishes it; its range is held alone. False:
   * it would not become smaller, and nothing was done. Absent where nothing is compressed.
   */
  writeCompressed?(offset: number, bytes: Uint8Array): Promise<boolean>;
  /**
   * Clusters for a write to [offset, offset + lengthBytes) that map() does not call writable data. Covers at
   * least the first byte; may cover less than asked. Nothing is visible until link().
   */
  reserve(offset: number, lengthBytes: number): Promise<Reservation>;
  /** The same at once; undefined: use reserve. */
  tryReserve?(offset: number, lengthBytes: number): Reservation | undefined;
  /**
   * Makes whole units read as zeroes without writing data ([offset, +lengthBytes) is aligned to unitBytes, except
   * that it may end at the image's end). mayUnmap frees the clusters. kind 'unsupported': write zeroes instead.
   */
  zeroClusters(offset: number, lengthBytes: number, mayUnmap: boolean): Promise<void>;
  /** Frees whole units (aligned as above); afterwards they must not show older data of the backing file. */
  discardClusters(offset: number, lengthBytes: number): Promise<void>;
}

/** Clusters that hold no guest data yet. The caller fills the host range, then links or aborts. */
export interface Reservation {
  /** Guest range, aligned to unitBytes; its end may reach past the end of the image. */
  readonly offset: number;
  readonly lengthBytes: number;
  /** Contiguous range in it, lengthBytes long. */
  readonly child: ChildIo;
  readonly hostOffset: number;
  /** It takes the guest's bytes as they are; else writeSpecial puts them there. */
  readonly plain: boolean;
  /** The host range reads as zeroes as it is: what is not written need not be zeroed. Only where it is plain. */
  readonly readsZero: boolean;
  /**
   * What the range held before, for the copy-on-write of its unwritten head and tail: 'zero' all zeroes,
   * 'mixed' ask map() (still answers the old mapping until link).
   */
  readonly before: 'zero' | 'mixed';
  /** Publishes the clusters in the (in-memory) tables. Asserts that the old mapping is unchanged. */
  link(): void;
  /** Gives the clusters back. */
  abort(): void;
}

/** What is asked for by `img create`, blockdev-create and snapshot creation. */
export interface CreateOptions {
  sizeBytes: number;
  backingFile?: string;
  backingFormat?: string;
  /** The format's own, by QMP name: cluster-size, version, ... */
  options?: NodeOptions;
}

/** What an image is to hold. */
export interface MeasuredContent {
  /** How much data it is, in whole units. */
  dataBytes(unitBytes: number): Promise<number>;
  /** The bitmaps that are kept with it; undefined: it comes from where none can be kept. */
  readonly bitmaps: readonly DirtyBitmap[] | undefined;
}

/** How large a file would be. */
export interface Measurement {
  /** With the content as it is. */
  requiredBytes: number;
  /** When all of the disk has been written. */
  fullyAllocatedBytes: number;
  /** What bitmaps that are copied with the content take besides; absent: none can be. */
  bitmapsBytes?: number;
}

/** The same, checked, and with the format's defaults. */
export interface NewImage<C extends Members = Members> extends Omit<CreateOptions, 'options'> {
  options: FilledOf<C>;
  /** Of formats with such an option: the file for the guest's data, open and empty, and its name. */
  dataFile?: { io: ChildIo; filename: string };
}

/** What a new image may be made with besides its own file. */
export interface NewImageContext {
  /** The image's own, as it was named. */
  readonly filename: string;
  /** Makes one in the image's folder, and opens it until the image is made. */
  create(name: string): Promise<ChildIo>;
  /** What the driver says of an image that is to be the backing file. */
  lookAt(filename: string, format: string | undefined): Promise<DriverInfo>;
  /** Errors: not-found, invalid. */
  secret(id: string): Uint8Array;
}

/** What the composition root registers. */
export interface DriverDescription<O extends DriverOptions = DriverOptions, C extends Members = Members> {
  readonly name: string;
  readonly kind: 'protocol' | 'format' | 'filter';
  /** Its own options and children, and whether it has backing files (schema/blockdev-options.ts). */
  readonly options: O;
  /** Its own options that may change while it is open. */
  readonly mutableOptions?: readonly string[];
  /** Its size is its child's: filters' is anyway. */
  readonly followsChildSize?: boolean;
  /** The format of images that show no other. */
  readonly isFallback?: boolean;
  /** Takes writes that are to be compressed, or passes them on. */
  readonly compresses?: boolean;
  /** Protocols: names are paths, so an image has a folder in which relative names of backing files begin. */
  readonly hasFolders?: boolean;
  /** What messages call it, where that is not its name. */
  readonly title?: string;
  /** Filters of jobs: they cannot be opened, and have the names of what they show. */
  readonly isNamedAsChild?: boolean;
  /** Filters of jobs: named itself where the user has given it a name, and not as its child. */
  readonly isNamedWhole?: boolean;
  /** Filters of jobs: what QEMU calls the child that it shows. */
  readonly shownChildRole?: string;
  /** Filters of jobs: no other job may rely on the link to it. */
  readonly isNeverFrozen?: boolean;
  /** Filters of jobs: a layer in queries even where the user gave it no name. */
  readonly isAlwaysShown?: boolean;
  /**
   * Files that the image names as parts of it, besides the children that are attached already; opened before the image is,
   * unless it is only looked at (OpenContext.onlyLook).
   */
  namedFiles?(context: DriverContext, settings: Settings<O>): Promise<readonly NamedFile[]>;
  /** Opens; its children are attached already (`backing` comes later). */
  open(context: DriverContext, settings: Settings<O>): Promise<DriverInstance>;
  /** What it asks of a child, where that is not what its kind asks (block/child-permissions); undefined: default. */
  childPermissions?(
    role: string,
    users: PermissionSet,
    readOnly: boolean,
    settings: Settings<O>,
    hasUsers: boolean,
  ): PermissionSet | undefined;
  /** How sure it is that the first bytes are of its format: 0 no, 100 certain. */
  probe?(header: Uint8Array): number;
  /** What may be said of a new image besides its size and backing file (schema/create-options.ts). */
  readonly createOptions?: C;
  /** Formats: the image tool's -o options and, among them, size and backing file, in the order of its messages. */
  readonly toolOptions?: readonly ToolOption[];
  /** Formats: the options of `img amend` that are not among those of new images. */
  readonly amendOptions?: readonly string[];
  /** Formats: what is wrong with the options together, before anything is made. */
  checkNew?(image: NewImage<C>): void;
  /** Formats: how large the file of such an image is. */
  measure?(image: NewImage<C>, content: MeasuredContent): Promise<Measurement>;
  /**
   * Formats: writes an empty image into a file child that is already open; durable on return. `context`: what
   * it may be made with.
   */
  create?(file: ChildIo, image: NewImage<C>, host: Host, context?: NewImageContext): Promise<void>;
  /** Formats: the creation option that names a file for the guest's data. */
  readonly dataFileOption?: string;
  /** Protocols: there is something without us, which takes a new image as it is. */
  readonly takesImages?: boolean;
  /** Protocols: makes the file; replaces what is there. */
  createFile?(host: Host, filename: string, sizeBytes: number): Promise<void>;
  /**
   * Protocols: the plain filename that means these options, as given; undefined: none does. `image`: that of the
   * child, for a protocol over another; `childName`: of one of several.
   */
  filename?(
    options: GivenOptions,
    image?: string,
    childName?: (role: string) => string | undefined,
  ): string | undefined;
  /** Options that decide what a node shows: all that is to be said of it besides its children. */
  readonly identityOptions?: readonly string[];
  /**
   * Protocols: whether a plain filename is theirs ("nbd:", "nbd://"), and the options it stands for. A child of which
   * they have nothing but a `filename` is the one of that name.
   */
  parseFilename?(filename: string): NodeOptions | undefined;
  /** Replaces older spellings of options, which only flat ones may have. Errors: invalid, in QEMU's words. */
  modernise?(options: FlatOptions): void;
  /** Protocols with the options of a file: whether what lies at a path is theirs. */
  claims?(host: Host, path: string): Promise<boolean>;
}
