import type { Host } from '../../host/host.js';
import { readBuffer } from '../../host/whole-buffers.js';

/** The bytes of a small file, the first `mostBytes`. Errors: those of opening and reading. */
export async function readWholeFile(host: Host, path: string, mostBytes = Infinity): Promise<Buffer> {
  const file = await host.files.open(path, { write: false });
  try {
    const buffer = Buffer.alloc(Math.min(file.sizeBytes(), mostBytes));
    await readBuffer(file, 0, buffer);
    return buffer;
  } finally {
    await file.close();
  }
}
