import { BLKDEBUG_EVENTS } from './blkdebug-events.js';
import { BitmapName } from './bitmap-commands.js';
import { LUKS_MEMBERS, Qcow2Encryption } from './encryption-options.js';
import { OVERLAP_CHECKS } from './overlap-checks.js';
import { InetAddress, SocketAddress } from './socket-address.js';
import {
  alternate,
  arrayOf,
  bool,
  byteCount,
  defaulted,
  enumOf,
  type Features,
  type FilledOf,
  int,
  invalid,
  later,
  lazy,
  marked,
  type Members,
  nullType,
  optional,
  plainStr,
  required,
  size,
  str,
  struct,
  type StructOf,
  type Type,
  uint32,
  uint64,
  union,
  withFlatForm,
} from './types.js';

/** What nodes are opened with: QAPI's BlockdevOptions (QEMU 7.2), put together from the options of each driver. */

const CACHE = struct('BlockdevCacheOptions', { direct: optional(bool), 'no-flush': optional(bool) });

/** Also `on` and `off` in flat options. */
const DISCARD = withFlatForm(enumOf('BlockdevDiscardOptions', ['ignore', 'unmap']), (text) => {
  if (text === 'ignore' || text === 'off') return 'ignore';
  if (text === 'unmap' || text === 'on') return 'unmap';
  throw invalid('Invalid discard option');
});

/** Options that every node takes; opening (block/open.ts) honours them, with what children inherit. */
export const GENERIC_OPTIONS = {
  'node-name': optional(str),
  discard: optional(DISCARD),
  cache: optional(CACHE),
  'read-only': optional(bool),
  'auto-read-only': optional(bool),
  'force-share': optional(bool),
  'detect-zeroes': optional(enumOf('BlockdevDetectZeroesOptions', ['off', 'on', 'unmap'])),
} as const;

export type GenericOptions = StructOf<typeof GENERIC_OPTIONS>;

export interface ChildRole {
  readonly role: string;
  readonly required: boolean;
  /** An image: where only a file is named, its first bytes tell the format. Else that file itself is the child. */
  readonly isImage?: boolean;
  /** Any number of children, in a list: their roles are ROLE.0, ROLE.1 ... */
  readonly isList?: boolean;
}

/** The options of one driver, apart from the generic ones and `driver` itself. */
export interface DriverOptions<M extends Members = Members> {
  readonly members: M;
  /** Options that are nodes: a node's name, or options of its own. */
  readonly children: readonly ChildRole[];
  /** `backing` may be given: a node, or null for none. */
  readonly backing: boolean;
  readonly features?: Features;
}

export function driverOptions<const M extends Members>(
  members: M,
  children: readonly ChildRole[] = [],
  backing = false,
): DriverOptions<M> {
  return { members, children, backing };
}

/** What a driver is given: the generic options, and its own with their defaults. */
export type SettingsOf<M extends Members> = GenericOptions & FilledOf<M>;

/** What a change breaks whose old content cannot be copied first. */
export const ON_CBW_ERROR = enumOf('OnCbwError', ['break-guest-write', 'break-snapshot']);

const FILE: readonly ChildRole[] = [{ role: 'file', required: true }];

const BLKDEBUG_EVENT = enumOf('BlkdebugEvent', BLKDEBUG_EVENTS);
export const BLKDEBUG_IO_TYPES = [
  'read',
  'write',
  'write-zeroes',
  'discard',
  'flush',
  'block-status',
] as const;
const BLKDEBUG_IO_TYPE = enumOf('BlkdebugIOType', BLKDEBUG_IO_TYPES);
const NO_EVENT = 'Missing event name for rule';

const INJECT_ERROR = {
  event: required(BLKDEBUG_EVENT, NO_EVENT),
  state: defaulted(int, 0),
  iotype: optional(BLKDEBUG_IO_TYPE),
  errno: defaulted(int, 5),
  sector: defaulted(int, -1),
  once: defaulted(bool, false),
  immediately: defaulted(bool, false),
} as const;
const SET_STATE = {
  event: required(BLKDEBUG_EVENT, NO_EVENT),
  state: defaulted(int, 0),
  new_state: required(int),
} as const;
/** What a rule says; a rules file has sections of these names. */
export const BLKDEBUG_RULES = {
  'inject-error': { members: INJECT_ERROR },
  'set-state': { members: SET_STATE },
} as const;
export type InjectErrorRule = FilledOf<typeof INJECT_ERROR>;
export type SetStateRule = FilledOf<typeof SET_STATE>;

/** livedisk's own. */
const DELAY = struct('XBlkdebugDelay', {
  event: optional(BLKDEBUG_EVENT),
  iotype: optional(BLKDEBUG_IO_TYPE),
  'delay-ms': required(int),
});
const PERMISSION = enumOf('BlockPermission', ['consistent-read', 'write', 'write-unchanged', 'resize']);

