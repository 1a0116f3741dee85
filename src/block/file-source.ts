import type { IoDriver } from './driver.js';
import { IoRequest, type RequestSource } from './request.js';

/** Plain bytes of a host file, for IoDriver.copyFrom; read only where that cannot be. */
export class FileSource implements RequestSource {
  readonly io: IoDriver;
  readonly offset: number;
  /** A write of it that failed did so because of its bytes. */
  failedToRead = false;

  #release: (() => void) | undefined;

  /** `release`: called when the write that reads the bytes has ended. */
  constructor(io: IoDriver, offset: number, release?: () => void) {
    this.io = io;
    this.offset = offset;
    this.#release = release;
  }

  end(): void {
    const release = this.#release;
    this.#release = undefined;
    release?.();
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

/**
 * Such bytes on their way to a peer, who may take his time. Who waits for their place does not wait for him: then they are
 * read into memory. What the peer gets may be what is written to the place afterwards: whoever gave it up sees to that.
 */
export class SentSource extends FileSource {
  readonly #lengthBytes: number;
  #memory: Promise<Uint8Array> | undefined;

  constructor(io: IoDriver, offset: number, lengthBytes: number, release: () => void) {
    super(io, offset, release);
    this.#lengthBytes = lengthBytes;
  }

  /** Gives the place up as soon as the bytes are in memory. */
  leave(): void {
    this.#inMemory().catch(() => undefined);
  }

  override async bytes(from: number, lengthBytes: number): Promise<Uint8Array> {
    return (await this.#inMemory()).subarray(from, from + lengthBytes);
  }

  async #inMemory(): Promise<Uint8Array> {
    this.failedToRead = false;
    this.#memory ??= super.bytes(0, this.#lengthBytes);
    try {
      const bytes = await this.#memory;
      this.end();
      return bytes;
    } catch (error) {
      this.#memory = undefined;
      throw error;
    }
  }
}

/** A write of bytes that lie in a file. */
export function fileRequest(source: FileSource, lengthBytes: number): IoRequest {
  const request = new IoRequest().ask('write', 0, lengthBytes);
  request.source = source;
  return request;
}
