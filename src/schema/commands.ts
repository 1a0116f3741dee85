import { BITMAP_COMMANDS, BitmapAdd, BitmapMerge, BitmapName } from './bitmap-commands.js';
import { CHARDEV_COMMANDS } from './chardev.js';
import { DESCRIPTOR_COMMANDS } from './descriptors.js';
import { DRY_RUN_ARGUMENT } from './dry-run.js';
import { EXTENSION_COMMANDS } from './extensions.js';
import { MACHINE_COMMANDS } from './machine.js';
import { MIGRATION_COMMANDS } from './migration.js';
import { QOM_COMMANDS } from './qom.js';
import { BlockSetIoThrottle } from './io-throttle.js';
import { RARE_COMMANDS } from './rare-commands.js';
import { TRACE_COMMANDS } from './trace.js';
import type { ReturnTypes } from './returns.js';
import {
  BlockdevCreateOptions,
  BlockdevOptions,
  BlockExportOptions,
  ON_CBW_ERROR,
  SocketAddressLegacy,
} from './block-types.js';
import {
  arrayOf,
  bool,
  enumOf,
  extension,
  type Features,
  type Infer,
  int,
  int64,
  isJsonObject,
  type JsonObject,
  marked,
  optional,
  required,
  size,
  str,
  struct,
  type Type,
  uint32,
  union,
  wrongType,
} from './types.js';

/** Arguments of every command, as QEMU 7.2 has them. */

const ON_ERROR = enumOf('BlockdevOnError', ['report', 'ignore', 'enospc', 'stop', 'auto']);
const SYNC = enumOf('MirrorSyncMode', ['top', 'full', 'none', 'incremental', 'bitmap']);
const NEW_IMAGE_MODE = enumOf('NewImageMode', ['existing', 'absolute-paths']);

export const NO_ARGUMENTS = struct('q_empty', {});

const JOB_COMMON = {
  'job-id': optional(str),
  speed: optional(int64),
  'auto-finalize': optional(bool),
  'auto-dismiss': optional(bool),
} as const;

/** Of jobs that may be gone on with; see docs/JOBS-THAT-SURVIVE.md. */
const PERSISTED = { 'x-persist': extension(optional(str)) } as const;

/** QEMU 9.0's. */
const MASK_PROTOCOL = { 'backing-mask-protocol': optional(bool) } as const;

export const BlockStream = struct('block-stream-arg', {
  'job-id': optional(str),
  device: required(str),
  base: optional(str),
  'base-node': optional(str),
  'backing-file': optional(str),
  ...MASK_PROTOCOL,
  bottom: optional(str),
  speed: optional(int64),
  'on-error': optional(ON_ERROR),
  'filter-node-name': optional(str),
  'auto-finalize': optional(bool),
  'auto-dismiss': optional(bool),
  ...PERSISTED,
  ...DRY_RUN_ARGUMENT,
});

export const BlockCommit = struct('block-commit-arg', {
  'x-protect-shared-bases': extension(optional(bool)),
  'x-shared-bases-folders': extension(optional(arrayOf(str))),
  'job-id': optional(str),
  device: required(str),
  'base-node': optional(str),
  base: marked('deprecated', optional(str)),
  'top-node': optional(str),
  top: marked('deprecated', optional(str)),
  'backing-file': optional(str),
  ...MASK_PROTOCOL,
  speed: optional(int64),
  'on-error': optional(ON_ERROR),
  'filter-node-name': optional(str),
  'auto-finalize': optional(bool),
  'auto-dismiss': optional(bool),
  ...PERSISTED,
  ...DRY_RUN_ARGUMENT,
});

/** Of jobs that make a copy; see docs/JOBS-THAT-SURVIVE.md. */
const CHECKED_COPY = {
  'x-compare': extension(optional(bool)),
  'x-verify': extension(optional(bool)),
  'x-manifest': extension(optional(str)),
} as const;

