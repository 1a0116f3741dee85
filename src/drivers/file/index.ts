import { BlockError, errnoError } from '../../base/error.js';
import type { DriverContext, DriverDescription } from '../../block/driver.js';
import { hasProtocol } from '../../block/filename.js';
import { ALL_PERMISSIONS, Permission } from '../../block/permissions.js';
import type { Host, HostFile } from '../../host/host.js';
import { FILE_OPTIONS } from '../../schema/blockdev-options.js';
import { acquireLocks } from './locks.js';
import { FileNode } from './node.js';
import { checkFileSettings, type FileSettings } from './options.js';

/** What making a file needs, and keeps others from. */
const CREATOR = {
  perm: Permission.write | Permission.resize,
  shared: ALL_PERMISSIONS - Permission.resize,
};

async function openFile({ host, readOnly }: DriverContext, settings: FileSettings): Promise<HostFile> {
  const { filename, cache } = settings;
  await checkKind(host, filename, readOnly);
  const write = !readOnly && settings['auto-read-only'] !== true;
  return host.files.open(filename, { write, direct: cache.direct });
}

/** Before it is opened: what is neither a file nor a block device may make that wait for ever. */
async function checkKind(host: Host, path: string, readOnly: boolean): Promise<void> {
  const found = await host.files.stat(path);
  const what = `Could not open '${path}'`;
  if (found?.isSpecial === 'socket') throw errnoError('ENXIO', what, { path });
  if (found?.isDirectory && !readOnly) throw errnoError('EISDIR', what, { path });
  if (!found?.isDirectory && (found?.isSpecial ?? 'no') === 'no') return;
  throw new BlockError('invalid', `'file' driver requires '${path}' to be a regular file`, { path });
}

/** A file that somebody uses is refused (kind busy) before anything of it is lost. */
async function createFile(host: Host, path: string, sizeBytes: number): Promise<void> {
  const found = await host.files.stat(path);
  if (found && found.isSpecial !== 'no') await checkKind(host, path, false);
  const file = await host.files.open(path, { write: true, create: true });
  try {
    acquireLocks(file, new Set(), CREATOR);
    if (file.traits.isBlockDevice) checkDevice(file, sizeBytes);
    else {
      await file.truncate(0);
      await file.truncate(sizeBytes);
    }
  } finally {
    await file.close();
  }
}

/** A device is taken as it is. */
function checkDevice(file: HostFile, sizeBytes: number): void {
  if (file.sizeBytes() >= sizeBytes) return;
  throw new BlockError('no-space', `Device '${file.path}' is smaller than ${sizeBytes} bytes`, {
    path: file.path,
  });
}

/** Regular files and block devices of the host. */
export const fileDriver: DriverDescription<typeof FILE_OPTIONS> = {
  name: 'file',
  kind: 'protocol',
  options: FILE_OPTIONS,
  identityOptions: ['filename'],

  async open(context, settings) {
    checkFileSettings(settings);
    return new FileNode(context.host, settings, await openFile(context, settings));
  },

  createFile,

  /** A relative name with a colon would be taken for a protocol's. */
  filename({ filename }) {
    return typeof filename !== 'string' || hasProtocol(filename) ? undefined : filename;
  },

  parseFilename(filename) {
    if (filename.startsWith('file:')) return { filename: filename.slice('file:'.length) };
    return hasProtocol(filename) ? undefined : { filename };
  },
};
