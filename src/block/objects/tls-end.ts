import { BlockError } from '../../base/error.js';
import type { TlsEnd } from '../../host/host.js';
import { Authorization } from './authorization.js';
import type { ObjectRegistry } from './object-registry.js';
import { TlsCredentials } from './tls-credentials.js';

/**
 * One end of TLS by the ids of objects. `authz` says by the name in a client's certificate who comes in; it is looked up
 * when somebody comes. Errors, in QEMU's words: not-found, invalid; unsupported for credentials without names and keys.
 */
export function tlsEnd(objects: ObjectRegistry, id: string, isServer: boolean, authz?: string): TlsEnd {
  const credentials = objects.find(id);
  if (!credentials) throw new BlockError('not-found', `No TLS credentials with id '${id}'`);
  if (!(credentials instanceof TlsCredentials))
    throw new BlockError('invalid', `Object with id '${id}' is not TLS credentials`);
  const wanted = isServer ? 'server' : 'client';
  if (credentials.endpoint !== wanted)
    throw new BlockError('invalid', `Expecting TLS credentials with a ${wanted} endpoint`);
  const { material, verifiesPeer, priority } = credentials;
  if (isServer) throw new BlockError('unsupported', 'A server with TLS is not supported by livedisk yet');
  if (!material.ca && !material.sharedKeys)
    throw new BlockError(
      'unsupported',
      `TLS credentials '${id}' without certificates or keys are not supported by livedisk`,
    );
  if (priority !== '')
    throw new BlockError('unsupported', `'priority' of TLS credentials is not supported by livedisk`);
  return {
    ...material,
    isServer,
    verifiesPeer,
    userName: credentials.userName,
    ...(authz !== undefined && !material.sharedKeys && { isAllowed: authorization(objects, authz) }),
  };
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
