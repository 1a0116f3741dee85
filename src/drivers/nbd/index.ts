import { BlockError, errnoError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { DriverDescription } from '../../block/driver.js';
import { tlsEnd, withHostname } from '../../block/objects/tls-end.js';
import { NbdSession } from '../../wire/nbd/session.js';
import { NBD_OPTIONS } from '../../schema/blockdev-options.js';
import { modernAddress, nbdFilename, parseNbdFilename, serverAddress } from './address.js';
import { deniedError, NbdNode } from './node.js';

/** An export of an NBD server, over TCP or a unix socket. */
export const nbdDriver: DriverDescription<typeof NBD_OPTIONS> = {
  name: 'nbd',
  kind: 'protocol',
  title: 'NBD',
  options: NBD_OPTIONS,
  identityOptions: ['server', 'export', 'tls-creds', 'tls-hostname'],

  async open(context, settings) {
    const { host, readOnly, objects } = context;
    const address = serverAddress(settings.server, context);
    const contextName = settings['x-dirty-bitmap'];
    const creds = settings['tls-creds'];
    const hostname = settings['tls-hostname'] ?? (address.type === 'inet' ? address.host : undefined);
    if (creds === undefined && settings['tls-hostname'] !== undefined)
      throw new BlockError('invalid', 'tls-hostname not supported without tls-creds');
    const tls = creds === undefined ? undefined : withHostname(tlsEnd(objects, creds), hostname);
    const session = await NbdSession.open({
      host,
      address,
      exportName: settings.export,
      reconnectDelayMs: 1000 * settings['reconnect-delay'],
      openTimeoutMs: 1000 * settings['open-timeout'],
      ...given({ contextName, tls }),
    });
    if (contextName !== undefined && session.info.context === undefined) {
      await session.close();
      const hint = `requested x-dirty-bitmap ${contextName} not found`;
      throw errnoError('EINVAL', 'Could not open image', { hint });
    }
    const node = new NbdNode(session, settings);
    const mayBeReadOnly = readOnly || (settings['auto-read-only'] ?? false);
    if (node.isReadOnly && !mayBeReadOnly) {
      await node.close();
      throw deniedError();
    }
    return node;
  },

  filename: nbdFilename,
  takesImages: true,
  parseFilename: parseNbdFilename,
  modernise: modernAddress,
};
