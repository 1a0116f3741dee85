import { BlockError } from '../../base/error.js';
import type { SocketAddress } from '../../host/host.js';

/** Where a monitor is: `unix:PATH`, `tcp:HOST:PORT`, `HOST:PORT`, or a path. Errors: invalid. */
export function parseMonitorAddress(text: string): SocketAddress {
  if (text.startsWith('unix:')) return { type: 'unix', path: text.slice('unix:'.length) };
  const match = /^(?:tcp:)?(?:\[([^\]]*)\]|([^/:[\]]*)):(\d+)$/.exec(text);
  if (!match) return { type: 'unix', path: text };
  const port = Number(match[3]);
  if (port < 1 || port > 65535) throw new BlockError('invalid', `'${text}' has no port in 1..65535`);
  return { type: 'inet', host: match[1] ?? match[2] ?? '', port };
}
