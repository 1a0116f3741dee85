import { MIGRATION_EVENTS } from './migration.js';
import { MOVE_EVENTS } from './move.js';
import { POINT_EVENTS } from './points.js';
import { SESSION_EVENTS } from './sessions.js';
import { JobStatusName, JobTypeName } from './returns.js';
import {
  bool,
  enumOf,
  type Infer,
  int,
  int64,
  optional,
  required,
  size,
  str,
  struct,
  type Type,
} from './types.js';

/** The events of livedisk and their data. */

const OPERATION = enumOf('IoOperationType', ['read', 'write']);
const ERROR_ACTION = enumOf('BlockErrorAction', ['ignore', 'report', 'stop']);

const JOB_PROGRESS = {
  type: required(JobTypeName),
  device: required(str),
  len: required(int),
  offset: required(int),
  speed: required(int64),
} as const;

const SHUTDOWN_CAUSE = enumOf('ShutdownCause', [
  'host-error',
  'host-qmp-quit',
  'host-qmp-system-reset',
  'host-signal',
]);

const NO_DATA = struct('q_empty', {});

const EVENT_TYPES = {
  BLOCK_EXPORT_DELETED: struct('BLOCK_EXPORT_DELETED-arg', { id: required(str) }),
  BLOCK_IMAGE_CORRUPTED: struct('BLOCK_IMAGE_CORRUPTED-arg', {
    device: required(str),
    'node-name': optional(str),
    msg: required(str),
    offset: optional(int),
    size: optional(int),
    fatal: required(bool),
  }),
  BLOCK_IO_ERROR: struct('BLOCK_IO_ERROR-arg', {
    device: required(str),
    'node-name': optional(str),
    operation: required(OPERATION),
    action: required(ERROR_ACTION),
    nospace: optional(bool),
    /** QEMU 10's. */
    'qom-path': required(str),
    reason: required(str),
  }),
  BLOCK_JOB_CANCELLED: struct('BLOCK_JOB_CANCELLED-arg', JOB_PROGRESS),
  BLOCK_JOB_COMPLETED: struct('BLOCK_JOB_COMPLETED-arg', { ...JOB_PROGRESS, error: optional(str) }),
  BLOCK_JOB_ERROR: struct('BLOCK_JOB_ERROR-arg', {
    device: required(str),
    operation: required(OPERATION),
    action: required(ERROR_ACTION),
  }),
  BLOCK_JOB_PENDING: struct('BLOCK_JOB_PENDING-arg', { type: required(JobTypeName), id: required(str) }),
  BLOCK_JOB_READY: struct('BLOCK_JOB_READY-arg', JOB_PROGRESS),
  BLOCK_WRITE_THRESHOLD: struct('BLOCK_WRITE_THRESHOLD-arg', {
    'node-name': required(str),
    'amount-exceeded': required(size),
    'write-threshold': required(size),
  }),
  DEVICE_DELETED: struct('DEVICE_DELETED-arg', { device: optional(str), path: required(str) }),
  DEVICE_TRAY_MOVED: struct('DEVICE_TRAY_MOVED-arg', {
    device: required(str),
    id: required(str),
    'tray-open': required(bool),
  }),
  ...MIGRATION_EVENTS,
  X_BLOCK_JOB_CHUNK_DIFFERS: struct('X_BLOCK_JOB_CHUNK_DIFFERS-arg', {
    device: required(str),
    offset: required(int),
    length: required(int),
    action: required(enumOf('XChunkAction', ['copied-again', 'report'])),
  }),
  ...MOVE_EVENTS,
  ...POINT_EVENTS,
  ...SESSION_EVENTS,
  JOB_STATUS_CHANGE: struct('JOB_STATUS_CHANGE-arg', { id: required(str), status: required(JobStatusName) }),
  POWERDOWN: NO_DATA,
  QUORUM_FAILURE: struct('QUORUM_FAILURE-arg', {
    reference: required(str),
    'sector-num': required(int),
    'sectors-count': required(int),
  }),
  QUORUM_REPORT_BAD: struct('QUORUM_REPORT_BAD-arg', {
    type: required(enumOf('QuorumOpType', ['read', 'write', 'flush'])),
    error: optional(str),
    'node-name': required(str),
    'sector-num': required(int),
    'sectors-count': required(int),
  }),
  RESET: struct('RESET-arg', { guest: required(bool), reason: required(SHUTDOWN_CAUSE) }),
  RESUME: NO_DATA,
  SHUTDOWN: struct('SHUTDOWN-arg', {
    guest: required(bool),
    reason: required(SHUTDOWN_CAUSE),
  }),
  STOP: NO_DATA,
} satisfies { readonly [event: string]: Type<unknown> };

export const EVENTS: { readonly [event: string]: Type<unknown> } = EVENT_TYPES;
export type EventName = keyof typeof EVENT_TYPES;
export type EventData<N extends EventName> = Infer<(typeof EVENT_TYPES)[N]>;
