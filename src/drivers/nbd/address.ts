import { BlockError } from '../../base/error.js';
import type { Json, NodeOptions } from '../../block/driver.js';
import { stringOption } from '../../block/options.js';
import type { SocketAddress } from '../../host/host.js';
import { NBD_DEFAULT_PORT } from '../../nbd/constants.js';

export interface NbdOptions {
  server: SocketAddress;
  exportName: string;
  /** Flushes are not sent on: for images that need not outlive a crash. */
  noFlush: boolean;
  ignoresDiscard: boolean;
}

const SERVER_KEYS: Readonly<Record<string, readonly string[]>> = {
  inet: ['type', 'host', 'port'],
  unix: ['type', 'path'],
};

/** Errors: kind invalid in QEMU's words; unsupported, by name. */
export function parseNbdOptions(options: NodeOptions): NbdOptions {
  const cache = options['cache'];
  const { 'no-flush': noFlush } = isObject(cache) ? cache : {};
  return {
    server: parseServer(options['server']),
    exportName: stringOption(options, 'export') ?? '',
    noFlush: noFlush === true,
    ignoresDiscard: parseDiscard(stringOption(options, 'discard') ?? 'unmap'),
  };
}

function isObject(value: Json | undefined): value is NodeOptions {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function parseServer(server: Json | undefined): SocketAddress {
  if (!isObject(server)) throw missing('server');
  const type = stringOption(server, 'type');
  if (type === undefined) throw missing('server.type');
  const known = SERVER_KEYS[type];
  if (!known) throw new BlockError('unsupported', `NBD: server type '${type}' is not supported by livedisk`);
  for (const [key, value] of Object.entries(server)) {
    // 'numeric', 'ipv4' and the like; false is what they are without being said.
    if (!known.includes(key) && value !== false)
      throw new BlockError('unsupported', `NBD: option 'server.${key}' is not supported by livedisk`);
  }
  if (type === 'unix') {
    const path = stringOption(server, 'path');
    if (path === undefined) throw missing('server.path');
    return { type: 'unix', path };
  }
  const host = stringOption(server, 'host');
  if (host === undefined) throw missing('server.host');
  const port = server['port'];
  if (typeof port !== 'string' && typeof port !== 'number') throw missing('server.port');
  return { type: 'inet', host, port: parsePort(host, String(port)) };
}

function missing(key: string): BlockError {
  return new BlockError('invalid', `Parameter '${key}' is missing`);
}

function parsePort(host: string, port: string): number {
  if (/^\d{1,5}$/.test(port) && Number(port) <= 65535) return Number(port);
  const text = `address resolution failed for ${host}:${port}: Servname not supported for ai_socktype`;
  throw new BlockError('invalid', text);
}

/** Answers whether discards are ignored. */
function parseDiscard(value: string): boolean {
  if (value === 'ignore' || value === 'off') return true;
  if (value === 'unmap' || value === 'on') return false;
  throw new BlockError('invalid', 'Invalid discard option');
}

/** What stands for itself in a URI: QEMU escapes nothing, and could not read again what needs it. */
const PLAIN = /^[A-Za-z0-9._~/@!$'()*+,:-]*$/;

/** As QEMU writes it; undefined where that would not open the same. */
export function nbdFilename(options: NodeOptions): string | undefined {
  const { server } = options;
  if (!isObject(server)) return undefined;
  const text = (key: string): string => {
    const value = server[key];
    return typeof value === 'string' || typeof value === 'number' ? String(value) : '';
  };
  const exportName = stringOption(options, 'export') ?? '';
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
  const [, bracketed, plain, port] = /^(?:\[([^\]]+)\]|([^:]*)):([^:,]+)$/.exec(address) ?? [];
  const host = bracketed ?? plain;
  if (host === undefined || port === undefined)
    throw new BlockError('invalid', `error parsing address '${address}'`);
  return { server: { type: 'inet', host, port }, ...exported };
}
