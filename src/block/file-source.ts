import type { IoDriver } from './driver.js';
import { IoRequest, type RequestSource } from './request.js';

/** Plain bytes of a host file, for copy_file_range; read only where that cannot be. */
export class FileSource implements RequestSource {
  readonly io: IoDriver;
  readonly offset: number;
  /** A write of it that failed did so because of its bytes. */
  failedToRead = false;

  readonly #release: (() => void) | undefined;

  /** `release`: called when the write that reads the bytes has ended. */
  constructor(io: IoDriver, offset: number, release?: () => void) {
    this.io = io;
    this.offset = offset;
    this.#release = release;
  }

  end(): void {
    this.#release?.();
  }

  async bytes(from: number, lengthBytes: number): Promise<Uint8Array> {
    const { io } = this;
    const buffer = Buffer.allocUnsafe(lengthBytes);
    const request = IoRequest.ofBuffer(buffer);
    const offset = this.offset + from;
    try {
      if (!io.tryRead?.(request, 0, lengthBytes, offset)) await io.read(request, 0, lengthBytes, offset);
    } catch (error) {
      this.failedToRead = true;
      throw error;
    }
    return buffer;
  }
}

/** A write of bytes that lie in a file. */
export function fileRequest(source: FileSource, lengthBytes: number): IoRequest {
  const request = new IoRequest().ask('write', 0, lengthBytes);
  request.source = source;
  return request;
}
