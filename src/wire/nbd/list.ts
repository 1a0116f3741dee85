import type { Host, SocketAddress, TlsEnd } from '../../host/host.js';
import { ClientHandshake, type ListedExport } from './client-handshake.js';
import { HandshakeSocket } from './handshake-socket.js';

const TIMEOUT_MS = 10_000;

/** What a server exports. Errors: those of the host's connect and of ClientHandshake.list; kind timeout. */
export async function listExports(host: Host, address: SocketAddress, tls?: TlsEnd): Promise<ListedExport[]> {
  return HandshakeSocket.run(host, address, TIMEOUT_MS, async (connection) => {
    const handshake = new ClientHandshake(connection.reader, connection.send, {
      exportName: '',
      style: 'structured',
      ...(tls && { secure: () => connection.secure(tls) }),
    });
    const exports = await handshake.list();
    connection.socket.end();
    return exports;
  });
}
