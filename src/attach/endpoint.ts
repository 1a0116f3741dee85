import { BlockError } from '../base/error.js';
import type { Graph } from '../block/graph.js';
import type { SocketAddress } from '../host/host.js';
import type { LostChanges } from '../wire/nbd/lost-changes.js';
import { NbdServer } from '../wire/nbd/server.js';
import type { VhostServer } from '../wire/vhost-user/server.js';
import type { BlockShape } from '../wire/vhost-user/target.js';
import type { DeviceTarget } from './device-target.js';
import { serveVhostUser } from './vhost-user-export.js';

/**
 * A socket over which a device's guest comes: an NBD server whose one export (named by the device's id) is the disk, or
 * vhost-user, where the guest's memory is shared.
 */
export type Endpoint = SocketAddress & {
  protocol?: 'nbd' | 'vhost-user';
  /** Who comes there goes by rerror= and werror= itself, and hears of every failure. */
  handlesErrors?: boolean;
};

/** How a device shows its disk to a guest, where the protocol tells that. */
export interface DiskAppearance extends BlockShape {
  /** What the guest knows it by (empty). */
  serial?: string;
  /** 512. */
  blockSizeBytes?: number;
  /** Queues of requests (1). */
  queueCount?: number;
}

export interface EndpointServer {
  readonly address: SocketAddress;
  /** Where the guest's memory is shared. */
  readonly vhost?: VhostServer;
  /** The disk has another size. NBD has no message for it. */
  resized?(): void;
  /** Drops the guest; resolves when none of its requests is in flight. */
  close(): Promise<void>;
}

interface ServedDisk extends DiskAppearance {
  target: DeviceTarget;
  lost: LostChanges;
  /** Of the device. */
  name: string;
  writable: boolean;
}

const DEFAULT_BLOCK_BYTES = 512;

/** What a program gives, which may not be typed. Errors: invalid. */
export function checkEndpoint(endpoint: Endpoint): void {
  const { type, protocol = 'nbd' } = endpoint ?? {};
  if (!['unix', 'inet', 'fd'].includes(type))
    throw new BlockError('invalid', "Parameter 'endpoint' expects a socket address");
  if (!['nbd', 'vhost-user'].includes(protocol))
    throw new BlockError('invalid', `Parameter 'protocol' does not accept value '${String(protocol)}'`);
}

/** Errors: those of listening; invalid for an address that the protocol cannot have. */
export async function serveEndpoint(
  graph: Graph,
  { protocol, handlesErrors: _, ...address }: Endpoint,
  disk: ServedDisk,
): Promise<EndpointServer> {
  const { target, lost, name, writable, serial = '', blockSizeBytes, queueCount = 1, ...shape } = disk;
  if (protocol !== 'vhost-user') {
    const server = await NbdServer.listen(graph.host, address, { lost });
    server.addExport({ name, target, readOnly: !writable, multiConn: true });
    return server;
  }
  const vhost = await serveVhostUser(graph, address, {
    ...{ target, lost, writable, serial, queueCount, shape },
    label: `device '${name}'`,
    blockSizeBytes: blockSizeBytes ?? DEFAULT_BLOCK_BYTES,
  });
  return { address, vhost, resized: () => vhost.configChanged(), close: () => vhost.close() };
}

/** The value of x-endpoint. Errors: invalid. */
export function parseEndpoint(text: string): Endpoint {
  const [, protocol, rest = text] = /^(nbd|vhost-user):(.*)$/s.exec(text) ?? [];
  if (protocol === 'vhost-user') return { protocol, type: 'unix', path: rest.replace(/^unix:/, '') };
  if (rest.startsWith('unix:')) return { type: 'unix', path: rest.slice('unix:'.length) };
  const [, host, port] = /^tcp:(.*):(\d+)$/.exec(rest) ?? [];
  if (host === undefined || Number(port) > 65535)
    throw new BlockError(
      'invalid',
      'x-endpoint is unix:PATH or tcp:HOST:PORT (NBD, also with nbd: before it), or vhost-user:PATH',
    );
  return { type: 'inet', host: host === '' ? 'localhost' : host, port: Number(port) };
}
