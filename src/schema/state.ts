import { ChardevBackend } from './chardev.js';
import { SocketAddress } from './socket-address.js';
import {
  any,
  arrayOf,
  bool,
  enumOf,
  type Infer,
  int,
  optional,
  required,
  str,
  struct,
  union,
} from './types.js';

/** What a daemon is, as it stands in its state file (docs/STATE.md). A change of these is a new version. */
export const STATE_VERSION = 1;

const MODE = enumOf('StateInputMode', ['qmp', 'keyval']);
const ERROR_ACTION = enumOf('StateErrorAction', ['report', 'ignore', 'stop', 'enospc']);

const NODE = struct('StateNode', {
  name: required(str),
  driver: required(str),
  options: required(any),
  cache: required(struct('StateCache', { direct: required(bool), 'no-flush': required(bool) })),
  forceShare: required(bool),
  readOnly: required(bool),
  discard: required(enumOf('StateDiscard', ['ignore', 'unmap'])),
  detectZeroes: required(enumOf('StateDetectZeroes', ['off', 'on', 'unmap'])),
  isOwned: required(bool),
  isGuessed: required(bool),
  copiesOnRead: required(bool),
  isInactive: required(bool),
  inheritsFrom: optional(str),
  automaticBacking: optional(str),
  children: required(any),
});

/** What a disk has besides its medium: of a drive, or of a device that has none. */
const DISK = {
  /** In the order in which query-block lists them. */
  number: required(int),
  medium: optional(str),
  mediumWasReadOnly: required(bool),
  throttling: optional(struct('StateThrottling', { group: required(str), limits: required(any) })),
} as const;

const DRIVE = struct('StateDrive', {
  ...DISK,
  id: required(str),
  interface: required(str),
  bus: required(int),
  unit: required(int),
  isCdrom: required(bool),
  writethrough: required(bool),
  readErrors: required(ERROR_ACTION),
  writeErrors: required(ERROR_ACTION),
  accounting: optional(
    struct('StateAccounting', {
      accountsInvalid: required(bool),
      accountsFailed: required(bool),
      intervals: required(arrayOf(int)),
    }),
  ),
});

const DEVICE = struct('StateDevice', {
  path: required(str),
  options: required(any),
  mode: required(MODE),
  isOnBoard: required(bool),
  /** Of one that is a disk. */
  disk: optional(
    struct('StateDisk', {
      ...DISK,
      drive: optional(str),
      isTrayOpen: required(bool),
      ioStatus: required(enumOf('StateIoStatus', ['ok', 'failed', 'nospace'])),
    }),
  ),
});

const SERVER = struct('StateServer', {
  address: required(SocketAddress),
  maxConnections: optional(int),
  handshakeMaxSeconds: optional(int),
  credentials: optional(str),
  authz: optional(str),
});

const EXPORT = union(
  'StateExport',
  {
    type: required(enumOf('StateExportType', ['nbd', 'vhost-user-blk'])),
    id: required(str),
    node: required(str),
    writable: required(bool),
    writethrough: required(bool),
  },
  'type',
  {
    nbd: struct('StateNbdExport', {
      name: required(str),
      description: optional(str),
      drive: optional(str),
      allocationDepth: required(bool),
      bitmaps: required(arrayOf(struct('StateBitmap', { node: optional(str), name: required(str) }))),
    }),
    'vhost-user-blk': struct('StateVhostExport', {
      address: required(SocketAddress),
      blockSizeBytes: required(int),
      queueCount: required(int),
    }),
  },
);

export const EngineState = struct('EngineState', {
  kind: required(enumOf('StateKind', ['machine', 'storage-daemon'])),
  machine: required(str),
  name: optional(str),
  uuid: optional(str),
  memoryBytes: optional(int),
  status: required(
    enumOf('StateRunStatus', [
      ...(['prelaunch', 'inmigrate', 'running', 'paused', 'shutdown', 'io-error'] as const),
      ...(['finish-migrate', 'postmigrate', 'save-vm', 'restore-vm'] as const),
    ]),
  ),
  reboot: required(enumOf('StateReboot', ['reset', 'shutdown'])),
  shutdown: required(enumOf('StateShutdown', ['poweroff', 'pause'])),
  protectsSharedBases: required(bool),
  sharedBasesFolders: required(arrayOf(str)),
  /** SHA-256 of what the command line asked for. */
  askedDigest: required(str),
  objects: required(
    arrayOf(struct('StateObject', { type: required(str), id: required(str), options: required(any) })),
  ),
  nodes: required(arrayOf(NODE)),
  writeThresholds: required(
    arrayOf(struct('StateWriteThreshold', { node: required(str), offset: required(int) })),
  ),
  /** Bitmaps in files beside their images. */
  sideBitmaps: required(
    arrayOf(struct('StateSideBitmap', { node: required(str), name: required(str), path: required(str) })),
  ),
  /** Bitmaps that go with the process; those that are persistent, unless it ends cleanly. */
  lostBitmaps: required(
    arrayOf(
      struct('StateLostBitmap', { node: required(str), name: required(str), persistent: optional(bool) }),
    ),
  ),
  drives: required(arrayOf(DRIVE)),
  devices: required(arrayOf(DEVICE)),
  server: optional(SERVER),
  exports: required(arrayOf(EXPORT)),
  chardevs: required(
    arrayOf(
      struct('StateChardev', {
        id: required(str),
        backend: required(ChardevBackend),
        maxClients: optional(int),
      }),
    ),
  ),
  monitors: required(
    arrayOf(
      struct('StateMonitor', { chardev: required(str), isControl: required(bool), pretty: required(bool) }),
    ),
  ),
  /** The monitor is on standard input, beside a console. */
  isMultiplexed: required(bool),
  /** What has been set, if anything. */
  migration: optional(
    struct('StateMigration', { capabilities: required(arrayOf(str)), parameters: required(any) }),
  ),
  /** A machine that has come, whose source may not have heard so, and asks. */
  arrival: optional(
    struct('StateArrival', {
      session: required(str),
      door: required(SocketAddress),
      tls: optional(struct('StateDoorTls', { credentials: required(str), authz: optional(str) })),
    }),
  ),
  jobs: required(
    arrayOf(struct('StateJob', { id: required(str), type: required(str), journal: optional(str) })),
  ),
});

export type EngineState = Infer<typeof EngineState>;
