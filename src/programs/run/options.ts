import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { NodeOptions } from '../../block/driver.js';
import type { DeviceProperties, ErrorAction } from '../../attach/device.js';
import type { ServerProperties } from '../../attach/exports.js';
import type { SocketAddress } from '../../host/host.js';
import { BlockExportOptions } from '../../schema/commands.js';
import type { ObjectOptions } from '../../schema/objects.js';
import { BlockdevOptions, SocketAddress as SocketAddressType } from '../../schema/block-types.js';
import {
  bool,
  enumOf,
  int,
  type JsonObject,
  optional,
  required,
  str,
  struct,
  uint32,
} from '../../schema/types.js';
import { socketAddress, tlsOf } from '../../monitor/exports.js';
import { parseKeyval } from '../arguments/keyval.js';
import { objectHelp, parseObject } from '../arguments/objects.js';
import { parseAddress, parseCharacterDevice, type MonitorSocket } from './sockets.js';

/** A step of the start, in the order in which programs of QEMU take them. `text` is named in errors, unless empty. */
export type Step =
  | { kind: 'object'; options: ObjectOptions; text: string }
  | { kind: 'descriptor'; fd: number; setId: number; opaque: string | undefined; text: string }
  | { kind: 'blockdev'; options: NodeOptions; text: string }
  | { kind: 'nbd-server'; address: SocketAddress; properties: ServerProperties; text: string }
  | { kind: 'export'; options: BlockExportOptions; text: string }
  | { kind: 'device'; drive: string; properties: DeviceProperties; text: string }
  | { kind: 'monitor'; socket: MonitorSocket; isControl: boolean; pretty: boolean; text: string };

export interface RunOptions {
  steps: Step[];
  startStopped: boolean;
  incoming: boolean;
  pidFile: string | undefined;
  /** What to print in place of all else. */
  asks: 'help' | 'version' | { text: string } | undefined;
}

type Take = (value: string, text: string) => void;

/** What means nothing where no processor runs, and is given in every machine's command line. */
const WITHOUT_EFFECT: ReadonlySet<string> = new Set(['-nodefaults', '-no-user-config', '-nographic']);
const VALUED_WITHOUT_EFFECT = ['-M', '-machine', '-m', '-vga', '-serial', '-accel'];

/** Errors: kind invalid or unsupported, naming the option. */
export function parseRunOptions(args: readonly string[], kind: 'machine' | 'storage-daemon'): RunOptions {
  const options: RunOptions = {
    steps: [],
    startStopped: false,
    incoming: false,
    pidFile: undefined,
    asks: undefined,
  };
  const valued = valuedOptions(options, kind);
  if (kind === 'storage-daemon') args = args.flatMap(splitLongOption);
  for (let i = 0; i < args.length; i++) {
    const given = args[i] ?? '';
    const name = given.replace(/^--/, '-');
    if (name === '-h' || name === '-help') options.asks ??= 'help';
    else if (given === '-V' || name === '-version') options.asks ??= 'version';
    else if (kind === 'machine' && name === '-S') options.startStopped = true;
    else if (kind === 'machine' && WITHOUT_EFFECT.has(name)) continue;
    else {
      const take = Object.hasOwn(valued, name) ? valued[name] : undefined;
      if (!take) throw unknownOption(given, kind);
      const value = args[++i];
      if (value === undefined) throw new BlockError('invalid', `${given}: requires an argument`);
      inContext(`${given} ${value}`, () => take(value, `${given} ${value}`));
    }
  }
  // A machine's objects come first. Monitors come last, so that who can connect finds everything there.
  const isObject = (step: Step): boolean =>
    kind === 'machine' && (step.kind === 'object' || step.kind === 'descriptor');
  const isMonitor = (step: Step): boolean => step.kind === 'monitor';
  const isDevice = (step: Step): boolean => step.kind === 'device';
  const rest = options.steps.filter((step) => !isObject(step) && !isMonitor(step) && !isDevice(step));
  options.steps = [
    ...options.steps.filter(isObject),
    ...rest,
    ...options.steps.filter(isDevice),
    ...options.steps.filter(isMonitor),
  ];
  return options;
}

/** --NAME=VALUE as two words; a value that follows its option has no such name before its first "=". */
function splitLongOption(word: string): string[] {
  const [, name, value] = /^(--[a-z-]+)=(.*)$/s.exec(word) ?? [];
  return name === undefined || value === undefined ? [word] : [name, value];
}

