import { protocolConformance } from '../../../test/kit/conformance.js';
import { SftpServer } from '../../../test/kit/sftp-server.js';
import { fileDriver } from '../file/index.js';
import { sshDriver } from './index.js';

const server = new SftpServer();
let files = 0;

protocolConformance({
  name: 'ssh',
  drivers: [fileDriver, sshDriver],
  shape: { sizeBytes: 5 * 4096 + 512, unitBytes: 4096 },
  canGrow: true,
  runs: 5,
  async create(bed, sizeBytes) {
    Object.assign(bed.host, server.hostOver(bed.host));
    const path = `/file${files++}`;
    await sshDriver.createFile?.(bed.host, `ssh://host${path}`, sizeBytes);
    return { driver: 'ssh', server: { host: 'host', port: '22' }, path };
  },
});
