import { BlockError, errnoError } from '../../base/error.js';
import type { DriverContext, DriverDescription } from '../../block/driver.js';
import { hasProtocol } from '../../block/filename.js';
import { stringOption } from '../../block/options.js';
import { ALL_PERMISSIONS, Permission } from '../../block/permissions.js';
import type { Host, HostFile } from '../../host/host.js';
import { acquireLocks } from './locks.js';
import { FileNode } from './node.js';
import { type FileOptions, parseFileOptions } from './options.js';

/** What making a file needs, and keeps others from. */
const CREATOR = {
  perm: Permission.write + Permission.resize,
  shared: ALL_PERMISSIONS - Permission.resize,
};

async function openFile({ host, readOnly }: DriverContext, options: FileOptions): Promise<HostFile> {
  const { filename, direct, autoReadOnly } = options;
  await checkKind(host, filename, readOnly);
  return host.files.open(filename, { write: !readOnly && !autoReadOnly, direct });
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
export const fileDriver: DriverDescription = {
  name: 'file',
  kind: 'protocol',
  children: [],
  optionKeys: ['filename', 'locking', 'aio'],
  identityOptions: ['filename'],

  async open(context, nodeOptions) {
    const options = parseFileOptions(nodeOptions);
    return new FileNode(context.host, options, await openFile(context, options));
  },

  createFile,

  /** A relative name with a colon would be taken for a protocol's. */
  filename(options) {
    const filename = stringOption(options, 'filename');
    return filename === undefined || hasProtocol(filename) ? undefined : filename;
  },

  parseFilename(filename) {
    if (filename.startsWith('file:')) return { filename: filename.slice('file:'.length) };
    return hasProtocol(filename) ? undefined : { filename };
  },
};
