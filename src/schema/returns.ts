import { DISK_MAP_RETURNS } from './disk-map.js';
import { FILE_USE_RETURNS } from './file-use.js';
import { JobProgressInfo } from './job-progress.js';
import { BITMAP_RETURNS } from './bitmap-commands.js';
import { BlockDeviceStats, BlockStats } from './block-stats.js';
import { CHARDEV_RETURNS } from './chardev.js';
import { DESCRIPTOR_RETURNS } from './descriptors.js';
import { OPTIONAL_LIMITS } from './io-throttle.js';
import { MACHINE_RETURNS } from './machine.js';
import { MIGRATION_RETURNS } from './migration.js';
import { PERSISTED_JOB_RETURNS } from './persisted-jobs.js';
import { DRY_RUN_RETURNS } from './dry-run.js';
import { MOVE_RETURNS } from './move.js';
import { POINT_RETURNS } from './points.js';
import { QOM_RETURNS } from './qom.js';
import { RARE_RETURNS, SnapshotInfo } from './rare-commands.js';
import { SESSION_RETURNS } from './sessions.js';
import { TAKEOVER_RETURNS } from './takeover.js';
import { TRACE_RETURNS } from './trace.js';
import { TRACKING_RETURNS } from './tracking.js';
import {
  any,
  arrayOf,
  bool,
  enumOf,
  extension,
  int,
  int64,
  lazy,
  marked,
  optional,
  required,
  str,
  struct,
  type StructOf,
  type Type,
  uint32,
  union,
} from './types.js';

/** What commands return, with the members that livedisk fills in. Commands that are not here return nothing. */

const VersionTriple = struct('VersionTriple', {
  major: required(int),
  minor: required(int),
  micro: required(int),
});

export const JobTypeName = enumOf('JobType', [
  ...(['commit', 'stream', 'mirror', 'backup', 'create', 'amend'] as const),
  ...(['snapshot-load', 'snapshot-save', 'snapshot-delete'] as const),
]);

export const JobStatusName = enumOf('JobStatus', [
  ...(['undefined', 'created', 'running', 'paused', 'ready', 'standby'] as const),
  ...(['waiting', 'pending', 'aborting', 'concluded', 'null'] as const),
]);

const IO_STATUS = enumOf('BlockDeviceIoStatus', ['ok', 'failed', 'nospace']);

const ImageFacts = {
  filename: required(str),
  format: required(str),
  'dirty-flag': optional(bool),
  'actual-size': optional(int),
  'virtual-size': required(int),
  'cluster-size': optional(int),
  compressed: optional(bool),
  'backing-filename': optional(str),
  'full-backing-filename': optional(str),
  'backing-filename-format': optional(str),
  snapshots: optional(arrayOf(SnapshotInfo)),
} as const;

const Qcow2BitmapInfo = struct('Qcow2BitmapInfo', {
  name: required(str),
  granularity: required(uint32),
  flags: required(arrayOf(enumOf('Qcow2BitmapInfoFlags', ['in-use', 'auto']))),
});

const FormatFacts = {
  'format-specific': optional(
    union(
      'ImageInfoSpecific',
      { type: required(enumOf('ImageInfoSpecificKind', ['qcow2', 'vmdk'])) },
      'type',
      {
        qcow2: struct('ImageInfoSpecificQCow2Wrapper', {
          data: required(
            struct('ImageInfoSpecificQCow2', {
              compat: required(str),
              'data-file': optional(str),
              'data-file-raw': optional(bool),
              'extended-l2': optional(bool),
              'lazy-refcounts': optional(bool),
              corrupt: optional(bool),
              'refcount-bits': required(int),
              bitmaps: optional(arrayOf(Qcow2BitmapInfo)),
              'compression-type': required(enumOf('Qcow2CompressionType', ['zlib', 'zstd'])),
            }),
          ),
        }),
        vmdk: struct('ImageInfoSpecificVmdkWrapper', {
          data: required(
            struct('ImageInfoSpecificVmdk', {
              'create-type': required(str),
              cid: required(int),
              'parent-cid': required(int),
              extents: required(arrayOf(lazy('ImageInfo', (): Type<unknown> => ImageInfo))),
            }),
          ),
        }),
      },
    ),
  ),
} as const;