const COPY_MODE = enumOf('MirrorCopyMode', ['background', 'write-blocking']);

const MIRROR_COMMON = {
  ...JOB_COMMON,
  device: required(str),
  target: required(str),
  replaces: optional(str),
  sync: required(SYNC),
  granularity: optional(uint32),
  'buf-size': optional(int64),
  'on-source-error': optional(ON_ERROR),
  'on-target-error': optional(ON_ERROR),
  'copy-mode': optional(COPY_MODE),
  /** In seconds from its start: docs/FINISH-BY.md. */
  'x-finish-by': extension(optional(uint32)),
  ...CHECKED_COPY,
  ...DRY_RUN_ARGUMENT,
} as const;

export const DriveMirror = struct('DriveMirror', {
  ...MIRROR_COMMON,
  format: optional(str),
  'node-name': optional(str),
  mode: optional(NEW_IMAGE_MODE),
  unmap: optional(bool),
});

export const BlockdevMirror = struct('blockdev-mirror-arg', {
  ...MIRROR_COMMON,
  /** QEMU 10.1's. */
  'target-is-zero': optional(bool),
  'filter-node-name': optional(str),
  ...PERSISTED,
});

const BACKUP_PERFORMANCE = struct('BackupPerf', {
  'use-copy-range': optional(bool),
  'max-workers': optional(int64),
  'max-chunk': optional(int64),
  /** QEMU 9.2's. */
  'min-cluster-size': optional(size),
});

/** Between guests and a slow target: docs/FLEECING.md. */
const FLEECING = struct('XFleecing', {
  /** Where the buffer's file, which has no name, lies. */
  folder: required(str),
  'max-bytes': required(size),
  'on-full': optional(enumOf('XFleecingOnFull', ['fail', 'spill'])),
  /** Where what is beyond goes. */
  'spill-folder': optional(str),
});

const BACKUP_COMMON = {
  ...JOB_COMMON,
  device: required(str),
  target: required(str),
  sync: required(SYNC),
  bitmap: optional(str),
  'bitmap-mode': optional(enumOf('BitmapSyncMode', ['on-success', 'never', 'always'])),
  compress: optional(bool),
  'on-source-error': optional(ON_ERROR),
  'on-target-error': optional(ON_ERROR),
  'filter-node-name': optional(str),
  /** QEMU 10.1's. */
  'on-cbw-error': optional(ON_CBW_ERROR),
  /** QEMU 9.1's. */
  'discard-source': optional(bool),
  'x-perf': marked('unstable', optional(BACKUP_PERFORMANCE)),
  'x-fleecing': extension(optional(FLEECING)),
  ...CHECKED_COPY,
  ...DRY_RUN_ARGUMENT,
} as const;

export const DriveBackup = struct('DriveBackup', {
  ...BACKUP_COMMON,
  format: optional(str),
  mode: optional(NEW_IMAGE_MODE),
});

export const BlockdevBackup = struct('BlockdevBackup', { ...BACKUP_COMMON, ...PERSISTED });

export const BlockdevSnapshotSync = struct('BlockdevSnapshotSync', {
  device: optional(str),
  'node-name': optional(str),
  'snapshot-file': required(str),
  'snapshot-node-name': optional(str),
  format: optional(str),
  mode: optional(NEW_IMAGE_MODE),
  ...DRY_RUN_ARGUMENT,
});

export const BlockdevSnapshot = struct('BlockdevSnapshot', {
  node: required(str),
  overlay: required(str),
  ...DRY_RUN_ARGUMENT,
});

export const NodeName = struct('node-name-arg', { 'node-name': required(str) });
export const QueryNamedBlockNodes = struct('query-named-block-nodes-arg', { flat: optional(bool) });
export const QueryBlockStats = struct('query-blockstats-arg', { 'query-nodes': optional(bool) });