export const BLKDEBUG_OPTIONS = driverOptions(
  {
    config: optional(str),
    align: defaulted(byteCount, 0),
    'max-transfer': defaulted(byteCount, 0),
    'opt-write-zero': defaulted(byteCount, 0),
    'max-write-zero': defaulted(byteCount, 0),
    'opt-discard': defaulted(byteCount, 0),
    'max-discard': defaulted(byteCount, 0),
    'inject-error': defaulted(arrayOf(struct('BlkdebugInjectErrorOptions', INJECT_ERROR)), []),
    'set-state': defaulted(arrayOf(struct('BlkdebugSetStateOptions', SET_STATE)), []),
    'take-child-perms': defaulted(arrayOf(PERMISSION), []),
    'unshare-child-perms': defaulted(arrayOf(PERMISSION), []),
    'x-delay': defaulted(arrayOf(DELAY), []),
  },
  [{ role: 'image', required: true }],
);

/** What a path of the host is opened with. */
function fileOptions(driverName: string) {
  const members = {
    filename: required(plainStr, `The '${driverName}' block driver requires a file name`),
    'pr-manager': later(str),
    locking: defaulted(enumOf('OnOffAuto', ['auto', 'on', 'off']), 'auto'),
    aio: defaulted(enumOf('BlockdevAioOptions', ['threads', 'native', 'io_uring']), 'threads'),
    'aio-max-batch': later(int),
    'drop-cache': later(bool),
    'x-check-cache-dropped': marked('unstable', later(bool)),
  } as const;
  return { ...driverOptions(members), features: ['dynamic-auto-read-only'] };
}

export const FILE_OPTIONS = fileOptions('file');
export const HOST_DEVICE_OPTIONS = fileOptions('host_device');

export const NBD_OPTIONS = driverOptions({
  server: required(SocketAddress, 'NBD server address missing'),
  export: defaulted(str, ''),
  'tls-creds': optional(str),
  'tls-hostname': optional(str),
  'x-dirty-bitmap': marked('unstable', optional(str)),
  'reconnect-delay': defaulted(uint32, 0),
  'open-timeout': defaulted(uint32, 0),
});

/** What curl's drivers have in common in QEMU. */
const CURL_MEMBERS = {
  url: required(str, "curl block driver requires an 'url' option"),
  readahead: optional(byteCount),
  timeout: optional(int),
  username: optional(str),
  'password-secret': optional(str),
  'proxy-username': later(str),
  'proxy-password-secret': later(str),
} as const;
const COOKIE_MEMBERS = { cookie: optional(str), 'cookie-secret': optional(str) } as const;

export const HTTP_OPTIONS = driverOptions({ ...CURL_MEMBERS, ...COOKIE_MEMBERS });
export const HTTPS_OPTIONS = driverOptions({
  ...CURL_MEMBERS,
  ...COOKIE_MEMBERS,
  sslverify: optional(bool),
});

/** How a server shows that it is the one that is meant. */
const HOST_KEY_CHECK = union(
  'SshHostKeyCheck',
  { mode: required(enumOf('SshHostKeyCheckMode', ['none', 'hash', 'known_hosts'])) },
  'mode',
  {
    none: struct('SshHostKeyCheck_none', {}),
    known_hosts: struct('SshHostKeyCheck_known_hosts', {}),
    hash: struct('SshHostKeyHash', {
      type: required(enumOf('SshHostKeyCheckHashType', ['md5', 'sha1', 'sha256'])),
      hash: required(str),
    }),
  },
);

export const SSH_OPTIONS = driverOptions({
  server: required(InetAddress),
  path: required(str),
  user: optional(str),
  'host-key-check': optional(HOST_KEY_CHECK),
});

export const NULL_OPTIONS = driverOptions({
  size: defaulted(byteCount, 2 ** 30),
  'latency-ns': defaulted(int, 0),
  'read-zeroes': defaulted(bool, false),
});

export const QCOW2_OPTIONS = driverOptions(
  {
    'lazy-refcounts': optional(bool),
    'pass-discard-request': optional(bool),
    'pass-discard-snapshot': defaulted(bool, true),
    'pass-discard-other': defaulted(bool, false),
    /** QEMU 8.1's. */
    'discard-no-unref': defaulted(bool, false),
    'overlap-check': defaulted(OVERLAP_CHECKS, 'cached'),
    'cache-size': optional(byteCount),
    'l2-cache-size': optional(byteCount),
    'l2-cache-entry-size': later(byteCount),
    'refcount-cache-size': optional(byteCount),
    'cache-clean-interval': later(int),
    encrypt: optional(Qcow2Encryption),
  },
  [...FILE, { role: 'data-file', required: false }],
  true,
);

