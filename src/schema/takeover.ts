import { arrayOf, bool, number, optional, required, str, struct, uint32 } from './types.js';

/** A new process in the place of the one that serves: docs/TAKEOVER.md. */
export const TAKEOVER_COMMANDS = {
  'x-takeover': struct('x-takeover-arg', {
    /** Where the new process waits; needed but for a dry run. */
    socket: optional(str),
    'dry-run': optional(bool),
    /** In milliseconds: so long is anything waited for while guests are held. */
    timeout: optional(uint32),
  }),
} as const;

/** What a takeover does with what there is, in words. */
export const TakeoverReport = struct('XTakeover', {
  'goes-over': required(arrayOf(str)),
  /** The new process opens it by itself. */
  'opened-anew': required(arrayOf(str)),
  /** Clients that have to connect again. */
  cut: required(arrayOf(str)),
  /** Why there is none. */
  refuses: required(arrayOf(str)),
  /** For so long nobody was served, in milliseconds. */
  pause: optional(number),
});

export const TAKEOVER_RETURNS = { 'x-takeover': TakeoverReport } as const;