export const JobId = struct('job-id-arg', { id: required(str) });
export const JobDevice = struct('block-job-device-arg', { device: required(str) });
export const BlockJobCancel = struct('block-job-cancel-arg', {
  device: required(str),
  force: optional(bool),
});
export const BlockJobSetSpeed = struct('block-job-set-speed-arg', {
  device: required(str),
  speed: required(int64),
});

const JOB_TYPES = [
  ...(['commit', 'stream', 'mirror', 'backup', 'create', 'amend'] as const),
  ...(['snapshot-load', 'snapshot-save', 'snapshot-delete'] as const),
] as const;

/** QEMU 8.2's; only of mirrors there is something to change. */
export const BlockJobChange = union(
  'JobChangeOptions',
  {
    id: required(str),
    type: required(enumOf('JobType', JOB_TYPES)),
  },
  'type',
  { mirror: struct('BlockJobChangeOptionsMirror', { 'copy-mode': required(COPY_MODE) }) },
);

export const NbdServerStart = struct('nbd-server-start-arg', {
  addr: required(SocketAddressLegacy),
  'tls-creds': optional(str),
  'tls-authz': optional(str),
  'max-connections': optional(uint32),
  /** QEMU 10's. */
  'handshake-max-seconds': optional(uint32),
});
export const NbdServerAdd = struct('NbdServerAddOptions', {
  name: optional(str),
  description: optional(str),
  device: required(str),
  writable: optional(bool),
  bitmap: optional(str),
});
const REMOVE_MODE = enumOf('BlockExportRemoveMode', ['safe', 'hard']);
export const NbdServerRemove = struct('nbd-server-remove-arg', {
  name: required(str),
  mode: optional(REMOVE_MODE),
});
export const BlockExportDel = struct('block-export-del-arg', {
  id: required(str),
  mode: optional(REMOVE_MODE),
});

export const HumanMonitorCommand = struct('human-monitor-command-arg', {
  'command-line': required(str),
  'cpu-index': optional(int),
});

/** What else is given is the model's: see attach/device-properties. */
export const DeviceAdd: Type<JsonObject> = {
  ...struct('device_add-arg', { driver: required(str), bus: optional(str), id: optional(str) }),
  parse: (value) => {
    if (isJsonObject(value)) return value;
    throw wrongType('arguments', 'object');
  },
  fill: (value) => value,
};
export const DeviceDel = struct('device_del-arg', { id: required(str) });

const DISK_NAME = {
  device: marked('deprecated', optional(str)),
  id: optional(str),
} as const;
const TRAY = { ...DISK_NAME, force: optional(bool) } as const;
export const Eject = struct('eject-arg', TRAY);
export const OpenTray = struct('blockdev-open-tray-arg', TRAY);
export const CloseTray = struct('blockdev-close-tray-arg', DISK_NAME);
export const RemoveMedium = struct('blockdev-remove-medium-arg', { id: required(str) });
export const InsertMedium = struct('blockdev-insert-medium-arg', {
  id: required(str),
  'node-name': required(str),
});
export const ChangeMedium = struct('blockdev-change-medium-arg', {
  ...DISK_NAME,
  filename: required(str),
  format: optional(str),
  force: optional(bool),
  'read-only-mode': optional(enumOf('BlockdevChangeReadOnlyMode', ['retain', 'read-only', 'read-write'])),
});

export const ChangeBackingFile = struct('change-backing-file-arg', {
  device: required(str),
  'image-node-name': required(str),
  'backing-file': required(str),
});
export const BlockSetWriteThreshold = struct('block-set-write-threshold-arg', {
  'node-name': required(str),
  'write-threshold': required(size),
});
export const BlockResize = struct('block_resize-arg', {
  device: optional(str),
  'node-name': optional(str),
  size: required(int),
});
/** Of the drivers that are there, as blockdev-add takes them. */
export function blockdevReopen(options: Type<BlockdevOptions>): Type<{ options: BlockdevOptions[] }> {
  return struct('blockdev-reopen-arg', { options: required(arrayOf(options)) });
}
/** QEMU 10's. */
export const BlockdevSetActive = struct('blockdev-set-active-arg', {
  'node-name': optional(str),
  active: required(bool),
});
export const BlockdevCreate = struct('blockdev-create-arg', {
  'job-id': required(str),
  options: required(BlockdevCreateOptions),
});

