import { arrayOf, bool, enumOf, int, optional, required, str, struct } from './types.js';

/** Trace points (trace.json of QEMU 7.2). */

export const TRACE_COMMANDS = {
  'trace-event-get-state': struct('trace-event-get-state-arg', { name: required(str), vcpu: optional(int) }),
  'trace-event-set-state': struct('trace-event-set-state-arg', {
    name: required(str),
    enable: required(bool),
    'ignore-unavailable': optional(bool),
    vcpu: optional(int),
  }),
} as const;

export const TRACE_RETURNS = {
  'trace-event-get-state': arrayOf(
    struct('TraceEventInfo', {
      name: required(str),
      state: required(enumOf('TraceEventState', ['unavailable', 'disabled', 'enabled'])),
      vcpu: required(bool),
    }),
  ),
} as const;
