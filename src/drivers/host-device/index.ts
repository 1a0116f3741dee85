import { BlockError, errnoError } from '../../base/error.js';
import type { DriverDescription } from '../../block/driver.js';
import type { Host } from '../../host/host.js';
import { HOST_DEVICE_OPTIONS } from '../../schema/blockdev-options.js';
import { acquireLocks, CREATOR } from '../file/locks.js';
import { openFileNode, plainPath } from '../file/open.js';
import { writeBuffer } from '../../host/whole-buffers.js';

const PREFIX = 'host_device:';
const SECTOR_BYTES = 512;

async function checkKind(host: Host, path: string, readOnly: boolean): Promise<void> {
  const found = await host.files.stat(path);
  const what = `Could not open '${path}'`;
  if (!found) throw errnoError('ENOENT', what, { path });
  if (found.isBlockDevice) return;
  if (found.isSpecial === 'socket') throw errnoError('ENXIO', what, { path });
  if (found.isDirectory && !readOnly) throw errnoError('EISDIR', what, { path });
  if (found.isSpecial === 'character device')
    throw new BlockError('unsupported', `'${path}' is a character device, which livedisk does not support`, {
      path,
    });
  const text = `'host_device' driver requires '${path}' to be either a character or block device`;
  throw new BlockError('invalid', text, { path });
}

/** A device is taken as it is, but for what would tell of the image that was there. */
async function clearFirstSector(host: Host, path: string, sizeBytes: number): Promise<void> {
  await checkKind(host, path, false);
  const file = await host.files.open(path, { write: true });
  try {
    acquireLocks(file, new Set(), CREATOR);
    if (file.sizeBytes() < sizeBytes) throw new BlockError('invalid', 'Cannot grow device files', { path });
    await writeBuffer(file, 0, Buffer.alloc(Math.min(SECTOR_BYTES, file.sizeBytes())));
    await file.flush();
  } finally {
    await file.close();
  }
}

/** Block devices of the host. */
export const hostDeviceDriver: DriverDescription<typeof HOST_DEVICE_OPTIONS> = {
  name: 'host_device',
  kind: 'protocol',
  options: HOST_DEVICE_OPTIONS,
  identityOptions: ['filename'],
  hasFolders: true,

  open: (context, settings) => openFileNode('host_device', context, settings, checkKind),
  createFile: clearFirstSector,

  filename: plainPath,
  takesImages: true,
  parseFilename: (filename) =>
    filename.startsWith(PREFIX) ? { filename: filename.slice(PREFIX.length) } : undefined,
  async claims(host, path) {
    const found = await host.files.stat(path).catch(() => undefined);
    return found !== undefined && (found.isBlockDevice || found.isSpecial === 'character device');
  },
};