function wrapped<T>(name: string, type: Type<T>): Type<{ data: T }> {
  return struct(`${name}Wrapper`, { data: required(type) });
}

export const TransactionAction = union(
  'TransactionAction',
  {
    type: required(
      enumOf(
        'TransactionActionKind',
        [
          ...([
            'abort',
            'block-dirty-bitmap-add',
            'block-dirty-bitmap-clear',
            'block-dirty-bitmap-enable',
          ] as const),
          ...([
            'block-dirty-bitmap-disable',
            'block-dirty-bitmap-remove',
            'blockdev-backup',
            'blockdev-snapshot',
          ] as const),
          ...(['blockdev-snapshot-sync', 'drive-backup', 'block-dirty-bitmap-merge'] as const),
          'blockdev-snapshot-internal-sync',
        ],
        [],
        { 'drive-backup': ['deprecated'] },
      ),
    ),
  },
  'type',
  {
    abort: wrapped('Abort', NO_ARGUMENTS),
    'block-dirty-bitmap-add': wrapped('BlockDirtyBitmapAdd', BitmapAdd),
    'block-dirty-bitmap-clear': wrapped('BlockDirtyBitmap', BitmapName),
    'block-dirty-bitmap-enable': wrapped('BlockDirtyBitmap', BitmapName),
    'block-dirty-bitmap-disable': wrapped('BlockDirtyBitmap', BitmapName),
    'block-dirty-bitmap-merge': wrapped('BlockDirtyBitmapMerge', BitmapMerge),
    'block-dirty-bitmap-remove': wrapped('BlockDirtyBitmap', BitmapName),
    'blockdev-backup': wrapped('BlockdevBackup', BlockdevBackup),
    'blockdev-snapshot': wrapped('BlockdevSnapshot', BlockdevSnapshot),
    'blockdev-snapshot-internal-sync': wrapped(
      'BlockdevSnapshotInternal',
      RARE_COMMANDS['blockdev-snapshot-internal-sync'],
    ),
    'blockdev-snapshot-sync': wrapped('BlockdevSnapshotSync', BlockdevSnapshotSync),
    'drive-backup': wrapped('DriveBackup', DriveBackup),
  },
);
export type TransactionAction = Infer<typeof TransactionAction>;

export const Transaction = struct('transaction-arg', {
  actions: required(arrayOf(TransactionAction)),
  properties: optional(
    struct('TransactionProperties', {
      'completion-mode': optional(enumOf('ActionCompletionMode', ['individual', 'grouped'])),
    }),
  ),
});

export { BlockdevOptions, BlockExportOptions };

