import { BlockError } from '../../base/error.js';
import type { SocketAddress } from '../../host/host.js';

/** Where a machine's state goes to or comes from. */
export type MoveTarget =
  | { kind: 'socket'; address: SocketAddress }
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
  tcp: (rest) => ({ kind: 'socket', address: inet(rest) }),
  unix(path) {
    if (path === '') throw new BlockError('invalid', 'invalid Unix socket address');
    return { kind: 'socket', address: { type: 'unix', path } };
  },
  fd: (name) => ({ kind: 'descriptor', name }),
  exec: (command) => ({ kind: 'command', argv: ['/bin/sh', '-c', command] }),
  file: stateFile,
};

/** HOST:PORT; a name of IPv6 in brackets. */
function inet(text: string): SocketAddress {
  const [, bracketed, plain, port] = /^(?:\[([^\]]*)\]|([^:]*)):(\d+)$/.exec(text) ?? [];
  if (port === undefined) throw new BlockError('invalid', `error parsing address '${text}'`);
  const number = Number(port);
  if (number > 65535)
    throw new BlockError(
      'invalid',
      `address resolution failed for ${text}: Servname not supported for ai_socktype`,
    );
  return { type: 'inet', host: bracketed ?? plain ?? '', port: number };
}

function stateFile(text: string): MoveTarget {
  const [, path = '', offset] = /^(.*?)(?:,offset=(\w+))?$/s.exec(text) ?? [];
  if (path === '') throw new BlockError('invalid', 'file: a path is missing');
  const number = Number(offset ?? '0');
  if (!Number.isSafeInteger(number) || number < 0)
    throw new BlockError('invalid', `file URI has bad offset ${offset}`);
  return { kind: 'state-file', path, offset: number };
}
