export { NbdServer, type NbdServerOptions } from './server.js';
export type { NbdExport, NbdTarget, TargetStatus } from './target.js';
