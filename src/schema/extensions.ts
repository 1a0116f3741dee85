import { DISK_MAP_COMMANDS } from './disk-map.js';
import { EXPORT_STATS_COMMANDS } from './export-stats.js';
import { FILE_USE_COMMANDS } from './file-use.js';
import { MOVE_COMMANDS, MOVE_EVENTS } from './move.js';
import { PERSISTED_JOB_COMMANDS } from './persisted-jobs.js';
import { POINT_COMMANDS, POINT_EVENTS } from './points.js';
import { SESSION_COMMANDS, SESSION_EVENTS } from './sessions.js';
import { TAKEOVER_COMMANDS } from './takeover.js';
import { TRACKING_COMMANDS } from './tracking.js';
import type { Type } from './types.js';

/**
 * What QEMU does not have. A client sees of it what it asks for: `qmp_capabilities` with `enable: ["x-livedisk"]`. For
 * others there are no such commands, events and members (types.ts: extension()), and nothing tells that they exist. All
 * their names begin with `x-`.
 */
export const EXTENSIONS = 'x-livedisk';

/** Arguments of the commands that only such clients have. */
export const EXTENSION_COMMANDS = {
  ...DISK_MAP_COMMANDS,
  ...EXPORT_STATS_COMMANDS,
  ...FILE_USE_COMMANDS,
  ...MOVE_COMMANDS,
  ...PERSISTED_JOB_COMMANDS,
  ...POINT_COMMANDS,
  ...TRACKING_COMMANDS,
  ...SESSION_COMMANDS,
  ...TAKEOVER_COMMANDS,
} as const satisfies { readonly [command: string]: Type<unknown> };

/** Events that only such clients are sent. */
export const EXTENSION_EVENTS: ReadonlySet<string> = new Set<string>([
  ...Object.keys(MOVE_EVENTS),
  ...Object.keys(POINT_EVENTS),
  ...Object.keys(SESSION_EVENTS),
  'X_BLOCK_JOB_CHUNK_DIFFERS',
]);
