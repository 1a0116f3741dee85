import { protocolConformance } from '../../../test/kit/conformance.js';
import { fileDriver } from './index.js';

protocolConformance({
  name: 'file',
  drivers: [fileDriver],
  shape: { sizeBytes: 5 * 4096 + 512, unitBytes: 4096 },
  canGrow: true,
  async create(bed, sizeBytes) {
    const filename = bed.newPath('raw');
    await fileDriver.createFile?.(bed.host, filename, sizeBytes);
    return { driver: 'file', filename };
  },
});