export const RAW_OPTIONS = driverOptions(
  { offset: defaulted(byteCount, 0), size: optional(byteCount) },
  FILE,
);

/** `header`: QEMU 9.0's, where the file has nothing but the encrypted disk. */
export const LUKS_OPTIONS = driverOptions(LUKS_MEMBERS, [...FILE, { role: 'header', required: false }]);

/** Formats that only have a file. */
export const BOCHS_OPTIONS = driverOptions({}, FILE);
export const CLOOP_OPTIONS = driverOptions({}, FILE);
export const DMG_OPTIONS = driverOptions({}, FILE);
export const PARALLELS_OPTIONS = driverOptions({}, FILE);
export const VDI_OPTIONS = driverOptions({}, FILE);
export const VHDX_OPTIONS = driverOptions({}, FILE);
export const VPC_OPTIONS = driverOptions({}, FILE);

/** Formats that have a file, and may have a backing file. */
export const QED_OPTIONS = driverOptions({}, FILE, true);
export const VMDK_OPTIONS = driverOptions({}, FILE, true);

/** Its requests come at the pace of a group (object-add). */
export const THROTTLE_OPTIONS = driverOptions({ 'throttle-group': required(str) }, [
  { role: 'file', required: true },
]);

/** What is read is copied into the image of `file`; of layers from `bottom` up, where one is named. */
export const COPY_ON_READ_OPTIONS = driverOptions({ bottom: optional(str) }, FILE);

/** Everything is done to both, and compared. */
export const BLKVERIFY_OPTIONS = driverOptions({}, [
  { role: 'raw', required: true },
  { role: 'test', required: true, isImage: true },
]);

/** Several children that hold the same; what most of them say counts. */
export const QUORUM_OPTIONS = driverOptions(
  {
    'vote-threshold': required(int, "Parameter 'vote-threshold' expects a value >= 1"),
    blkverify: defaulted(bool, false),
    'rewrite-corrupted': defaulted(bool, false),
    'read-pattern': defaulted(
      withFlatForm(enumOf('QuorumReadPattern', ['quorum', 'fifo']), (text) => {
        if (text === 'quorum' || text === 'fifo') return text;
        throw invalid('Please set read-pattern as fifo or quorum');
      }),
      'quorum',
    ),
  },
  [{ role: 'children', required: true, isImage: true, isList: true }],
);

/** Space ahead of what is written. */
export const PREALLOCATE_OPTIONS = driverOptions(
  {
    'prealloc-align': defaulted(byteCount, 2 ** 20),
    'prealloc-size': defaulted(byteCount, 128 * 2 ** 20),
  },
  FILE,
);

/** What is changed goes to `log` too. */
export const BLKLOGWRITES_OPTIONS = driverOptions(
  {
    'log-sector-size': optional(
      withFlatForm(uint32, (text) => byteCount.parse(text, 'log-sector-size', 'flat')),
    ),
    'log-append': defaulted(bool, false),
    'log-super-update-interval': defaulted(uint64, 4096),
  },
  [
    { role: 'file', required: true },
    { role: 'log', required: true },
  ],
);

/** What is overwritten goes to `target` first: what `bitmap` names, or all. */
export const COPY_BEFORE_WRITE_OPTIONS = driverOptions(
  {
    bitmap: optional(BitmapName),
    'on-cbw-error': defaulted(ON_CBW_ERROR, 'break-guest-write'),
    'cbw-timeout': defaulted(uint32, 0),
    /** QEMU 9.2's. */
    'min-cluster-size': defaulted(size, 0),
  },
  [
    { role: 'file', required: true },
    { role: 'target', required: true },
  ],
);

/** The moment that a copy-before-write keeps. */
export const SNAPSHOT_ACCESS_OPTIONS = driverOptions({}, FILE);

/** What is written through it is compressed. */
export const COMPRESS_OPTIONS = driverOptions({}, FILE);