function unknownOption(given: string, kind: string): BlockError {
  if (!given.startsWith('-')) return new BlockError('invalid', `unexpected argument '${given}'`);
  if (kind === 'storage-daemon') return new BlockError('invalid', `unrecognized option '${given}'`);
  const hint = given.endsWith('-drive')
    ? 'Use -blockdev for the image and -device virtio-blk,drive=NODE,id=ID for the disk.'
    : 'livedisk serves disks and runs no machine; `livedisk run --help` lists its options.';
  return new BlockError('unsupported', `${given}: invalid option`, { hint });
}

/** Names the option in what goes wrong with it, as QEMU's programs do. */
export function inContext<T>(text: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw withContext(text, error);
  }
}

export function withContext(text: string, error: unknown): unknown {
  if (!(error instanceof BlockError)) return error;
  return new BlockError(error.kind, `${text}: ${error.message}`, { cause: error });
}

function valuedOptions(options: RunOptions, kind: 'machine' | 'storage-daemon'): Record<string, Take> {
  const { steps } = options;
  const sockets = new Map<string, MonitorSocket>();
  const findSocket = (id: string): MonitorSocket => {
    const socket = sockets.get(id);
    if (!socket) throw new BlockError('not-found', `chardev "${id}" not found`);
    return socket;
  };
  const common: Record<string, Take> = {
    '-blockdev': (value, text) => steps.push({ kind: 'blockdev', options: parseBlockdev(value), text }),
    '-nbd-server': (value, text) => steps.push({ kind: 'nbd-server', ...parseNbdServer(value), text }),
    '-export': (value, text) => {
      const parsed = BlockExportOptions.parse(parseKeyval(value, 'type'), '', inputMode(value));
      steps.push({ kind: 'export', options: parsed, text });
    },
    '-chardev': (value) => {
      const { id, socket } = parseCharacterDevice(value);
      if (sockets.has(id)) throw new BlockError('exists', `Duplicate ID '${id}' for chardev`);
      sockets.set(id, socket);
    },
    '-pidfile': (value) => void (options.pidFile = value),
    '-object': (value, text) => {
      const help = objectHelp(value);
      if (help === undefined)
        steps.push({ kind: 'object', options: parseObject(value), text: kind === 'machine' ? '' : text });
      else options.asks ??= { text: help };
    },
  };
  const monitor: Take = (value, text) => {
    const { chardev, mode, pretty } = MONITOR.parse(parseKeyval(value, 'chardev'), '', 'keyval');
    const isControl = (mode ?? (kind === 'machine' ? 'readline' : 'control')) === 'control';
    if (!isControl && kind === 'storage-daemon') throw new BlockError('invalid', 'Only QMP is supported');
    if (!isControl && pretty === true)
      throw new BlockError('invalid', "'pretty' is not compatible with HMP monitors");
    steps.push({ kind: 'monitor', socket: findSocket(chardev), isControl, pretty: pretty ?? false, text });
  };
  if (kind === 'storage-daemon') return { ...common, '-monitor': monitor };
  const direct =
    (isControl: boolean, pretty: boolean): Take =>
    (value, text) => {
      if (value !== 'none')
        steps.push({ kind: 'monitor', socket: parseAddress(value), isControl, pretty, text });
    };
  return {
    ...common,
    ...Object.fromEntries(VALUED_WITHOUT_EFFECT.map((name): [string, Take] => [name, () => undefined])),
    '-mon': monitor,
    '-add-fd': (value, text) => steps.push({ kind: 'descriptor', ...parseDescriptor(value), text }),
    '-monitor': direct(false, false),
    '-qmp': direct(true, false),
    '-qmp-pretty': direct(true, true),
    '-device': (value, text) => steps.push({ kind: 'device', ...parseDevice(value), text }),
    '-incoming': (value) => void (options.incoming = checkIncoming(value)),
    '-display': (value) => {
      if (value !== 'none') throw new BlockError('unsupported', 'only "none" is supported');
    },
  };
}

function inputMode(value: string): 'qmp' | 'keyval' {
  return value.startsWith('{') ? 'qmp' : 'keyval';
}

const MONITOR = struct('MonitorOptions', {
  chardev: required(str),
  id: optional(str),
  mode: optional(enumOf('MonitorMode', ['readline', 'control'])),
  pretty: optional(bool),
});