/** The arguments of each command, by its name. Commands that take none are of type NO_ARGUMENTS. */
export const COMMANDS = {
  ...BITMAP_COMMANDS,
  ...DESCRIPTOR_COMMANDS,
  ...MACHINE_COMMANDS,
  ...MIGRATION_COMMANDS,
  ...QOM_COMMANDS,
  'block-commit': BlockCommit,
  'block-export-add': BlockExportOptions,
  'block-export-del': BlockExportDel,
  'block-job-cancel': BlockJobCancel,
  'block-job-change': BlockJobChange,
  'block-job-complete': JobDevice,
  'block-job-dismiss': JobId,
  'block-job-finalize': JobId,
  'block-job-pause': JobDevice,
  'block-job-resume': JobDevice,
  'block-job-set-speed': BlockJobSetSpeed,
  'block-set-write-threshold': BlockSetWriteThreshold,
  'block-stream': BlockStream,
  block_resize: BlockResize,
  block_set_io_throttle: BlockSetIoThrottle,
  'blockdev-add': BlockdevOptions,
  'blockdev-backup': BlockdevBackup,
  'blockdev-change-medium': ChangeMedium,
  'blockdev-close-tray': CloseTray,
  'blockdev-create': BlockdevCreate,
  'blockdev-del': NodeName,
  'blockdev-insert-medium': InsertMedium,
  'blockdev-mirror': BlockdevMirror,
  'blockdev-open-tray': OpenTray,
  'blockdev-remove-medium': RemoveMedium,
  'blockdev-reopen': blockdevReopen(BlockdevOptions),
  'blockdev-set-active': BlockdevSetActive,
  'blockdev-snapshot': BlockdevSnapshot,
  'blockdev-snapshot-sync': BlockdevSnapshotSync,
  'change-backing-file': ChangeBackingFile,
  cont: NO_ARGUMENTS,
  device_add: DeviceAdd,
  device_del: DeviceDel,
  'drive-backup': DriveBackup,
  'drive-mirror': DriveMirror,
  eject: Eject,
  'human-monitor-command': HumanMonitorCommand,
  'job-cancel': JobId,
  'job-complete': JobId,
  'job-dismiss': JobId,
  'job-finalize': JobId,
  'job-pause': JobId,
  'job-resume': JobId,
  'nbd-server-add': NbdServerAdd,
  'nbd-server-remove': NbdServerRemove,
  'nbd-server-start': NbdServerStart,
  'nbd-server-stop': NO_ARGUMENTS,
  'query-block': NO_ARGUMENTS,
  'query-block-exports': NO_ARGUMENTS,
  'query-block-jobs': NO_ARGUMENTS,
  'query-blockstats': QueryBlockStats,
  'query-commands': NO_ARGUMENTS,
  'query-jobs': NO_ARGUMENTS,
  'query-named-block-nodes': QueryNamedBlockNodes,
  'query-qmp-schema': NO_ARGUMENTS,
  'query-status': NO_ARGUMENTS,
  'query-version': NO_ARGUMENTS,
  quit: NO_ARGUMENTS,
  stop: NO_ARGUMENTS,
  transaction: Transaction,
  'x-debug-query-block-graph': NO_ARGUMENTS,
  ...CHARDEV_COMMANDS,
  ...RARE_COMMANDS,
  ...TRACE_COMMANDS,
  ...EXTENSION_COMMANDS,
} as const;

export type CommandName = keyof typeof COMMANDS;

/** What introspection says of commands themselves. */
export const COMMAND_FEATURES: { readonly [command: string]: Features } = {
  'blockdev-snapshot': ['allow-write-only-overlay'],
  device_add: ['json-cli', 'json-cli-hotplug'],
  'drive-backup': ['deprecated'],
  'human-monitor-command': ['savevm-monitor-nodes'],
  'nbd-server-add': ['deprecated'],
  'nbd-server-remove': ['deprecated'],
  'x-blockdev-amend': ['unstable'],
  'x-blockdev-change': ['unstable'],
  'x-blockdev-set-iothread': ['unstable'],
  'x-debug-block-dirty-bitmap-sha256': ['unstable'],
  'x-debug-query-block-graph': ['unstable'],
  'x-move-claim': ['unstable'],
  'x-move-release': ['unstable'],
  'x-query-move': ['unstable'],
} satisfies { readonly [command in CommandName]?: Features };
export type CommandArguments<N extends CommandName> = Infer<(typeof COMMANDS)[N]>;
/** Arguments may be left out where none is required. */
export type OptionalArguments<N extends CommandName> =
  Record<never, never> extends CommandArguments<N>
    ? [args?: CommandArguments<N>]
    : [args: CommandArguments<N>];
export type CommandResult<N extends CommandName> = N extends keyof ReturnTypes
  ? Infer<ReturnTypes[N]>
  : Record<string, never>;
