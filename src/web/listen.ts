import type { Server } from 'node:http';
import { BlockError, toBlockError } from '../base/error.js';
import type { SocketAddress } from '../host/host.js';

/** Slow clients hold nothing up for longer. */
const REQUEST_MS = 10_000;

/** Errors: those of binding, naming the address. */
export async function listen(server: Server, address: SocketAddress): Promise<void> {
  server.requestTimeout = REQUEST_MS;
  server.headersTimeout = REQUEST_MS;
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
