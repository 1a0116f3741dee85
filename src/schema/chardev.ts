import { SocketAddressLegacy } from './socket-address.js';
import {
  arrayOf,
  bool,
  enumOf,
  type Infer,
  int,
  later,
  optional,
  required,
  str,
  struct,
  type Type,
  union,
} from './types.js';

/** Character devices (char.json of QEMU 7.2). */

const LOG = { logfile: optional(str), logappend: optional(bool) } as const;

function wrapped<T, F>(type: Type<T, F>): Type<{ data: T }, { data: F }> {
  return struct(`${type.name}Wrapper`, { data: required(type) });
}

const RING_BUFFER = wrapped(struct('ChardevRingbuf', { ...LOG, size: optional(int) }));

const SocketCharacterDevice = {
  addr: required(SocketAddressLegacy),
  'tls-creds': optional(str),
  'tls-authz': optional(str),
  server: optional(bool),
  wait: optional(bool),
  nodelay: optional(bool),
  telnet: later(bool),
  tn3270: later(bool),
  websocket: later(bool),
  reconnect: optional(int),
  /** QEMU 10's. */
  'reconnect-ms': optional(int),
} as const;

const KINDS = ['file', 'socket', 'pipe', 'pty', 'null', 'mux', 'stdio', 'ringbuf', 'memory'] as const;
const OTHER_KINDS = [
  ...(['serial', 'parallel', 'udp', 'msmouse', 'wctablet', 'braille', 'testdev'] as const),
  ...(['console', 'spicevmc', 'spiceport', 'qemu-vdagent', 'dbus', 'vc'] as const),
];

export const ChardevBackend = union(
  'ChardevBackend',
  { type: required(enumOf('ChardevBackendKind', KINDS, OTHER_KINDS)) },
  'type',
  {
    file: wrapped(
      struct('ChardevFile', { ...LOG, in: later(str), out: required(str), append: optional(bool) }),
    ),
    socket: wrapped(struct('ChardevSocket', { ...LOG, ...SocketCharacterDevice })),
    pipe: wrapped(struct('ChardevHostdev', { ...LOG, device: required(str) })),
    pty: wrapped(struct('ChardevCommon', LOG)),
    null: wrapped(struct('ChardevCommon', LOG)),
    mux: wrapped(struct('ChardevMux', { ...LOG, chardev: required(str) })),
    stdio: wrapped(struct('ChardevStdio', { ...LOG, signal: optional(bool) })),
    ringbuf: RING_BUFFER,
    memory: RING_BUFFER,
  },
);
export type ChardevBackend = Infer<typeof ChardevBackend>;

const FORMAT = optional(enumOf('DataFormat', ['utf8', 'base64']));
const BACKEND = struct('chardev-add-arg', { id: required(str), backend: required(ChardevBackend) });
const RETURN = struct('ChardevReturn', { pty: optional(str) });

export const CHARDEV_COMMANDS = {
  'chardev-add': BACKEND,
  'chardev-change': BACKEND,
  'chardev-remove': struct('chardev-remove-arg', { id: required(str) }),
  'chardev-send-break': struct('chardev-send-break-arg', { id: required(str) }),
  'query-chardev': struct('q_empty', {}),
  'query-chardev-backends': struct('q_empty', {}),
  'ringbuf-read': struct('ringbuf-read-arg', { device: required(str), size: required(int), format: FORMAT }),
  'ringbuf-write': struct('ringbuf-write-arg', {
    device: required(str),
    data: required(str),
    format: FORMAT,
  }),
} as const;

export const CHARDEV_RETURNS = {
  'chardev-add': RETURN,
  'chardev-change': RETURN,
  'query-chardev': arrayOf(
    struct('ChardevInfo', { label: required(str), filename: required(str), 'frontend-open': required(bool) }),
  ),
  'query-chardev-backends': arrayOf(struct('ChardevBackendInfo', { name: required(str) })),
  'ringbuf-read': str,
} as const;

/** Of QEMU, those that are here and all others. */
export const ALL_CHARDEV_KINDS: readonly string[] = [...KINDS, ...OTHER_KINDS];

/** Those that are here. */
export const CHARDEV_KINDS: readonly string[] = KINDS;
