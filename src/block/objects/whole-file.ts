import type { Host } from '../../host/host.js';
import { readBuffer } from '../../host/whole-buffers.js';

/** The bytes of a small file. Errors: those of opening and reading. */
export async function readWholeFile(host: Host, path: string): Promise<Buffer> {
  const file = await host.files.open(path, { write: false });
  try {
    const buffer = Buffer.alloc(file.sizeBytes());
    await readBuffer(file, 0, buffer);
    return buffer;
  } finally {
    await file.close();
  }
}
