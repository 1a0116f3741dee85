/// <reference types="node" preserve="true" />
/** livedisk: the engine with all its drivers, for programs that embed it. */
export { BlockError, type ErrorContext, type ErrorKind } from './base/error.js';
export { allDrivers } from './drivers/index.js';
export { createRealHost } from './host/real.js';
export type { Host, SocketAddress } from './host/host.js';
export type { DeviceProperties, ErrorAction, GuestDevice } from './attach/device.js';
export type { RunStatus } from './attach/run-state.js';
export type { ExportProperties } from './attach/exports.js';
export type { Job } from './jobs/job.js';
export type { JobType } from './jobs/job-driver.js';
export type {
  DetailedProgress,
  JobPhase,
  JobProgress,
  Outlook,
  Stage,
  StageProgress,
} from './jobs/job-progress.js';
export type { JobStatus } from './jobs/state.js';
export { Disk, type DiskOptions, type Extent, type Range } from './library/disk.js';
export {
  createEngine,
  type CreateEngineProperties,
  Engine,
  type ImageProperties,
  type JobCommand,
} from './library/engine.js';
export { type EngineEvent, type EventOptions, EventStream } from './library/events.js';
export { Session, type SessionInfo, type SessionOptions } from './library/session.js';
export {
  commitImage,
  convertImage,
  type ConvertOptions,
  createImage,
  hashImage,
  type ImageFile,
  type ImageWork,
  measureImage,
  type NewImageFile,
  rebaseImage,
  resizeImage,
} from './library/whole-images.js';
export type { HashAlgorithm } from './library/images/content-hash.js';
export type { EngineProperties, EventListener } from './monitor/engine.js';
export { QmpError } from './wire/qmp/registry.js';
export type { CommandArguments, CommandName, CommandResult, OptionalArguments } from './schema/commands.js';
export type { EventData, EventName } from './schema/events.js';
export type { BlockStats } from './schema/block-stats.js';
export type { ImageInfo } from './schema/returns.js';
export * from './block/index.js';
