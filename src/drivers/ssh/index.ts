import { BlockError } from '../../base/error.js';
import type { DriverDescription, NodeOptions } from '../../block/driver.js';
import type { Host } from '../../host/host.js';
import { SSH_OPTIONS } from '../../schema/blockdev-options.js';
import { OpenFlag } from '../../wire/sftp/codec.js';
import { modernSshOptions, parseSshFilename, sshFilename, type SshPlace } from './address.js';
import { SshConnection } from './connection.js';
import { openFile, SshNode } from './node.js';

/** Files of other machines, over the SFTP of their SSH servers. */
export const sshDriver: DriverDescription<typeof SSH_OPTIONS> = {
  name: 'ssh',
  kind: 'protocol',
  hasFolders: true,
  folderRefusal: (options) =>
    options['host-key-check'] === undefined
      ? undefined
      : 'Cannot generate a base directory with host_key_check set',
  options: SSH_OPTIONS,
  identityOptions: ['server', 'path', 'user', 'host-key-check'],
  open: (context, settings) => SshNode.open(context, settings),
  createFile,
  createAt,
  filename: sshFilename,
  parseFilename: parseSshFilename,
  modernise: modernSshOptions,
};

async function createFile(host: Host, filename: string, sizeBytes: number): Promise<void> {
  const place = parseSshFilename(filename);
  if (!place) throw new BlockError('invalid', 'No valid URL specified');
  await createAt(host, place, sizeBytes);
}

/** Replaces a file that is there; durable where the server can make it so. */
async function createAt(host: Host, options: NodeOptions, sizeBytes: number): Promise<void> {
  const place = options as unknown as SshPlace;
  const connection = await SshConnection.open(host, place);
  try {
    const { client } = connection;
    const flags = OpenFlag.write + OpenFlag.create + OpenFlag.truncate;
    const handle = await openFile(connection, place.path, flags);
    if (sizeBytes > 0) await client.setSize(handle, sizeBytes);
    if (client.canFlush) await client.flush(handle);
    await client.close(handle);
  } finally {
    connection.close();
  }
}
