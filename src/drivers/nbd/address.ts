import { BlockError } from '../../base/error.js';
import type { DriverContext, GivenOptions, NodeOptions, Settings } from '../../block/driver.js';
import type { SocketAddress } from '../../host/host.js';
import { NBD_DEFAULT_PORT } from '../../wire/nbd/constants.js';
import type { FlatOptions } from '../../schema/flat.js';
import { parseInet } from '../../schema/inet-text.js';
import { scalarText } from '../../schema/types.js';
import type { NBD_OPTIONS } from '../../schema/blockdev-options.js';

export type NbdSettings = Settings<typeof NBD_OPTIONS>;

/** Errors, in QEMU's words: kind invalid, and those of descriptors. */
export function serverAddress(
  server: NbdSettings['server'],
  context: Pick<DriverContext, 'descriptorOf'>,
): SocketAddress {
  switch (server.type) {
    case 'unix':
      return { type: 'unix', path: server.abstract === true ? `\0${server.path}` : server.path };
    case 'inet':
      return { type: 'inet', host: server.host, port: parsePort(server.host, server.port) };
    case 'fd':
      return { type: 'fd', fd: context.descriptorOf(server.str) };
  }
}

/** `path`, or `host` and `port`, in place of `server`. Errors: invalid, in QEMU's words. */
export function modernAddress(options: FlatOptions): void {
  const [path, host, port] = ['path', 'host', 'port'].map((key) => {
    const value = options.take(key);
    return value === undefined || value === null ? undefined : scalarText(value, key);
  });
  if (path === undefined && host === undefined && port === undefined) return;
  if (options.has('server')) throw invalid("Cannot use 'server' and path/host/port at the same time");
  if (path !== undefined) {
    if (host !== undefined) throw invalid('path and host may not be used at the same time');
    if (port !== undefined) throw invalid('port may not be used without host');
    options.put('server.type', 'unix');
    options.put('server.path', path);
  } else if (host !== undefined) {
    options.put('server.type', 'inet');
    options.put('server.host', host);
    options.put('server.port', port ?? String(NBD_DEFAULT_PORT));
  }
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}

function parsePort(host: string, port: string): number {
  if (/^\d{1,5}$/.test(port) && Number(port) <= 65535) return Number(port);
  const text = `address resolution failed for ${host}:${port}: Servname not supported for ai_socktype`;
  throw new BlockError('invalid', text);
}

/** What stands for itself in a URI: QEMU escapes nothing, and could not read again what needs it. */
const PLAIN = /^[A-Za-z0-9._~/@!$'()*+,:-]*$/;

/** As QEMU writes it; undefined where that would not open the same. */
export function nbdFilename(options: GivenOptions): string | undefined {
  const { server } = options;
  if (typeof server !== 'object' || server === null || Array.isArray(server)) return undefined;
  const text = (key: string): string => {
    const value = server[key];
    return typeof value === 'string' || typeof value === 'number' ? String(value) : '';
  };
  const exportName = typeof options['export'] === 'string' ? options['export'] : '';
  // A name has no room for credentials.
  if (options['tls-creds'] !== undefined) return undefined;
  const isUnix = text('type') === 'unix';
  const used = isUnix ? ['type', 'path'] : ['type', 'host', 'port'];
  if (Object.entries(server).some(([key, value]) => value !== false && !used.includes(key))) return undefined;
  const isPlain = [exportName, text('path'), text('host')].every((part) => PLAIN.test(part));
  if (!isPlain || exportName.startsWith('/') || text('host').includes(':')) return undefined;
  const tail = exportName === '' ? '' : `/${exportName}`;
  return isUnix
    ? `nbd+unix://${tail}?socket=${text('path')}`
    : `nbd://${text('host')}:${text('port')}${tail}`;
}

/** `nbd:...`, `nbd://...`, `nbd+tcp://...`, `nbd+unix://...`; undefined for names of other protocols. */
export function parseNbdFilename(filename: string): NodeOptions | undefined {
  const uri = /^nbd(\+tcp|\+unix)?:\/\//.exec(filename);
  if (uri) return parseUri(filename.slice(uri[0].length), uri[1] === '+unix');
  return filename.startsWith('nbd:') ? parseLegacy(filename.slice('nbd:'.length)) : undefined;
}

/** [user@]host[:port][/export], or [/export]?socket=PATH. */
function parseUri(rest: string, isUnix: boolean): NodeOptions {
  const [, authority = '', path = '', query] = /^([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?$/.exec(rest) ?? [];
  const exportName = decode(path.replace(/^\/+/, ''));
  const exported: NodeOptions = exportName === '' ? {} : { export: exportName };
  if (isUnix) {
    const [, socket] = /^socket=([^&;=]+)$/.exec(query ?? '') ?? [];
    if (authority !== '' || socket === undefined) throw badUri();
    return { server: { type: 'unix', path: decode(socket) }, ...exported };
  }
  if (query !== undefined) throw badUri();
  const [, bracketed, plain, port] =
    /^(?:[^@]*@)?(?:\[([^\]]+)\]|([^:[\]]+))(?::(\d*))?$/.exec(authority) ?? [];
  const host = bracketed ?? plain;
  if (host === undefined) throw badUri();
  const portText = port === undefined || port === '' ? String(NBD_DEFAULT_PORT) : port;
  return { server: { type: 'inet', host: decode(host), port: portText }, ...exported };
}

function badUri(): BlockError {
  return new BlockError('invalid', 'No valid URL specified');
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw badUri();
  }
}

const EXPORT_NAME = ':exportname=';

/** HOST:PORT or unix:PATH, and :exportname=NAME. */
function parseLegacy(rest: string): NodeOptions {
  const at = rest.indexOf(EXPORT_NAME);
  const address = at < 0 ? rest : rest.slice(0, at);
  const exportName = at < 0 ? '' : rest.slice(at + EXPORT_NAME.length);
  const exported: NodeOptions = exportName === '' ? {} : { export: exportName };
  if (address === '') throw new BlockError('invalid', 'NBD server address missing');
  if (address.startsWith('unix:'))
    return { server: { type: 'unix', path: address.slice('unix:'.length) }, ...exported };
  return { server: { type: 'inet', ...parseInet(address) }, ...exported };
}
