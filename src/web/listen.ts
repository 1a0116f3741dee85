import type { Server } from 'node:http';
import type { Server as SecureServer } from 'node:https';
import { BlockError, toBlockError } from '../base/error.js';
import type { SocketAddress } from '../host/host.js';

/** Slow clients hold nothing up for longer. */
const REQUEST_MS = 10_000;
/** Node looks for such clients twice a minute unless it is told to oftener. */
const LOOK_FOR_THEM_MS = 1000;

/** For whoever makes a server that listens here. */
export const SLOW_CLIENTS = {
  requestTimeout: REQUEST_MS,
  headersTimeout: REQUEST_MS,
  connectionsCheckingInterval: LOOK_FOR_THEM_MS,
} as const;

/** Errors: those of binding, naming the address. */
export async function listen(server: Server | SecureServer, address: SocketAddress): Promise<void> {
  const where =
    address.type === 'unix'
      ? { path: address.path }
      : address.type === 'inet'
        ? { host: address.host, port: address.port }
        : undefined;
  if (!where) throw new BlockError('unsupported', 'a descriptor is no address for a web server');
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) =>
      reject(toBlockError(error, `Failed to listen at ${Object.values(where).join(':')}`)),
    );
    server.listen(where, resolve);
  });
}