function parseBlockdev(value: string): NodeOptions {
  return BlockdevOptions.parse(parseKeyval(value, 'driver'), '', inputMode(value));
}

const DESCRIPTOR = struct('add-fd', { fd: optional(int), set: optional(int), opaque: optional(str) });
const LAST_STANDARD_STREAM = 2;

function parseDescriptor(value: string): { fd: number; setId: number; opaque: string | undefined } {
  const { fd = -1, set = -1, opaque } = DESCRIPTOR.parse(parseKeyval(value), '', 'keyval');
  if (fd < 0) throw new BlockError('invalid', 'fd option is required and must be non-negative');
  if (fd <= LAST_STANDARD_STREAM) throw new BlockError('invalid', 'fd cannot be a standard I/O stream');
  if (set < 0) throw new BlockError('invalid', 'set option is required and must be non-negative');
  return { fd, setId: set, opaque };
}

const NBD_SERVER = struct('NbdServerOptions', {
  addr: required(SocketAddressType),
  'max-connections': optional(uint32),
  'handshake-max-seconds': optional(uint32),
  'tls-creds': optional(str),
  'tls-authz': optional(str),
});

function parseNbdServer(value: string): { address: SocketAddress; properties: ServerProperties } {
  const parsed = NBD_SERVER.parse(parseKeyval(value), '', inputMode(value));
  return {
    address: socketAddress(parsed.addr),
    properties: given({
      maxConnections: parsed['max-connections'],
      handshakeMaxSeconds: parsed['handshake-max-seconds'],
      tls: tlsOf(parsed),
    }),
  };
}

/** The state of a machine comes over this address once `migrate` exists; today only images come, over NBD. */
function checkIncoming(value: string): true {
  if (!/^(tcp:|unix:|defer$)/.test(value))
    throw new BlockError('invalid', `unknown migration protocol: ${value}`);
  return true;
}

const VIRTIO_BLK = ['virtio-blk', 'virtio-blk-pci', 'virtio-blk-device'];
const ACTION = enumOf('BlockdevOnError', ['report', 'ignore', 'stop', 'enospc', 'auto']);
const DEVICE = struct('virtio-blk', {
  driver: required(str),
  id: required(str),
  drive: required(str),
  'share-rw': optional(bool),
  'write-cache': optional(enumOf('OnOffAuto', ['on', 'off', 'auto'])),
  rerror: optional(ACTION),
  werror: optional(ACTION),
  'x-endpoint': optional(str),
});

function parseDevice(value: string): { drive: string; properties: DeviceProperties } {
  const input: JsonObject = parseKeyval(value, 'driver');
  const { driver } = input;
  if (typeof driver !== 'string' || !VIRTIO_BLK.includes(driver))
    throw new BlockError(
      'unsupported',
      `'${typeof driver === 'string' ? driver : ''}' is not a device of livedisk: it has ${VIRTIO_BLK.join(', ')}`,
    );
  const known = DEVICE.description.kind === 'object' ? DEVICE.description.members : {};
  for (const key of Object.keys(input))
    if (!(key in known)) throw new BlockError('invalid', `Property '${driver}.${key}' not found`);
  const device = DEVICE.parse(input, '', inputMode(value));
  return { drive: device.drive, properties: deviceProperties(device) };
}

function deviceProperties(device: ReturnType<typeof DEVICE.parse>): DeviceProperties {
  const endpoint = device['x-endpoint'];
  const action = (chosen: string | undefined): ErrorAction | undefined =>
    chosen === 'auto' ? undefined : (chosen as ErrorAction | undefined);
  if (device.rerror === 'enospc') throw new BlockError('invalid', "'enospc' is no policy for read errors");
  return {
    id: device.id,
    writeCache: device['write-cache'] !== 'off',
    ...given({
      shareRw: device['share-rw'],
      readErrors: action(device.rerror),
      writeErrors: action(device.werror),
      endpoint: endpoint === undefined ? undefined : endpointAddress(endpoint),
    }),
  };
}

function endpointAddress(text: string): SocketAddress {
  if (text.startsWith('unix:')) return { type: 'unix', path: text.slice('unix:'.length) };
  const [, host, port] = /^tcp:(.*):(\d+)$/.exec(text) ?? [];
  if (host === undefined) throw new BlockError('invalid', 'x-endpoint is unix:PATH or tcp:HOST:PORT');
  return socketAddress({ type: 'inet', host: host === '' ? 'localhost' : host, port: port ?? '' });
}