export type ImageInfo = StructOf<typeof ImageFacts> &
  StructOf<typeof FormatFacts> & { 'backing-image'?: ImageInfo };

const ImageInfo: Type<ImageInfo> = struct('ImageInfo', {
  ...ImageFacts,
  'backing-image': optional(lazy('ImageInfo', (): Type<ImageInfo> => ImageInfo)),
  ...FormatFacts,
});

const BlockDeviceInfo = struct('BlockDeviceInfo', {
  file: required(str),
  'node-name': optional(str),
  ro: required(bool),
  drv: required(str),
  backing_file: optional(str),
  backing_file_depth: required(int),
  encrypted: required(bool),
  detect_zeroes: required(enumOf('BlockdevDetectZeroesOptions', ['off', 'on', 'unmap'])),
  bps: required(int),
  bps_rd: required(int),
  bps_wr: required(int),
  iops: required(int),
  iops_rd: required(int),
  iops_wr: required(int),
  ...OPTIONAL_LIMITS,
  group: optional(str),
  image: required(ImageInfo),
  cache: required(
    struct('BlockdevCacheInfo', {
      writeback: required(bool),
      direct: required(bool),
      'no-flush': required(bool),
    }),
  ),
  write_threshold: required(int),
  'dirty-bitmaps': optional(
    arrayOf(
      struct('BlockDirtyInfo', {
        name: optional(str),
        count: required(int),
        granularity: required(int),
        recording: required(bool),
        busy: required(bool),
        persistent: required(bool),
        inconsistent: optional(bool),
      }),
    ),
  ),
});

const BlockInfo = struct('BlockInfo', {
  device: required(str),
  qdev: optional(str),
  type: required(str),
  removable: required(bool),
  locked: required(bool),
  inserted: optional(BlockDeviceInfo),
  tray_open: optional(bool),
  'io-status': optional(IO_STATUS),
});

const X_PROGRESS = { 'x-progress': extension(optional(JobProgressInfo)) } as const;

const BlockJobInfo = struct('BlockJobInfo', {
  type: required(str),
  device: required(str),
  len: required(int),
  offset: required(int),
  busy: required(bool),
  paused: required(bool),
  speed: required(int64),
  'io-status': required(IO_STATUS),
  ready: required(bool),
  status: required(JobStatusName),
  'auto-finalize': required(bool),
  'auto-dismiss': required(bool),
  error: optional(str),
  /** QEMU 8.2's; of mirrors that write to both sides. */
  'actively-synced': optional(bool),
  ...X_PROGRESS,
});

const JobInfo = struct('JobInfo', {
  id: required(str),
  type: required(JobTypeName),
  status: required(JobStatusName),
  'current-progress': required(int),
  'total-progress': required(int),
  error: optional(str),
  ...X_PROGRESS,
});

const BlockExportInfo = struct('BlockExportInfo', {
  id: required(str),
  type: required(enumOf('BlockExportType', ['nbd', 'vhost-user-blk'])),
  'node-name': required(str),
  'shutting-down': required(bool),
});

const ExportStats = struct('XExportStats', { id: required(str), stats: required(BlockDeviceStats) });

const StatusInfo = struct('StatusInfo', {
  running: required(bool),
  singlestep: required(bool),
  status: required(
    enumOf('RunState', [
      'finish-migrate',
      'inmigrate',
      'io-error',
      'paused',
      'postmigrate',
      'prelaunch',
      'restore-vm',
      'running',
      'save-vm',
      'shutdown',
    ]),
  ),
});

const PERMISSIONS = arrayOf(
  enumOf('BlockPermission', ['consistent-read', 'write', 'write-unchanged', 'resize']),
);

