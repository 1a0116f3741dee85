/** livedisk/nbd: a server of disks, and a client. */
export { NbdClient } from './client.js';
export { NbdServer, type NbdServerOptions } from './server.js';
export type { NbdExport, NbdTarget, TargetStatus } from './target.js';
