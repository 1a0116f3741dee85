import { BLKDEBUG_EVENTS } from './blkdebug-events.js';
import {
  alternate,
  arrayOf,
  bool,
  enumOf,
  type Infer,
  int,
  later,
  lazy,
  nullType,
  optional,
  required,
  size,
  str,
  struct,
  type Type,
  union,
} from './types.js';

/** QAPI's block types (block-core.json, block-export.json of QEMU 7.2) as far as livedisk knows them. */

const CACHE = struct('BlockdevCacheOptions', { direct: optional(bool), 'no-flush': optional(bool) });

export const InetAddress = struct('InetSocketAddress', {
  host: required(str),
  port: required(str),
  numeric: later(bool),
  to: later(int),
  ipv4: later(bool),
  ipv6: later(bool),
  'keep-alive': later(bool),
});
export const UnixAddress = struct('UnixSocketAddress', {
  path: required(str),
  abstract: later(bool),
  tight: later(bool),
});
export const FdAddress = struct('String', { str: required(str) });

/** Flat: type beside the members. */
export const SocketAddress = union(
  'SocketAddress',
  { type: required(enumOf('SocketAddressType', ['inet', 'unix', 'fd'], ['vsock'])) },
  'type',
  {
    inet: InetAddress,
    unix: UnixAddress,
    fd: FdAddress,
  },
);

/** With a `data` member, as nbd-server-start has it. */
export const SocketAddressLegacy = union(
  'SocketAddressLegacy',
  { type: required(enumOf('SocketAddressType', ['inet', 'unix', 'fd'], ['vsock'])) },
  'type',
  {
    inet: struct('InetSocketAddressWrapper', { data: required(InetAddress) }),
    unix: struct('UnixSocketAddressWrapper', { data: required(UnixAddress) }),
    fd: struct('StringWrapper', { data: required(FdAddress) }),
  },
);

const DRIVERS = ['blkdebug', 'file', 'nbd', 'null-co', 'qcow2', 'raw'] as const;
/** Drivers of QEMU that livedisk does not have. */
const OTHER_DRIVERS = [
  ...[
    'blklogwrites',
    'blkreplay',
    'blkverify',
    'bochs',
    'cloop',
    'compress',
    'copy-before-write',
    'copy-on-read',
    'dmg',
  ],
  ...[
    'ftp',
    'ftps',
    'gluster',
    'host_cdrom',
    'host_device',
    'http',
    'https',
    'iscsi',
    'luks',
    'nfs',
    'null-aio',
    'nvme',
  ],
  ...[
    'parallels',
    'preallocate',
    'qcow',
    'qed',
    'quorum',
    'rbd',
    'replication',
    'snapshot-access',
    'ssh',
    'throttle',
  ],
  ...['vdi', 'vhdx', 'vmdk', 'vpc', 'vvfat'],
];

const GENERIC = {
  driver: required(enumOf('BlockdevDriver', DRIVERS, OTHER_DRIVERS)),
  'node-name': optional(str),
  discard: optional(enumOf('BlockdevDiscardOptions', ['ignore', 'unmap'])),
  cache: optional(CACHE),
  'read-only': optional(bool),
  'auto-read-only': optional(bool),
  'force-share': optional(bool),
  'detect-zeroes': optional(enumOf('BlockdevDetectZeroesOptions', ['off', 'on', 'unmap'])),
} as const;

/** Children may be nested options, so the type refers to itself. */
export type BlockdevOptions = {
  driver: (typeof DRIVERS)[number];
  'node-name'?: string;
  'read-only'?: boolean;
} & {
  [key: string]: unknown;
};

const lazyOptions = lazy('BlockdevOptions', () => BlockdevOptions);

const BlockdevRef = alternate('BlockdevRef', [lazyOptions, str]);
const BlockdevRefOrNull = alternate('BlockdevRefOrNull', [lazyOptions, str, nullType]);

const BLKDEBUG_EVENT = enumOf('BlkdebugEvent', BLKDEBUG_EVENTS);

const INJECT_ERROR = struct('BlkdebugInjectErrorOptions', {
  event: required(BLKDEBUG_EVENT),
  state: optional(int),
  iotype: optional(
    enumOf('BlkdebugIOType', ['read', 'write', 'write-zeroes', 'discard', 'flush', 'block-status']),
  ),
  errno: optional(int),
  sector: optional(int),
  once: optional(bool),
  immediately: optional(bool),
});
const SET_STATE = struct('BlkdebugSetStateOptions', {
  event: required(BLKDEBUG_EVENT),
  state: optional(int),
  new_state: required(int),
});
const DELAY = struct('XBlkdebugDelay', {
  event: optional(BLKDEBUG_EVENT),
  iotype: optional(str),
  'delay-ms': required(int),
});

