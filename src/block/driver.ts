/** The contract between drivers and the block layer: what a driver says of itself, what it is given, what it answers. */
export type { CacheSettings, GivenOptions, Json, NodeOptions, Settings } from './driver/options.js';
export type { ChildIo } from './driver/child-io.js';
export type { DriverContext, DriverEvent, NamedFile, QuorumEvent } from './driver/context.js';
export type {
  ChangingChildren,
  PermissionSet,
  PreparedChange,
  PreparedReopening,
  Reopening,
} from './driver/changes.js';
export type {
  BitmapStore,
  CompactOptions,
  DiscardCounts,
  DriverInfo,
  FileUse,
  ImageAmendment,
  ImageCheck,
  ImageCompaction,
  KeySlotAmendment,
  RepairMode,
} from './driver/image.js';
export type { InternalSnapshot, InternalSnapshots, NewSnapshot } from './driver/snapshots.js';
export type { DriverInstance } from './driver/instance.js';
export type { IoDriver } from './driver/io-driver.js';
export type { MapDriver, Reservation } from './driver/map-driver.js';
export type {
  CreateOptions,
  MeasuredContent,
  Measurement,
  NewFileTraits,
  NewImage,
  NewImageContext,
  Preallocated,
} from './driver/new-image.js';
export type { DriverDescription } from './driver/description.js';
