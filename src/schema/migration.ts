import { WholeMoveInfo } from './move.js';
import { SocketAddress } from './socket-address.js';
import {
  alternate,
  arrayOf,
  bool,
  enumOf,
  exactSize,
  extension,
  type Infer,
  int,
  isJsonObject,
  later,
  marked,
  nullType,
  number,
  optional,
  required,
  size,
  str,
  struct,
  type Type,
  uint32,
  uint8,
  union,
} from './types.js';

/** Moves of a machine (migration.json and run-state.json of QEMU 7.2; channels of 8.2). */

/** All that QEMU 7.2 knows, in its order. */
export const CAPABILITIES = [
  ...(['xbzrle', 'rdma-pin-all', 'auto-converge', 'zero-blocks', 'compress', 'events'] as const),
  ...(['postcopy-ram', 'x-colo', 'release-ram', 'block', 'return-path', 'pause-before-switchover'] as const),
  ...(['multifd', 'dirty-bitmaps', 'postcopy-blocktime', 'late-block-activate', 'x-ignore-shared'] as const),
  ...(['validate-uuid', 'background-snapshot', 'zero-copy-send', 'postcopy-preempt'] as const),
] as const;

const CAPABILITY = enumOf('MigrationCapability', CAPABILITIES, [], {
  'x-colo': ['unstable'],
  'x-ignore-shared': ['unstable'],
});

const CapabilityStatus = struct('MigrationCapabilityStatus', {
  capability: required(CAPABILITY),
  state: required(bool),
});

const STATUS = enumOf('MigrationStatus', [
  ...(['none', 'setup', 'cancelling', 'cancelled', 'active', 'postcopy-active', 'postcopy-paused'] as const),
  ...([
    'postcopy-recover',
    'completed',
    'failed',
    'colo',
    'pre-switchover',
    'device',
    'wait-unplug',
  ] as const),
]);
export type MigrationStatus = Infer<typeof STATUS>;

const BitmapMapping = struct('BitmapMigrationNodeAlias', {
  'node-name': required(str),
  alias: required(str),
  bitmaps: required(
    arrayOf(
      struct('BitmapMigrationBitmapAlias', {
        name: required(str),
        alias: required(str),
        transform: optional(struct('BitmapMigrationBitmapAliasTransform', { persistent: optional(bool) })),
      }),
    ),
  ),
});
export type BitmapMapping = Infer<typeof BitmapMapping>;

const COMPRESSION = enumOf('MultiFDCompression', ['none', 'zlib', 'zstd']);

const PARAMETERS = {
  'announce-initial': optional(exactSize),
  'announce-max': optional(exactSize),
  'announce-rounds': optional(exactSize),
  'announce-step': optional(exactSize),
  'block-bitmap-mapping': optional(arrayOf(BitmapMapping)),
  'block-incremental': optional(bool),
  'compress-level': optional(uint8),
  'compress-threads': optional(uint8),
  'compress-wait-thread': optional(bool),
  'cpu-throttle-increment': optional(uint8),
  'cpu-throttle-initial': optional(uint8),
  'cpu-throttle-tailslow': optional(bool),
  'decompress-threads': optional(uint8),
  'downtime-limit': optional(exactSize),
  'max-bandwidth': optional(exactSize),
  'max-cpu-throttle': optional(uint8),
  'max-postcopy-bandwidth': optional(exactSize),
  'multifd-channels': optional(uint8),
  'multifd-compression': optional(COMPRESSION),
  'multifd-zlib-level': optional(uint8),
  'multifd-zstd-level': optional(uint8),
  'throttle-trigger-threshold': optional(uint8),
  'x-checkpoint-delay': marked('unstable', optional(uint32)),
  'xbzrle-cache-size': optional(exactSize),
} as const;

const STR_OR_NULL = alternate('StrOrNull', [str, nullType]);

