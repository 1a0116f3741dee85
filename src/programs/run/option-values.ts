import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { NodeOptions } from '../../block/driver.js';
import type { ServerProperties } from '../../attach/exports.js';
import type { RunActions } from '../../attach/run-state.js';
import type { SocketAddress } from '../../host/host.js';
import { BlockdevOptions, SocketAddress as SocketAddressType } from '../../schema/block-types.js';
import { BlockExportOptions } from '../../schema/commands.js';
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
import { parseImageOpts } from '../arguments/image-opts.js';

/** The values of single options. Errors: invalid, without the option's name. */

export function inputMode(value: string): 'qmp' | 'keyval' {
  return value.startsWith('{') ? 'qmp' : 'keyval';
}

const MONITOR = struct('MonitorOptions', {
  chardev: required(str),
  id: optional(str),
  mode: optional(enumOf('MonitorMode', ['readline', 'control'])),
  pretty: optional(bool),
});

/** What -mon and --monitor say. Errors: invalid, in QEMU's words. */
export function parseMonitor(
  value: string,
  kind: 'machine' | 'storage-daemon',
): { chardev: string; isControl: boolean; pretty: boolean } {
  const { chardev, mode, pretty } = MONITOR.parse(parseKeyval(value, 'chardev'), '', inputMode(value));
  const isControl = (mode ?? (kind === 'machine' ? 'readline' : 'control')) === 'control';
  if (!isControl && kind === 'storage-daemon') throw new BlockError('invalid', 'Only QMP is supported');
  if (!isControl && pretty === true)
    throw new BlockError('invalid', "'pretty' is not compatible with HMP monitors");
  return { chardev, isControl, pretty: pretty ?? false };
}

export function parseBlockdev(value: string): NodeOptions {
  return BlockdevOptions.parse(parseKeyval(value, 'driver'), '', inputMode(value));
}

export function parseExport(value: string): BlockExportOptions {
  return BlockExportOptions.parse(parseKeyval(value, 'type'), '', inputMode(value));
}

const DESCRIPTOR = struct('add-fd', { fd: optional(int), set: optional(int), opaque: optional(str) });
const LAST_STANDARD_STREAM = 2;

export function parseDescriptor(value: string): { fd: number; setId: number; opaque: string | undefined } {
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

export function parseNbdServer(value: string): { address: SocketAddress; properties: ServerProperties } {
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

/** What a panic and a watchdog do is of no use: no processor runs. */
const ACTIONS = struct('RunStateActions', {
  reboot: optional(enumOf('RebootAction', ['reset', 'shutdown'])),
  shutdown: optional(enumOf('ShutdownAction', ['poweroff', 'pause'])),
  panic: optional(enumOf('PanicAction', ['pause', 'shutdown', 'exit-failure', 'none'])),
  watchdog: optional(
    enumOf('WatchdogAction', [
      ...(['reset', 'shutdown', 'poweroff', 'pause', 'debug', 'none', 'inject-nmi'] as const),
    ]),
  ),
});

export function parseActions(value: string): Partial<RunActions> {
  const { reboot, shutdown } = ACTIONS.parse(parseKeyval(value), '', 'keyval');
  return given({ reboot, shutdown });
}

/** Old options: the last of equal names counts, and a name alone is a flag. */
export function parseDevice(value: string, warn: (text: string) => void): JsonObject {
  if (value.startsWith('{')) return parseKeyval(value);
  const flat = parseImageOpts(value, { impliedKey: 'driver', warn });
  return Object.fromEntries(flat.entries());
}

/** That a character device of that id is there. */
export function sameDevice(id: string, kind: 'machine' | 'storage-daemon'): string {
  if (kind === 'machine') return `Duplicate ID '${id}' for chardev`;
  return `attempt to add duplicate property '${id}' to object (type 'container')`;
}
