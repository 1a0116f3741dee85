import type { DriverDescription } from '../../block/driver.js';
import { booleanOption } from '../../block/options.js';
import { NbdClient } from '../../nbd/client.js';
import { nbdFilename, parseNbdFilename, parseNbdOptions } from './address.js';
import { deniedError, NbdNode } from './node.js';

/** An export of an NBD server, over TCP or a unix socket. */
export const nbdDriver: DriverDescription = {
  name: 'nbd',
  kind: 'protocol',
  children: [],
  optionKeys: ['server', 'export'],
  identityOptions: ['server', 'export'],

  async open({ host, readOnly }, nodeOptions) {
    const options = parseNbdOptions(nodeOptions);
    const { server: address, exportName } = options;
    const node = new NbdNode(await NbdClient.connect({ host, address, exportName }), options);
    const mayBeReadOnly = readOnly || (booleanOption(nodeOptions, 'auto-read-only') ?? false);
    if (node.isReadOnly && !mayBeReadOnly) {
      await node.close();
      throw deniedError();
    }
    return node;
  },

  filename: nbdFilename,
  parseFilename: parseNbdFilename,
};