const BlockGraph = struct('XDbgBlockGraph', {
  nodes: required(
    arrayOf(
      struct('XDbgBlockGraphNode', {
        id: required(int),
        type: required(enumOf('XDbgBlockGraphNodeType', ['block-backend', 'block-job', 'block-driver'])),
        name: required(str),
      }),
    ),
  ),
  edges: required(
    arrayOf(
      struct('XDbgBlockGraphEdge', {
        parent: required(int),
        child: required(int),
        name: required(str),
        perm: required(PERMISSIONS),
        'shared-perm': required(PERMISSIONS),
      }),
    ),
  ),
});

const FEATURES = optional(arrayOf(str));

const SchemaInfo = union(
  'SchemaInfo',
  {
    name: required(str),
    'meta-type': required(
      enumOf('SchemaMetaType', ['builtin', 'enum', 'array', 'object', 'alternate', 'command', 'event']),
    ),
    features: FEATURES,
  },
  'meta-type',
  {
    builtin: struct('SchemaInfoBuiltin', {
      'json-type': required(
        enumOf('JSONType', ['string', 'number', 'int', 'boolean', 'null', 'object', 'array', 'value']),
      ),
    }),
    enum: struct('SchemaInfoEnum', {
      members: required(arrayOf(struct('SchemaInfoEnumMember', { name: required(str), features: FEATURES }))),
      values: marked('deprecated', required(arrayOf(str))),
    }),
    array: struct('SchemaInfoArray', { 'element-type': required(str) }),
    object: struct('SchemaInfoObject', {
      members: required(
        arrayOf(
          struct('SchemaInfoObjectMember', {
            name: required(str),
            type: required(str),
            default: optional(any),
            features: FEATURES,
          }),
        ),
      ),
      tag: optional(str),
      variants: optional(
        arrayOf(struct('SchemaInfoObjectVariant', { case: required(str), type: required(str) })),
      ),
    }),
    alternate: struct('SchemaInfoAlternate', {
      members: required(arrayOf(struct('SchemaInfoAlternateMember', { type: required(str) }))),
    }),
    command: struct('SchemaInfoCommand', {
      'arg-type': required(str),
      'ret-type': required(str),
      'allow-oob': optional(bool),
    }),
    event: struct('SchemaInfoEvent', { 'arg-type': required(str) }),
  },
);

const RESULTS = {
  ...BITMAP_RETURNS,
  ...CHARDEV_RETURNS,
  ...DESCRIPTOR_RETURNS,
  ...MACHINE_RETURNS,
  ...MIGRATION_RETURNS,
  ...MOVE_RETURNS,
  ...DRY_RUN_RETURNS,
  ...POINT_RETURNS,
  ...QOM_RETURNS,
  ...RARE_RETURNS,
  ...TRACE_RETURNS,
  ...PERSISTED_JOB_RETURNS,
  ...DISK_MAP_RETURNS,
  ...FILE_USE_RETURNS,
  ...TRACKING_RETURNS,
  ...SESSION_RETURNS,
  ...TAKEOVER_RETURNS,
  'human-monitor-command': str,
  'query-block': arrayOf(BlockInfo),
  'query-block-exports': arrayOf(BlockExportInfo),
  'query-block-jobs': arrayOf(BlockJobInfo),
  'query-blockstats': arrayOf(BlockStats),
  'query-commands': arrayOf(struct('CommandInfo', { name: required(str) })),
  'query-jobs': arrayOf(JobInfo),
  'query-named-block-nodes': arrayOf(BlockDeviceInfo),
  'query-qmp-schema': arrayOf(SchemaInfo),
  'query-status': StatusInfo,
  'query-version': struct('VersionInfo', { qemu: required(VersionTriple), package: required(str) }),
  'x-debug-query-block-graph': BlockGraph,
  'x-query-export-stats': arrayOf(ExportStats),
} satisfies { readonly [command: string]: Type<unknown> };

export const RETURNS: { readonly [command: string]: Type<unknown> } = RESULTS;
export type ReturnTypes = typeof RESULTS;
