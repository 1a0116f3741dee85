import type { IoDriver } from './driver.js';

/** What a write carries: bytes in memory, or plain bytes of a host file that can be copied without reading them. */
export interface Payload {
  readonly lengthBytes: number;
  /** The bytes [from, from + lengthBytes) of the payload; read on demand where they are still in a file. */
  bytes(from: number, lengthBytes: number): Uint8Array | Promise<Uint8Array>;
  /** Where they lie, when they do. */
  readonly file?: { readonly io: IoDriver; readonly offset: number };
}

export class BufferPayload implements Payload {
  readonly #buffer: Uint8Array;

  constructor(buffer: Uint8Array) {
    this.#buffer = buffer;
  }

  get lengthBytes(): number {
    return this.#buffer.length;
  }

  bytes(from: number, lengthBytes: number): Uint8Array {
    if (from === 0 && lengthBytes === this.#buffer.length) return this.#buffer;
    return this.#buffer.subarray(from, from + lengthBytes);
  }
}

export function zeroPayload(lengthBytes: number): Payload {
  return new BufferPayload(Buffer.alloc(lengthBytes));
}

/** Bytes of a host file, for copy_file_range. */
export class FilePayload implements Payload {
  readonly file: { readonly io: IoDriver; readonly offset: number };
  readonly lengthBytes: number;
  /** A write of it that failed did so because of its bytes. */
  failedToRead = false;

  constructor(io: IoDriver, offset: number, lengthBytes: number) {
    this.file = { io, offset };
    this.lengthBytes = lengthBytes;
  }

  async bytes(from: number, lengthBytes: number): Promise<Uint8Array> {
    const buffer = Buffer.allocUnsafe(lengthBytes);
    const { io, offset } = this.file;
    try {
      if (!io.tryRead?.(offset + from, buffer)) await io.read(offset + from, buffer);
    } catch (error) {
      this.failedToRead = true;
      throw error;
    }
    return buffer;
  }
}
