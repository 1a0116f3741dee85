/// <reference types="node" preserve="true" />
/** livedisk/nbd: a server of disks, and a client. */
export type { Host, SocketAddress } from '../../host/host.js';
export { NbdClient } from './client.js';
export { NbdServer, type NbdServerOptions } from './server.js';
export type { NbdExport, NbdTarget, TargetStatus } from './target.js';
export { CancelSignal } from '../../base/cancel-signal.js';
export { Flag, IoRequest, RequestPool, type RequestKind } from '../../base/io-request.js';
