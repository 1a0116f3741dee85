import { BlockError, errnoError } from '../../base/error.js';
import type { DriverDescription, NewFileTraits } from '../../block/driver.js';
import { hasProtocol } from '../../block/filename.js';
import type { Host, HostStat } from '../../host/host.js';
import { FILE_OPTIONS } from '../../schema/blockdev-options.js';
import { acquireLocks, CREATOR } from './locks.js';
import { openFileNode, plainPath } from './open.js';

async function checkKind(host: Host, path: string, readOnly: boolean): Promise<void> {
  const found = await host.files.stat(path);
  const what = `Could not open '${path}'`;
  if (found?.isSpecial === 'socket') throw errnoError('ENXIO', what, { path });
  if (found?.isDirectory && !readOnly) throw errnoError('EISDIR', what, { path });
  if (!found || isRegular(found)) return;
  throw new BlockError('invalid', `'file' driver requires '${path}' to be a regular file`, { path });
}

function isRegular({ isDirectory, isBlockDevice, isSpecial }: HostStat): boolean {
  return !isDirectory && !isBlockDevice && isSpecial === 'no';
}

/** A file that somebody uses is refused (kind busy) before anything of it is lost. */
async function createFile(
  host: Host,
  path: string,
  sizeBytes: number,
  { noCopyOnWrite = false }: NewFileTraits = {},
): Promise<void> {
  const found = await host.files.stat(path);
  if (found?.isBlockDevice === true) throw errnoError('EINVAL', 'Could not resize file', { path });
  if (found && found.isSpecial !== 'no') await checkKind(host, path, false);
  const file = await host.files.open(path, { write: true, create: true });
  try {
    acquireLocks(file, new Set(), CREATOR);
    await file.truncate(0);
    if (noCopyOnWrite) file.forbidCopyOnWrite();
    await file.truncate(sizeBytes);
  } finally {
    await file.close();
  }
}

/** Regular files of the host. */
export const fileDriver: DriverDescription<typeof FILE_OPTIONS> = {
  name: 'file',
  kind: 'protocol',
  options: FILE_OPTIONS,
  identityOptions: ['filename'],
  hasFolders: true,

  open: (context, settings) => openFileNode('file', context, settings, checkKind),
  createFile,
  takesFileTraits: true,

  filename: plainPath,

  parseFilename(filename) {
    if (filename.startsWith('file:')) return { filename: filename.slice('file:'.length) };
    return hasProtocol(filename) ? undefined : { filename };
  },
};
