/** livedisk/nbd: a server of disks, and a client. */
export type { Host, SocketAddress } from '../../host/host.js';
export { NbdClient } from './client.js';
export { NbdServer, type NbdServerOptions } from './server.js';
export { type NbdExport, type NbdTarget, TargetFlag, type TargetStatus } from './target.js';
