import { BlockError } from '../../base/error.js';
import { ALL_CHARDEV_KINDS, CHARDEV_KINDS, ChardevBackend } from '../../schema/chardev.js';
import {
  bool,
  int,
  type JsonObject,
  later,
  type Members,
  optional,
  size,
  str,
  struct,
} from '../../schema/types.js';
import { parseImageOpts } from './image-opts.js';

/** A character device as a command line asks for it. */
export interface CharacterDeviceOption {
  id: string;
  backend: ChardevBackend;
  /** So many clients are served at once: QEMU serves one. */
  maxClients: number | undefined;
  /** Monitors share it: it goes by another name, and a multiplexer by this one. */
  isShared?: boolean;
}

/** Standard input and output, with a monitor that Ctrl-A c leads to. */
export const MULTIPLEXED_STDIO = 'mon:stdio';

/** `stdio`, `pty`, `null`, `unix:PATH,server=on,wait=off` or `tcp:HOST:PORT,...`; without `server` it connects. */
export function parseAddress(text: string, id: string): CharacterDeviceOption {
  const [address = '', ...flags] = text.split(',');
  if (flags.length === 0 && ['stdio', 'pty', 'null'].includes(address))
    return { id, ...deviceOf(address, {}), maxClients: undefined };
  const rest = flags.length === 0 ? '' : `,${flags.join(',')}`;
  const words = parseImageOpts(`${plainAddress(address)}${rest}`, { warn: () => undefined });
  return { ...parseSocket(Object.fromEntries(words.entries())), id };
}

/** As options of a socket. */
function plainAddress(text: string): string {
  if (text.startsWith('unix:')) return `path=${text.slice('unix:'.length)}`;
  const [, host, port] = /^tcp:(.*):([^:]*)$/.exec(text) ?? [];
  if (host === undefined || port === undefined)
    throw new BlockError('unsupported', `'${text}' is not stdio, pty, null, unix:PATH or tcp:HOST:PORT`);
  return `host=${host},port=${port}`;
}

const COMMON = {
  mux: optional(bool),
  logfile: optional(str),
  logappend: optional(bool),
} as const;

const SOCKET_MEMBERS = {
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
  ...{ to: later(int), ipv4: later(bool), ipv6: later(bool) },
} as const;
const SOCKET = struct('ChardevSocket', SOCKET_MEMBERS);

function parseSocket(words: JsonObject): Omit<CharacterDeviceOption, 'id'> {
  checkNames(SOCKET_MEMBERS, words);
  const options = SOCKET.parse(words, '', 'flat');
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
  for (const name of ['tls-creds', 'tls-authz', 'logfile', 'logappend'] as const) {
    const value = options[name];
    if (value !== undefined) data[name] = value;
  }
  const isShared = options.mux ?? false;
  return { ...deviceOf('socket', data), maxClients: clients, isShared };
}

function addressOf(options: ReturnType<(typeof SOCKET)['parse']>): JsonObject {
  const { path, abstract: isAbstract = false, tight = true, host, port, fd } = options;
  if ([path, port, fd].filter((one) => one !== undefined).length > 1)
    throw new BlockError('invalid', "None or one of 'path', 'fd' or 'host' option required.");
  if (isAbstract && !tight)
    throw new BlockError('unsupported', "Parameter 'tight' is not supported by livedisk yet");
  if (path !== undefined) return { type: 'unix', data: { path, ...(isAbstract && { abstract: true }) } };
  if (fd !== undefined) return { type: 'fd', data: { str: fd } };
  if (host !== undefined && port === undefined)
    throw new BlockError('invalid', 'chardev: socket: no port given');
  if (port === undefined)
    throw new BlockError('invalid', 'chardev: socket: no path, host and port, or fd given');
  return { type: 'inet', data: { host: host === undefined || host === '' ? '0.0.0.0' : host, port } };
}

function deviceOf(type: string, data: JsonObject): { backend: ChardevBackend } {
  return { backend: ChardevBackend.parse({ type, data }, '', 'qmp') };
}

