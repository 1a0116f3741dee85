import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { BlockError } from '../../base/error.js';
import type { WebTls } from '../../web/tls.js';

/** The files of a folder as QEMU's tls-creds-x509 names them. Errors: invalid; not-found for a file that is not there. */
export function readTls(
  folder: string | undefined,
  clients: readonly string[] | undefined,
): WebTls | undefined {
  if (folder === undefined) {
    if (clients) throw new BlockError('invalid', '--tls-client needs --tls-creds');
    return undefined;
  }
  const read = (name: string): Buffer => {
    try {
      return readFileSync(join(folder, name));
    } catch (error) {
      throw new BlockError('not-found', `--tls-creds ${folder}: ${name} cannot be read`, { cause: error });
    }
  };
  const revoked = readIfThere(join(folder, 'ca-crl.pem'));
  return {
    ...{ authority: read('ca-cert.pem'), certificate: read('server-cert.pem'), key: read('server-key.pem') },
    ...(revoked && { revoked }),
    clients: clients ?? [],
  };
}

function readIfThere(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new BlockError('not-found', `${path} cannot be read`, { cause: error });
  }
}
