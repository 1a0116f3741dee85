import type { PeerMemory } from '../../src/wire/vhost-user/kept-memory.js';

/** Memory that nobody shares. */
export function sharedMemoryOf(buffer: Buffer): PeerMemory {
  return {
    fd: -1,
    lengthBytes: buffer.length,
    view: (offset, lengthBytes) => buffer.subarray(offset, offset + lengthBytes),
    unmap: () => undefined,
  };
}
