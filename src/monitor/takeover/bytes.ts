import type { Host } from '../../host/host.js';
import type { BytesState } from './messages.js';

/** Bytes of another process; their descriptor is closed. */
export function takeBytes(
  { sharing }: Pick<Host, 'sharing'>,
  { fd: place, lengthBytes }: BytesState,
  fds: readonly number[],
): Uint8Array {
  const fd = fds[place] ?? -1;
  const bytes = new Uint8Array(lengthBytes);
  if (lengthBytes > 0) {
    const memory = sharing?.map(fd, 0, lengthBytes);
    if (memory) bytes.set(memory.view(0, lengthBytes));
    memory?.unmap();
  }
  sharing?.close(fd);
  return bytes;
}