export const MigrateSetParameters = struct('MigrateSetParameters', {
  ...PARAMETERS,
  'tls-authz': optional(STR_OR_NULL),
  'tls-creds': optional(STR_OR_NULL),
  'tls-hostname': optional(STR_OR_NULL),
});
export type MigrateSetParameters = Infer<typeof MigrateSetParameters>;

const Shown = struct('MigrationParameters', {
  ...PARAMETERS,
  'tls-authz': optional(str),
  'tls-creds': optional(str),
  'tls-hostname': optional(str),
});
type Shown = Infer<typeof Shown>;
/** All but the mapping always have a value. */
export type MigrationParameters = Required<Omit<Shown, 'block-bitmap-mapping'>> &
  Pick<Shown, 'block-bitmap-mapping'>;

const EXEC = struct('MigrationExecCommand', { args: required(arrayOf(str)) });
const FILE = struct('FileMigrationArgs', { filename: required(str), offset: required(size) });
const TRANSPORT = enumOf('MigrationAddressType', ['socket', 'exec', 'file']);

export type MigrationAddress =
  | { transport: 'socket'; socket: Infer<typeof SocketAddress> }
  | { transport: 'exec'; exec: Infer<typeof EXEC> }
  | { transport: 'file'; file: Infer<typeof FILE> };

const TAG = struct('MigrationAddress', { transport: required(TRANSPORT) });

/** QEMU 8.2's: where a machine goes, in place of a URI. One case is a union itself, whose members stand beside. */
const MigrationAddress: Type<MigrationAddress> = {
  name: 'MigrationAddress',
  description: {
    kind: 'object',
    members: { transport: required(TRANSPORT) },
    variants: {
      tag: 'transport',
      cases: new Map<string, Type<unknown>>([
        ['socket', SocketAddress],
        ['exec', EXEC],
        ['file', FILE],
      ]),
    },
  },
  fill: (value) => value,
  parse(value, path, mode) {
    const { transport, ...others } = isJsonObject(value) ? value : {};
    const tag = isJsonObject(value) ? { ...(transport !== undefined && { transport }) } : value;
    const { transport: given } = TAG.parse(tag, path, mode);
    switch (given) {
      case 'socket':
        return { transport: given, socket: SocketAddress.parse(others, path, mode) };
      case 'exec':
        return { transport: given, exec: EXEC.parse(others, path, mode) };
      case 'file':
        return { transport: given, file: FILE.parse(others, path, mode) };
    }
  },
};

const MigrationChannel = struct('MigrationChannel', {
  'channel-type': required(enumOf('MigrationChannelType', ['main'])),
  addr: required(MigrationAddress),
});

const Migrate = struct('migrate-arg', {
  uri: optional(str),
  channels: optional(arrayOf(MigrationChannel)),
  blk: later(bool),
  inc: later(bool),
  detach: optional(bool),
  resume: optional(bool),
});

const NOTHING = struct('q_empty', {});

const REBOOT = enumOf('RebootAction', ['reset', 'shutdown']);
const SHUTDOWN = enumOf('ShutdownAction', ['poweroff', 'pause']);
const PANIC = enumOf('PanicAction', ['pause', 'shutdown', 'exit-failure', 'none']);
const WATCHDOG_VALUES = ['reset', 'shutdown', 'poweroff', 'pause', 'debug', 'none', 'inject-nmi'] as const;
export const WATCHDOG_ACTIONS: readonly string[] = WATCHDOG_VALUES;
const WATCHDOG = enumOf('WatchdogAction', WATCHDOG_VALUES);