const QCOW2 = struct('BlockdevOptionsQcow2', {
  file: required(BlockdevRef),
  backing: optional(BlockdevRefOrNull),
  'lazy-refcounts': later(bool),
  'pass-discard-request': later(bool),
  'pass-discard-snapshot': later(bool),
  'pass-discard-other': later(bool),
  'overlap-check': later(str),
  'cache-size': later(int),
  'l2-cache-size': later(int),
  'l2-cache-entry-size': later(int),
  'refcount-cache-size': later(int),
  'cache-clean-interval': later(int),
  encrypt: later(struct('BlockdevQcow2Encryption', {})),
  'data-file': later(BlockdevRef),
});

const CASES = {
  file: struct('BlockdevOptionsFile', {
    filename: required(str),
    'pr-manager': later(str),
    locking: optional(enumOf('OnOffAuto', ['auto', 'on', 'off'])),
    aio: optional(enumOf('BlockdevAioOptions', ['threads', 'native', 'io_uring'])),
    'aio-max-batch': later(int),
    'drop-cache': later(bool),
    'x-check-cache-dropped': later(bool),
  }),
  'null-co': struct('BlockdevOptionsNull', {
    size: optional(int),
    'latency-ns': optional(int),
    'read-zeroes': optional(bool),
  }),
  raw: struct('BlockdevOptionsRaw', {
    file: required(BlockdevRef),
    offset: optional(int),
    size: optional(int),
  }),
  nbd: struct('BlockdevOptionsNbd', {
    server: required(SocketAddress),
    export: optional(str),
    'tls-creds': later(str),
    'tls-hostname': later(str),
    'x-dirty-bitmap': later(str),
    'reconnect-delay': later(int),
    'open-timeout': later(int),
  }),
  blkdebug: struct('BlockdevOptionsBlkdebug', {
    image: required(BlockdevRef),
    config: later(str),
    align: optional(int),
    'max-transfer': optional(int),
    'opt-write-zero': later(int),
    'max-write-zero': later(int),
    'opt-discard': later(int),
    'max-discard': later(int),
    'inject-error': optional(arrayOf(INJECT_ERROR)),
    'set-state': optional(arrayOf(SET_STATE)),
    'x-delay': optional(arrayOf(DELAY)),
  }),
  qcow2: QCOW2,
};

export const BlockdevOptions = union('BlockdevOptions', GENERIC, 'driver', CASES) as Type<BlockdevOptions>;

export const BlockExportOptions = union(
  'BlockExportOptions',
  {
    type: required(enumOf('BlockExportType', ['nbd'], ['vhost-user-blk', 'fuse', 'vduse-blk'])),
    id: required(str),
    'fixed-iothread': later(bool),
    iothread: later(str),
    'node-name': required(str),
    writable: optional(bool),
    writethrough: optional(bool),
  },
  'type',
  {
    nbd: struct('BlockExportOptionsNbd', {
      name: optional(str),
      description: optional(str),
      bitmaps: later(arrayOf(str)),
      'allocation-depth': later(bool),
    }),
  },
);
export type BlockExportOptions = Infer<typeof BlockExportOptions>;

export const BlockdevCreateOptions = union(
  'BlockdevCreateOptions',
  { driver: required(enumOf('BlockdevDriver', DRIVERS, OTHER_DRIVERS)) },
  'driver',
  {
    file: struct('BlockdevCreateOptionsFile', {
      filename: required(str),
      size: required(size),
      preallocation: later(str),
      nocow: later(bool),
      'extent-size-hint': later(size),
    }),
    qcow2: struct('BlockdevCreateOptionsQcow2', {
      file: required(BlockdevRef),
      'data-file': later(BlockdevRef),
      'data-file-raw': later(bool),
      'extended-l2': later(bool),
      size: required(size),
      version: optional(enumOf('BlockdevQcow2Version', ['v3'], ['v2'])),
      'backing-file': optional(str),
      'backing-fmt': optional(enumOf('BlockdevDriver', DRIVERS, OTHER_DRIVERS)),
      encrypt: later(struct('QCryptoBlockCreateOptions', {})),
      'cluster-size': optional(size),
      preallocation: later(str),
      'lazy-refcounts': later(bool),
      'refcount-bits': later(int),
      'compression-type': later(str),
    }),
  },
);
