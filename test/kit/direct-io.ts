import type { Host } from '../../src/host/host.js';

/** Whether the file may be opened with O_DIRECT, which not every file system has (tmpfs before Linux 6.6, say). */
export async function takesDirect({ files }: Host, path: string): Promise<boolean> {
  const file = await files.open(path, { write: false, direct: true }).catch(() => undefined);
  await file?.close();
  return file !== undefined;
}