export const MIGRATION_COMMANDS = {
  'announce-self': struct('AnnounceParameters', {
    initial: required(int),
    max: required(int),
    rounds: required(int),
    step: required(int),
    interfaces: optional(arrayOf(str)),
    id: optional(str),
  }),
  migrate: Migrate,
  'migrate-continue': struct('migrate-continue-arg', { state: required(STATUS) }),
  'migrate-incoming': struct('migrate-incoming-arg', {
    uri: optional(str),
    channels: optional(arrayOf(MigrationChannel)),
  }),
  'migrate-pause': NOTHING,
  'migrate-recover': struct('migrate-recover-arg', { uri: required(str) }),
  'migrate-set-capabilities': struct('migrate-set-capabilities-arg', {
    capabilities: required(arrayOf(CapabilityStatus)),
  }),
  'migrate-set-parameters': MigrateSetParameters,
  'migrate-start-postcopy': NOTHING,
  migrate_cancel: NOTHING,
  'query-migrate': NOTHING,
  'query-migrate-capabilities': NOTHING,
  'query-migrate-parameters': NOTHING,
  'set-action': struct('set-action-arg', {
    reboot: optional(REBOOT),
    shutdown: optional(SHUTDOWN),
    panic: optional(PANIC),
    watchdog: optional(WATCHDOG),
  }),
  'x-move-claim': struct('x-move-claim-arg', { word: optional(str), force: optional(bool) }),
  'x-move-release': NOTHING,
  'x-query-move': NOTHING,
} as const;

const MigrationStats = struct('MigrationStats', {
  transferred: required(int),
  remaining: required(int),
  total: required(int),
  duplicate: required(int),
  skipped: required(int),
  normal: required(int),
  'normal-bytes': required(int),
  'dirty-pages-rate': required(int),
  mbps: required(number),
  'dirty-sync-count': required(int),
  'postcopy-requests': required(int),
  'page-size': required(int),
  'multifd-bytes': required(int),
  'pages-per-second': required(int),
  'precopy-bytes': required(int),
  'downtime-bytes': required(int),
  'postcopy-bytes': required(int),
  'dirty-sync-missed-zero-copy': required(int),
});

/** Where a destination listens. */
const ListenAddress = union(
  'ListenAddress',
  { type: required(enumOf('ListenAddressType', ['inet', 'unix', 'fd'])) },
  'type',
  {
    inet: struct('ListenInetAddress', {
      host: required(str),
      port: required(str),
      ipv4: optional(bool),
      ipv6: optional(bool),
    }),
    unix: struct('ListenUnixAddress', { path: required(str) }),
    fd: struct('String', { str: required(str) }),
  },
);

const MigrationInfo = struct('MigrationInfo', {
  status: optional(STATUS),
  ram: optional(MigrationStats),
  'total-time': optional(int),
  'expected-downtime': optional(int),
  downtime: optional(int),
  'setup-time': optional(int),
  'error-desc': optional(str),
  'blocked-reasons': optional(arrayOf(str)),
  'socket-address': optional(arrayOf(ListenAddress)),
});
export type MigrationInfo = Infer<typeof MigrationInfo>;

const MOVE_INFO = {
  role: required(enumOf('XMoveRole', ['none', 'source', 'destination'])),
  owner: required(enumOf('XMoveOwner', ['here', 'there', 'unknown'])),
  session: optional(str),
  'last-sent': optional(str),
  'last-seen': optional(str),
  reason: optional(str),
} as const;
export const MoveInfo = struct('XMoveInfo', MOVE_INFO);
export type MoveInfo = Infer<typeof MoveInfo>;

export const MIGRATION_RETURNS = {
  'query-migrate': MigrationInfo,
  'query-migrate-capabilities': arrayOf(CapabilityStatus),
  'query-migrate-parameters': Shown,
  'x-move-release': struct('XMoveWord', { word: required(str) }),
  'x-query-move': struct('XMoveStatus', { ...MOVE_INFO, 'x-progress': extension(optional(WholeMoveInfo)) }),
} satisfies { readonly [command: string]: Type<unknown> };

export const MIGRATION_EVENTS = {
  MIGRATION: struct('MIGRATION-arg', { status: required(STATUS) }),
  MIGRATION_PASS: struct('MIGRATION_PASS-arg', { pass: required(int) }),
  X_MOVE: MoveInfo,
} as const;
