/** livedisk: the engine with all its drivers, for programs that embed it. */
export { BlockError, type ErrorKind } from './base/error.js';
export { allDrivers } from './drivers/index.js';
export { createRealHost } from './host/real.js';
export type { Host } from './host/host.js';
export type { DeviceProperties, GuestDevice } from './guest/device.js';
export { Engine, type EngineProperties, type EventListener } from './monitor/engine.js';
export { QmpError } from './qmp/registry.js';
export type { CommandArguments, CommandName } from './schema/commands.js';
export * from './block/index.js';
