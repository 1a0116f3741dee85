import { BlockError } from '../../base/error.js';
import { ALL_CHARDEV_KINDS, ChardevBackend } from '../../schema/chardev.js';
import {
  bool,
  int,
  type JsonObject,
  later,
  optional,
  required,
  size,
  str,
  struct,
} from '../../schema/types.js';
import { parseKeyval } from './keyval.js';

/** A character device as a command line asks for it. */
export interface CharacterDeviceOption {
  id: string;
  backend: ChardevBackend;
  /** So many clients are served at once: QEMU serves one. */
  maxClients: number | undefined;
}

/** Standard input and output, with a monitor that Ctrl-A c leads to. */
export const MULTIPLEXED_STDIO = 'mon:stdio';

/** `stdio`, `pty`, `null`, `unix:PATH,server=on,wait=off` or `tcp:HOST:PORT,...`; without `server` it connects. */
export function parseAddress(text: string, id: string): CharacterDeviceOption {
  const [address = '', ...flags] = text.split(',');
  if (flags.length === 0 && ['stdio', 'pty', 'null'].includes(address))
    return { id, ...deviceOf(address, {}), maxClients: undefined };
  const rest = flags.length === 0 ? '' : `,${flags.join(',')}`;
  return { ...parseSocket(`${plainAddress(address)}${rest}`), id };
}

/** As options of a socket. */
function plainAddress(text: string): string {
  if (text.startsWith('unix:')) return `path=${text.slice('unix:'.length)}`;
  const [, host, port] = /^tcp:(.*):([^:]*)$/.exec(text) ?? [];
  if (host === undefined || port === undefined)
    throw new BlockError('unsupported', `'${text}' is not stdio, pty, null, unix:PATH or tcp:HOST:PORT`);
  return `host=${host},port=${port}`;
}

/** The older flags without a value, too. */
function withoutFlags(words: string): string {
  return words
    .replace(/(^|,)(server|telnet|websocket|reconnect)(?=,|$)/g, '$1$2=on')
    .replace(/(^|,)nowait(?=,|$)/, '$1wait=off');
}

const COMMON = { id: optional(str), mux: later(bool), logfile: later(str), logappend: later(bool) } as const;

const SOCKET = struct('ChardevSocket', {
  ...COMMON,
  path: optional(str),
  abstract: optional(bool),
  tight: optional(bool),
  host: optional(str),
  port: optional(str),
  fd: optional(str),
  server: optional(bool),
  wait: optional(bool),
  delay: optional(bool),
  nodelay: optional(bool),
  telnet: later(bool),
  tn3270: later(bool),
  websocket: later(bool),
  reconnect: optional(int),
  'reconnect-ms': optional(int),
  'tls-creds': optional(str),
  'tls-authz': optional(str),
  'x-clients': optional(int),
  ...{ to: later(int), ipv4: later(bool), ipv6: later(bool), cid: later(str) },
});

function parseSocket(words: string): Omit<CharacterDeviceOption, 'id'> & { id: string } {
  const options = SOCKET.parse(parseKeyval(withoutFlags(words)), '', 'keyval');
  const { server = false, wait, reconnect } = options;
  const clients = options['x-clients'];
  if (clients !== undefined && clients < 1)
    throw new BlockError('invalid', "Parameter 'x-clients' expects a positive number");
  const data: JsonObject = { addr: addressOf(options), server };
  // On a command line, a server waits for its first client unless it is told not to.
  if (wait !== undefined || server) data['wait'] = wait ?? true;
  const reconnectMs = options['reconnect-ms'];
  if (reconnect !== undefined) data['reconnect'] = reconnect;
  if (reconnectMs !== undefined) data['reconnect-ms'] = reconnectMs;
  for (const name of ['tls-creds', 'tls-authz'] as const) {
    const value = options[name];
    if (value !== undefined) data[name] = value;
  }
  return { id: options.id ?? '', ...deviceOf('socket', data), maxClients: clients };
}

function addressOf(options: ReturnType<(typeof SOCKET)['parse']>): JsonObject {
  const { path, abstract: isAbstract = false, tight = true, host, port, fd } = options;
  if ([path, port, fd].filter((one) => one !== undefined).length > 1)
    throw new BlockError('invalid', "None or one of 'path', 'fd' and 'host' option required.");
  if (isAbstract && !tight)
    throw new BlockError('unsupported', "Parameter 'tight' is not supported by livedisk yet");
  if (path !== undefined) return { type: 'unix', data: { path, ...(isAbstract && { abstract: true }) } };
  if (fd !== undefined) return { type: 'fd', data: { str: fd } };
  if (port === undefined)
    throw new BlockError('invalid', 'chardev: socket: no path, host and port, or fd given');
  return { type: 'inet', data: { host: host === undefined || host === '' ? '0.0.0.0' : host, port } };
}

function deviceOf(type: string, data: JsonObject): { backend: ChardevBackend } {
  return { backend: ChardevBackend.parse({ type, data }, '', 'qmp') };
}

const OTHERS = {
  file: struct('ChardevFile', { ...COMMON, path: required(str), append: optional(bool) }),
  null: struct('ChardevNull', COMMON),
  pty: struct('ChardevPty', COMMON),
  ringbuf: struct('ChardevRingbuf', { ...COMMON, size: optional(size) }),
  stdio: struct('ChardevStdio', { ...COMMON, signal: optional(bool) }),
} as const;

/**
 * `socket,id=ID,path=PATH,server=on,wait=off`, with host and port or fd instead of the path; stdio, pty, null,
 * `ringbuf,size=N`, `file,path=PATH[,append=on]`. Errors: invalid; unsupported for other kinds.
 */
export function parseCharacterDevice(text: string): CharacterDeviceOption {
  const [kind = '', ...words] = text.replace(/^backend=/, '').split(',');
  const rest = words.join(',');
  const device = kind === 'socket' ? parseSocket(rest) : parseOther(kind, rest);
  if (device.id === '') throw new BlockError('invalid', 'chardev: no id specified');
  return device;
}

function parseOther(kind: string, rest: string): CharacterDeviceOption {
  const type = kind === 'memory' ? 'ringbuf' : kind;
  if (!(type in OTHERS)) {
    const isKnown = ALL_CHARDEV_KINDS.includes(kind);
    const what = isKnown ? 'not supported by livedisk yet' : 'not a valid char driver name';
    throw new BlockError(isKnown ? 'unsupported' : 'invalid', `'${kind}' is ${what}`);
  }
  const {
    id = '',
    path,
    ...data
  } = OTHERS[type as keyof typeof OTHERS].parse(parseKeyval(rest), '', 'keyval') as {
    id?: string;
    path?: string;
    [key: string]: JsonObject[string] | undefined;
  };
  const given = Object.fromEntries(
    Object.entries({ ...data, out: path }).filter(([, value]) => value !== undefined),
  );
  return { id, ...deviceOf(kind, given as JsonObject), maxClients: undefined };
}
