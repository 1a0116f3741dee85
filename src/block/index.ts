/// <reference types="node" preserve="true" />
/** livedisk/block: nodes, the graph and the I/O facade, for programs that embed the engine. */
export { BlockBackend } from './backend.js';
export type { BackendProperties, BackendUser } from './backend-user.js';
export type { Change, ChangeGate } from './change-gate.js';
export { DirtyBitmap } from './dirty-bitmap.js';
export type * from './driver.js';
export { Edge } from './edge.js';
export { Graph } from './graph.js';
export type { ChainStatus } from './chain-status.js';
export { Node } from './node.js';
export { Opener, type OpenContext } from './open.js';
export { ALL_PERMISSIONS, Permission } from './permissions.js';
export { DriverRegistry } from './registry.js';
export { Flag, type BlockStatus, type Mapping } from './request.js';
export { GraphTransaction } from './transaction.js';
