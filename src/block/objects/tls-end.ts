import { BlockError } from '../../base/error.js';
import type { TlsEnd } from '../../host/host.js';
import { Authorization } from './authorization.js';
import type { ObjectRegistry } from './object-registry.js';
import { TlsCredentials } from './tls-credentials.js';

/**
 * The server's end for whoever comes next: as its credentials are by then, that may be deleted meanwhile. `authz` says by
 * the name in a client's certificate who comes in; it is looked up when somebody comes. Errors: those of tlsEnd.
 */
export function tlsServerEnd(objects: ObjectRegistry, id: string, authz?: string): () => TlsEnd {
  const credentials = findCredentials(objects, id, true);
  const isAllowed = authz === undefined ? undefined : authorization(objects, authz);
  return () => {
    const end = endOf(credentials, true);
    // Only who must show a certificate has a name; QEMU asks nobody else.
    return isAllowed && end.verifiesPeer && !end.sharedKeys ? { ...end, isAllowed } : end;
  };
}

/** A client's end. Errors, in QEMU's words: not-found, invalid; unsupported for credentials without certificates and keys. */
export function tlsEnd(objects: ObjectRegistry, id: string): TlsEnd {
  return endOf(findCredentials(objects, id, false), false);
}

/** The same with the name that the server's certificate should show. Errors: invalid where it must, and none is known. */
export function withHostname(end: TlsEnd, hostname: string | undefined): TlsEnd {
  if (hostname !== undefined) return { ...end, hostname };
  if (end.ca && end.verifiesPeer) throw new BlockError('invalid', 'No hostname for certificate validation');
  return end;
}

function findCredentials(objects: ObjectRegistry, id: string, isServer: boolean): TlsCredentials {
  const credentials = objects.find(id);
  if (!credentials) throw new BlockError('not-found', `No TLS credentials with id '${id}'`);
  if (!(credentials instanceof TlsCredentials))
    throw new BlockError('invalid', `Object with id '${id}' is not TLS credentials`);
  const wanted = isServer ? 'server' : 'client';
  if (credentials.endpoint !== wanted)
    throw new BlockError('invalid', `Expecting TLS credentials with a ${wanted} endpoint`);
  if (!credentials.material.ca && !credentials.material.sharedKeys)
    throw new BlockError(
      'unsupported',
      `TLS credentials '${id}' without certificates or keys are not supported by livedisk`,
    );
  endOf(credentials, isServer);
  return credentials;
}

function endOf({ material, verifiesPeer, userName, priority }: TlsCredentials, isServer: boolean): TlsEnd {
  if (priority !== '')
    throw new BlockError('unsupported', `'priority' of TLS credentials is not supported by livedisk`);
  return { ...material, isServer, verifiesPeer, userName };
}

function authorization(
  objects: ObjectRegistry,
  id: string,
): (identity: string) => boolean | Promise<boolean> {
  return (identity) => {
    const found = objects.find(id);
    return found instanceof Authorization && found.isAllowed(identity);
  };
}
