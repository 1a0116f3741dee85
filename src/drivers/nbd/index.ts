import type { DriverDescription } from '../../block/driver.js';
import { NbdClient } from '../../wire/nbd/client.js';
import { NBD_OPTIONS } from '../../schema/blockdev-options.js';
import { nbdFilename, parseNbdFilename, serverAddress } from './address.js';
import { deniedError, NbdNode } from './node.js';

/** An export of an NBD server, over TCP or a unix socket. */
export const nbdDriver: DriverDescription<typeof NBD_OPTIONS> = {
  name: 'nbd',
  kind: 'protocol',
  title: 'NBD',
  options: NBD_OPTIONS,
  identityOptions: ['server', 'export'],

  async open({ host, readOnly }, settings) {
    const address = serverAddress(settings.server);
    const client = await NbdClient.connect({ host, address, exportName: settings.export });
    const node = new NbdNode(client, settings);
    const mayBeReadOnly = readOnly || (settings['auto-read-only'] ?? false);
    if (node.isReadOnly && !mayBeReadOnly) {
      await node.close();
      throw deniedError();
    }
    return node;
  },

  filename: nbdFilename,
  parseFilename: parseNbdFilename,
};
