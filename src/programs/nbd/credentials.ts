import { BlockError } from '../../base/error.js';
import type { Graph } from '../../block/graph.js';
import { tlsEnd } from '../../block/objects/tls-end.js';
import type { TlsEnd } from '../../host/host.js';

/** Errors: those of tlsEnd, told as qemu-nbd tells them. */
export function checkCredentials(graph: Graph, id: string, isServer: boolean): TlsEnd {
  try {
    return tlsEnd(graph.objects, id, isServer);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.kind, `Failed to get TLS creds: ${error.message}`, { cause: error });
  }
}
