import { arrayOf, enumOf, optional, required, str, struct, uint32 } from './types.js';

/** What a client makes and wants gone when it ends: docs/SESSIONS.md. */
export const SESSION_COMMANDS = {
  'x-session-open': struct('x-session-open-arg', {
    id: required(str),
    /** In seconds. Without, it ends with the connection that opens it. */
    lease: optional(uint32),
  }),
  'x-session-enter': struct('x-session-enter-arg', { id: required(str) }),
  'x-session-leave': struct('x-session-leave-arg', {}),
  'x-session-renew': struct('x-session-renew-arg', { id: required(str) }),
  'x-session-close': struct('x-session-close-arg', { id: required(str) }),
  'x-session-list': struct('x-session-list-arg', {}),
} as const;

const THING = enumOf('XSessionThing', ['node', 'bitmap', 'job', 'export', 'point']);

/** Why a session ends. */
const REASON = enumOf('XSessionEnd', ['closed', 'client-gone', 'lease-over']);

const Thing = struct('XSessionThingInfo', {
  type: required(THING),
  name: required(str),
  /** Why it could not be undone; it is tried again. */
  failure: optional(str),
});

export const SESSION_RETURNS = {
  'x-session-list': arrayOf(
    struct('XSessionInfo', {
      id: required(str),
      /** Missing: it is open. */
      ends: optional(REASON),
      /** Seconds until it ends if nobody renews it. */
      'lease-left': optional(uint32),
      /** In the order in which they were made; they are undone the other way round. */
      things: required(arrayOf(Thing)),
    }),
  ),
} as const;

export const SESSION_EVENTS = {
  X_SESSION_UNDO_FAILED: struct('X_SESSION_UNDO_FAILED-arg', {
    session: required(str),
    type: required(THING),
    name: required(str),
    error: required(str),
  }),
  X_SESSION_ENDED: struct('X_SESSION_ENDED-arg', { session: required(str), reason: required(REASON) }),
} as const;
