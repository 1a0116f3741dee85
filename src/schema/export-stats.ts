import { struct } from './types.js';

/** What clients of exports have asked for: livedisk's own command (extensions.ts); its answer is in returns.ts. */
export const EXPORT_STATS_COMMANDS = {
  'x-query-export-stats': struct('x-query-export-stats-arg', {}),
} as const;
