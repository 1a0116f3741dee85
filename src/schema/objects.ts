import {
  arrayOf,
  bool,
  enumOf,
  type Infer,
  int64,
  marked,
  optional,
  required,
  size,
  str,
  struct,
  type Type,
  uint32,
  union,
} from './types.js';

/** QAPI's ObjectOptions (qom.json of QEMU 7.2): the objects that users make. */

const EVENT_LOOP = {
  'aio-max-batch': optional(int64),
  'thread-pool-min': optional(int64),
  'thread-pool-max': optional(int64),
} as const;

const SECRET_FORMAT = enumOf('QCryptoSecretFormat', ['raw', 'base64']);
const AUTHZ_POLICY = enumOf('QAuthZListPolicy', ['deny', 'allow']);
const AUTHZ_FORMAT = enumOf('QAuthZListFormat', ['exact', 'glob']);
export const HOST_MEMORY_POLICY = enumOf('HostMemPolicy', ['default', 'preferred', 'bind', 'interleave']);
const ENDPOINT = enumOf('QCryptoTLSCredsEndpoint', ['client', 'server']);

export const AuthzRule = struct('QAuthZListRule', {
  match: required(str),
  policy: required(AUTHZ_POLICY),
  format: optional(AUTHZ_FORMAT),
});
export type AuthzRule = Infer<typeof AuthzRule>;

export const AuthzListProperties = struct('AuthZListProperties', {
  policy: optional(AUTHZ_POLICY),
  rules: optional(arrayOf(AuthzRule)),
});

const RATES = ['iops', 'bps'] as const;
const DIRECTIONS = ['total', 'read', 'write'] as const;
const KINDS = ['', '-max', '-max-length'] as const;
export type ThrottleLimitName =
  `${(typeof RATES)[number]}-${(typeof DIRECTIONS)[number]}${(typeof KINDS)[number]}` | 'iops-size';

/** In the order in which QEMU lists them. */
export const THROTTLE_LIMITS: readonly ThrottleLimitName[] = [
  ...RATES.flatMap((rate) =>
    DIRECTIONS.flatMap((direction) => KINDS.map((kind): ThrottleLimitName => `${rate}-${direction}${kind}`)),
  ),
  'iops-size',
];

type LimitMembers = { readonly [K in ThrottleLimitName]: { type: Type<number | bigint>; required: false } };
export const ThrottleLimits = struct(
  'ThrottleLimits',
  Object.fromEntries(THROTTLE_LIMITS.map((name) => [name, optional(int64)])) as LimitMembers,
);
export type ThrottleLimits = Infer<typeof ThrottleLimits>;

const TLS = {
  'verify-peer': optional(bool),
  dir: optional(str),
  endpoint: optional(ENDPOINT),
  priority: optional(str),
} as const;
const OPENED = { opened: marked('deprecated', optional(bool)) } as const;
const LOADED = { loaded: marked('deprecated', optional(bool)) } as const;

/** Memory of the guest, and where its random numbers come from: kept and told, no guest runs here. */
const MEMORY = {
  dump: optional(bool),
  'host-nodes': optional(arrayOf(uint32)),
  merge: optional(bool),
  policy: optional(HOST_MEMORY_POLICY),
  prealloc: optional(bool),
  'prealloc-threads': optional(uint32),
  reserve: optional(bool),
  share: optional(bool),
  size: required(size),
  'x-use-canonical-path-for-ramblock-id': optional(bool),
} as const;

/** What each type of object may be given, besides its own id. */
const PROPERTIES = {
  'authz-list': AuthzListProperties,
  'authz-list-file': struct('AuthZListFileProperties', {
    filename: required(str),
    refresh: optional(bool),
  }),
  'authz-listfile': struct('AuthZListFileProperties', {
    filename: required(str),
    refresh: optional(bool),
  }),
  'authz-simple': struct('AuthZSimpleProperties', { identity: required(str) }),
  iothread: struct('IothreadProperties', {
    ...EVENT_LOOP,
    'poll-max-ns': optional(int64),
    'poll-grow': optional(int64),
    'poll-shrink': optional(int64),
  }),
  'main-loop': struct('MainLoopProperties', EVENT_LOOP),
  secret: struct('SecretProperties', {
    ...LOADED,
    format: optional(SECRET_FORMAT),
    keyid: optional(str),
    iv: optional(str),
    data: optional(str),
    file: optional(str),
  }),
  'memory-backend-file': struct('MemoryBackendFileProperties', {
    ...MEMORY,
    align: optional(size),
    'discard-data': optional(bool),
    'mem-path': required(str),
    pmem: optional(bool),
    readonly: optional(bool),
  }),
  'memory-backend-memfd': struct('MemoryBackendMemfdProperties', {
    ...MEMORY,
    hugetlb: optional(bool),
    hugetlbsize: optional(size),
    seal: optional(bool),
  }),
  'memory-backend-ram': struct('MemoryBackendProperties', MEMORY),
  'rng-builtin': struct('RngProperties', OPENED),
  'rng-random': struct('RngRandomProperties', { ...OPENED, filename: optional(str) }),
  'throttle-group': struct('ThrottleGroupProperties', {
    limits: optional(ThrottleLimits),
    ...Object.fromEntries(THROTTLE_LIMITS.map((name) => [`x-${name}`, marked('unstable', optional(int64))])),
  }),
  'tls-cipher-suites': struct('TlsCredsProperties', TLS),
  'tls-creds-anon': struct('TlsCredsAnonProperties', { ...TLS, ...LOADED }),
  'tls-creds-psk': struct('TlsCredsPskProperties', { ...TLS, ...LOADED, username: optional(str) }),
  'tls-creds-x509': struct('TlsCredsX509Properties', {
    ...TLS,
    ...LOADED,
    'sanity-check': optional(bool),
    passwordid: optional(str),
  }),
} as const;

export type ObjectTypeName = keyof typeof PROPERTIES;

/** Those that QEMU has besides: refused by name. */
const LATER = (
  'authz-pam can-bus can-host-socketcan colo-compare cryptodev-backend cryptodev-backend-builtin ' +
  'cryptodev-backend-lkcf cryptodev-vhost-user dbus-vmstate filter-buffer filter-dump filter-mirror ' +
  'filter-redirector filter-replay filter-rewriter input-barrier input-linux memory-backend-epc ' +
  'pef-guest pr-manager-helper qtest rng-egd ' +
  'secret_keyring sev-guest thread-context s390-pv-guest x-remote-object x-vfio-user-server'
).split(' ');

const TYPE_NAMES = Object.keys(PROPERTIES) as ObjectTypeName[];

export const ObjectOptions = union(
  'ObjectOptions',
  { 'qom-type': required(enumOf('ObjectType', TYPE_NAMES, LATER)), id: required(str) },
  'qom-type',
  PROPERTIES,
);
export type ObjectOptions = Infer<typeof ObjectOptions>;
