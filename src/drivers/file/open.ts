import type { DriverContext, GivenOptions } from '../../block/driver.js';
import { hasProtocol } from '../../block/filename.js';
import type { Host, HostFile } from '../../host/host.js';
import { FileNode } from './node.js';
import { checkFileSettings, type FileSettings } from './options.js';

/**
 * Opens what lies at a path. `checkKind` comes first: opening what is neither a file nor a block device may make that
 * wait for ever. Errors: those of both.
 */
export async function openFileNode(
  driverName: string,
  { host, readOnly, nodeName }: DriverContext,
  settings: FileSettings,
  checkKind: (host: Host, path: string, readOnly: boolean) => Promise<void>,
): Promise<FileNode> {
  checkFileSettings(driverName, settings);
  const { filename, cache } = settings;
  const passed = host.passing?.files.get(nodeName);
  if (passed) {
    host.passing?.files.delete(nodeName);
    const { fd: descriptor, path, writable: write, direct, locked } = passed;
    return new FileNode(host, settings, await host.files.open(path, { write, direct, descriptor }), locked);
  }
  await checkKind(host, filename, readOnly);
  const write = !readOnly && settings['auto-read-only'] !== true;
  const file: HostFile = await host.files.open(filename, { write, direct: cache.direct });
  return new FileNode(host, settings, file);
}

/** The plain name of what lies at a path, if it has one: a relative name with a colon would be taken for a protocol's. */
export function plainPath({ filename }: GivenOptions): string | undefined {
  return typeof filename !== 'string' || hasProtocol(filename) ? undefined : filename;
}