const OTHERS: { readonly [kind: string]: Members } = {
  file: { ...COMMON, path: optional(str), append: optional(bool) },
  mux: { ...COMMON, chardev: optional(str) },
  null: COMMON,
  pipe: { ...COMMON, path: optional(str) },
  pty: COMMON,
  ringbuf: { ...COMMON, size: optional(size) },
  stdio: { ...COMMON, signal: optional(bool) },
};

/** Names that QEMU had for other kinds. */
const ALIASES: Readonly<Record<string, string>> = { tty: 'serial', parport: 'parallel' };

/** The answer to `help`; undefined for a device. */
export function characterDeviceHelp(text: string): string | undefined {
  if (text !== 'help' && text !== '?') return undefined;
  return `Available chardev backend types: \n${CHARDEV_KINDS.map((kind) => `  ${kind}\n`).join('')}`;
}

/**
 * `socket,id=ID,path=PATH,server=on,wait=off`, with host and port or fd instead of the path; stdio, pty, null,
 * `ringbuf,size=N`, `file,path=PATH[,append=on]`. `warn`: told of old forms. Errors: invalid; unsupported for other kinds.
 */
export function parseCharacterDevice(
  text: string,
  warn: (text: string) => void = () => undefined,
): CharacterDeviceOption {
  const options = parseImageOpts(text, { impliedKey: 'backend', warn });
  const [id, given] = ['id', 'backend'].map((key) => options.take(key));
  const words = Object.fromEntries(options.entries());
  if (typeof id !== 'string') throw new BlockError('invalid', 'chardev: no id specified');
  if (typeof given !== 'string') throw new BlockError('invalid', `chardev: "${id}" missing backend`);
  const kind = Object.hasOwn(ALIASES, given) ? (ALIASES[given] ?? given) : given;
  if (kind !== given) warn(`The alias '${given}' is deprecated, use '${kind}' instead`);
  return { id, ...(kind === 'socket' ? parseSocket(words) : parseOther(kind, words)) };
}

/** Errors: invalid. */
function checkNames(members: Members, words: JsonObject): void {
  const wrong = Object.keys(words).find((key) => !Object.hasOwn(members, key));
  if (wrong !== undefined) throw new BlockError('invalid', `Invalid parameter '${wrong}'`);
}

/** Kinds of which something must be said, and how that is asked for. */
const NEEDED: Readonly<Record<string, readonly [key: string, refusal: string]>> = {
  file: ['path', 'chardev: file: no filename given'],
  mux: ['chardev', 'chardev: mux: no chardev given'],
  pipe: ['path', 'chardev: pipe: no device path given'],
};

function parseOther(kind: string, words: JsonObject): Omit<CharacterDeviceOption, 'id'> {
  const type = kind === 'memory' ? 'ringbuf' : kind;
  const members = Object.hasOwn(OTHERS, type) ? OTHERS[type] : undefined;
  if (!members) {
    const isKnown = ALL_CHARDEV_KINDS.includes(kind);
    const what = isKnown ? 'not supported by livedisk yet' : 'not a valid char driver name';
    throw new BlockError(isKnown ? 'unsupported' : 'invalid', `'${kind}' is ${what}`);
  }
  checkNames(members, words);
  const [needed, refusal] = (Object.hasOwn(NEEDED, kind) ? NEEDED[kind] : undefined) ?? [];
  if (needed !== undefined && refusal !== undefined && !Object.hasOwn(words, needed))
    throw new BlockError('invalid', refusal);
  const {
    path,
    mux: isShared = false,
    ...data
  } = struct('ChardevOptions', members).parse(words, '', 'flat') as {
    path?: string;
    mux?: boolean;
    [key: string]: JsonObject[string] | undefined;
  };
  const given = Object.fromEntries(
    Object.entries({ ...data, [kind === 'pipe' ? 'device' : 'out']: path }).filter(
      ([, value]) => value !== undefined,
    ),
  );
  return { ...deviceOf(kind, given as JsonObject), maxClients: undefined, isShared };
}

/** What is made of it, in turn. */
export function devicesOf(option: CharacterDeviceOption): CharacterDeviceOption[] {
  if (option.isShared !== true) return [option];
  const { id } = option;
  const base = { ...option, id: `${id}-base` };
  return [base, { id, ...deviceOf('mux', { chardev: base.id }), maxClients: undefined }];
}
