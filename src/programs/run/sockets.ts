import { BlockError } from '../../base/error.js';
import type { SocketAddress } from '../../host/host.js';
import { bool, enumOf, optional, required, str, struct } from '../../schema/types.js';
import { socketAddress } from '../../monitor/exports.js';
import { parseKeyval } from '../arguments/keyval.js';

/** Where a monitor's clients come from: standard input, those who connect, or whom it connects to itself. */
export type MonitorSocket =
  | { kind: 'stdio' }
  | { kind: 'server'; address: SocketAddress; wait: boolean }
  | { kind: 'client'; address: SocketAddress };

function socketOf(address: SocketAddress, options: { server?: boolean; wait?: boolean }): MonitorSocket {
  const { server = false, wait } = options;
  if (server) return { kind: 'server', address, wait: wait ?? true };
  if (wait === undefined) return { kind: 'client', address };
  throw new BlockError('invalid', "'wait' option is incompatible with socket in client connect mode");
}

const SERVER_OPTIONS = struct('ChardevSocket', {
  server: optional(bool),
  wait: optional(bool),
});

/** `stdio`, `unix:PATH,server=on,wait=off` or `tcp:HOST:PORT,...`, with the older flags `server,nowait` too; without `server` it connects. */
export function parseAddress(text: string): MonitorSocket {
  if (text === 'stdio') return { kind: 'stdio' };
  const [address = '', ...flags] = text.split(',');
  const options = flags.map((flag) => {
    if (flag === 'server') return 'server=on';
    return flag === 'nowait' ? 'wait=off' : flag;
  });
  return socketOf(plainAddress(address), SERVER_OPTIONS.parse(parseKeyval(options.join(',')), '', 'keyval'));
}

function plainAddress(text: string): SocketAddress {
  if (text.startsWith('unix:')) return { type: 'unix', path: text.slice('unix:'.length) };
  const [, host, port] = /^tcp:(.*):([^:]*)$/.exec(text) ?? [];
  if (host === undefined || port === undefined)
    throw new BlockError('unsupported', `'${text}' is not stdio, unix:PATH or tcp:HOST:PORT`);
  return socketAddress({ type: 'inet', host: host === '' ? '0.0.0.0' : host, port });
}

const CHARACTER_DEVICE = struct('ChardevSocket', {
  backend: required(enumOf('ChardevBackendKind', ['socket', 'stdio'])),
  id: required(str),
  path: optional(str),
  host: optional(str),
  port: optional(str),
  fd: optional(str),
  server: optional(bool),
  wait: optional(bool),
});

/** `socket,id=ID,path=PATH,server=on,wait=off`, with host and port or fd instead of the path; or `stdio,id=ID`. */
export function parseCharacterDevice(text: string): { id: string; socket: MonitorSocket } {
  const words = text.replace(/(^|,)server(?=,|$)/, '$1server=on').replace(/(^|,)nowait(?=,|$)/, '$1wait=off');
  const options = CHARACTER_DEVICE.parse(parseKeyval(words, 'backend'), '', 'keyval');
  const { id, path, host, port, fd } = options;
  if (options.backend === 'stdio') return { id, socket: { kind: 'stdio' } };
  let address: SocketAddress;
  if (path !== undefined) address = { type: 'unix', path };
  else if (fd !== undefined) address = socketAddress({ type: 'fd', str: fd });
  else if (port !== undefined) address = socketAddress({ type: 'inet', host: host ?? '0.0.0.0', port });
  else throw new BlockError('invalid', 'chardev: socket: no path, host and port, or fd given');
  return { id, socket: socketOf(address, options) };
}