/** Drivers that users may name. */
export const DRIVERS = {
  blkdebug: BLKDEBUG_OPTIONS,
  blklogwrites: BLKLOGWRITES_OPTIONS,
  blkverify: BLKVERIFY_OPTIONS,
  bochs: BOCHS_OPTIONS,
  cloop: CLOOP_OPTIONS,
  compress: COMPRESS_OPTIONS,
  'copy-before-write': COPY_BEFORE_WRITE_OPTIONS,
  'copy-on-read': COPY_ON_READ_OPTIONS,
  dmg: DMG_OPTIONS,
  file: FILE_OPTIONS,
  host_device: HOST_DEVICE_OPTIONS,
  http: HTTP_OPTIONS,
  https: HTTPS_OPTIONS,
  luks: LUKS_OPTIONS,
  nbd: NBD_OPTIONS,
  'null-aio': NULL_OPTIONS,
  'null-co': NULL_OPTIONS,
  parallels: PARALLELS_OPTIONS,
  preallocate: PREALLOCATE_OPTIONS,
  qcow2: QCOW2_OPTIONS,
  qed: QED_OPTIONS,
  quorum: QUORUM_OPTIONS,
  raw: RAW_OPTIONS,
  'snapshot-access': SNAPSHOT_ACCESS_OPTIONS,
  ssh: SSH_OPTIONS,
  throttle: THROTTLE_OPTIONS,
  vdi: VDI_OPTIONS,
  vhdx: VHDX_OPTIONS,
  vmdk: VMDK_OPTIONS,
  vpc: VPC_OPTIONS,
} as const;

export type DriverName = keyof typeof DRIVERS;

/** Drivers of QEMU that livedisk does not have. */
export const OTHER_DRIVERS: readonly string[] =
  'blkreplay ftp ftps gluster host_cdrom iscsi nfs nvme qcow rbd replication vvfat'.split(' ');

/** A child: a node's name, or options of its own. */
export type BlockdevRef = string | BlockdevOptions;

/** Each child's role, as the drivers' `children` say. */
interface ChildrenOf {
  blkdebug: { image: BlockdevRef };
  blklogwrites: { file: BlockdevRef; log: BlockdevRef };
  blkverify: { raw: BlockdevRef; test: BlockdevRef };
  bochs: { file: BlockdevRef };
  cloop: { file: BlockdevRef };
  compress: { file: BlockdevRef };
  'copy-before-write': { file: BlockdevRef; target: BlockdevRef };
  'copy-on-read': { file: BlockdevRef };
  dmg: { file: BlockdevRef };
  throttle: { file: BlockdevRef };
  file: unknown;
  host_device: unknown;
  http: unknown;
  https: unknown;
  luks: { file: BlockdevRef; header?: BlockdevRef };
  nbd: unknown;
  'null-aio': unknown;
  'null-co': unknown;
  parallels: { file: BlockdevRef };
  qcow2: { file: BlockdevRef; 'data-file'?: BlockdevRef; backing?: BlockdevRef | null };
  preallocate: { file: BlockdevRef };
  qed: { file: BlockdevRef; backing?: BlockdevRef | null };
  quorum: { children: BlockdevRef[] };
  raw: { file: BlockdevRef };
  vdi: { file: BlockdevRef };
  vhdx: { file: BlockdevRef };
  vmdk: { file: BlockdevRef; backing?: BlockdevRef | null };
  vpc: { file: BlockdevRef };
  'snapshot-access': { file: BlockdevRef };
  ssh: unknown;
}

/** Options of a node of that driver, as given. */
export type OptionsOf<D extends DriverName> = GenericOptions &
  StructOf<(typeof DRIVERS)[D]['members']> &
  ChildrenOf[D] & { driver: D };

export type BlockdevOptions = { [D in DriverName]: OptionsOf<D> }[DriverName];

/** BlockdevOptions of some drivers, by their names: what blockdev-add takes where these are the drivers. */
export function blockdevOptions(drivers: ReadonlyMap<string, DriverOptions>): Type<BlockdevOptions> {
  const others = OTHER_DRIVERS.filter((name) => !drivers.has(name));
  const base = {
    driver: required(enumOf('BlockdevDriver', [...drivers.keys()], others)),
    ...GENERIC_OPTIONS,
  };
  const self = lazy('BlockdevOptions', () => type);
  const reference = alternate('BlockdevRef', [self, str]);
  const orNull = alternate('BlockdevRefOrNull', [self, str, nullType]);
  const cases = [...drivers].map(([name, { members, children, backing, features }]) => {
    const roles = children.map((child): [string, Members[string]] => {
      const type: Type<unknown> = child.isList === true ? arrayOf(reference) : reference;
      return [child.role, child.required ? required(type) : optional(type)];
    });
    const all: Members = {
      ...Object.fromEntries(roles),
      ...(backing && { backing: optional(orNull) }),
      ...members,
    };
    return [name, struct(`BlockdevOptions_${name}`, all, features)] as const;
  });
  const type = union(
    'BlockdevOptions',
    base,
    'driver',
    Object.fromEntries(cases),
  ) as unknown as Type<BlockdevOptions>;
  return type;
}

export const BlockdevOptions = blockdevOptions(new Map(Object.entries(DRIVERS)));
export const BlockdevRef: Type<BlockdevRef> = alternate('BlockdevRef', [BlockdevOptions, str]);
