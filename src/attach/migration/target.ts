import { BlockError } from '../../base/error.js';
import type { SocketAddress } from '../../host/host.js';
import { parseInet } from '../../schema/inet-text.js';
import { InetAddress } from '../../schema/socket-address.js';

/** Where a machine's state goes to or comes from. */
export type MoveTarget =
  | { kind: 'socket'; address: SocketAddress }
  /** Nobody can be there, which who connects is told. */
  | { kind: 'unresolved'; why: BlockError }
  /** By the name that a client gave a descriptor, or one of those that the program was started with. */
  | { kind: 'descriptor'; name: string | number }
  | { kind: 'command'; argv: readonly string[] }
  | { kind: 'state-file'; path: string; offset: number };

/** Undefined for a protocol that is not known. Errors: kind invalid, in QEMU's words. */
export function parseTarget(uri: string): MoveTarget | undefined {
  const [, scheme = '', rest = ''] = /^([a-z]+):(.*)$/s.exec(uri) ?? [];
  return Object.hasOwn(SCHEMES, scheme) ? SCHEMES[scheme]?.(rest) : undefined;
}

const SCHEMES: { readonly [scheme: string]: (rest: string) => MoveTarget } = {
  tcp: inet,
  unix(path) {
    if (path === '') throw new BlockError('invalid', 'invalid Unix socket address');
    return { kind: 'socket', address: { type: 'unix', path } };
  },
  fd: (name) => ({ kind: 'descriptor', name }),
  exec: (command) => ({ kind: 'command', argv: ['/bin/sh', '-c', command] }),
  file: stateFile,
};

function inet(text: string): MoveTarget {
  const { host, port } = InetAddress.parse({ ...parseInet(text) }, '', 'qmp');
  const number = Number(port);
  if (/^\d+$/.test(port) && number <= 65535)
    return { kind: 'socket', address: { type: 'inet', host, port: number } };
  const why = `address resolution failed for ${host}:${port}: Servname not supported for ai_socktype`;
  return { kind: 'unresolved', why: new BlockError('invalid', why) };
}

function stateFile(text: string): MoveTarget {
  const [, path = '', offset] = /^(.*?)(?:,offset=(\w+))?$/s.exec(text) ?? [];
  if (path === '') throw new BlockError('invalid', 'file: a path is missing');
  const number = Number(offset ?? '0');
  if (!Number.isSafeInteger(number) || number < 0)
    throw new BlockError('invalid', `file URI has bad offset ${offset}`);
  return { kind: 'state-file', path, offset: number };
}
