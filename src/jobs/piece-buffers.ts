import type { Host } from '../host/host.js';
import { PIECE_BYTES } from './copy-window.js';

/** Memory for pieces of a copy, used again and again. */
export class PieceBuffers {
  readonly #host: Host;
  readonly #free: Buffer[] = [];

  constructor(host: Host) {
    this.#host = host;
  }

  /** At least as long. */
  take(lengthBytes: number): Buffer {
    if (lengthBytes > PIECE_BYTES) return Buffer.allocUnsafe(lengthBytes);
    return this.#free.pop() ?? this.#host.files.buffer(PIECE_BYTES);
  }

  /** Nobody uses it any more. */
  giveBack(buffer: Buffer): void {
    if (buffer.length <= PIECE_BYTES) this.#free.push(buffer);
  }
}
