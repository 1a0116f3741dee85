import { assert } from '../base/assert.js';
import { KiB } from '../base/limits.js';
import type { HostSocket } from '../host/host.js';
import type { BufferPool } from './buffer-pool.js';

/** Replies up to this size gather in one buffer; larger ones travel in their own. */
export const REPLY_BUFFER_BYTES = 256 * KiB;

/**
 * Gathers outgoing messages so that a batch costs one send, without copying what was read straight into place:
 * reserve() room, fill buffer from the position answered, commit(), and flush() at the end of the batch.
 */
export class ReplyStream {
  readonly #socket: HostSocket;
  readonly #pool: BufferPool;
  /** Where reserve()'s positions count. */
  buffer: Buffer;
  /** [0, sent) was given to the socket, [sent, used) waits for flush(). */
  #sent = 0;
  #used = 0;
  /** The socket still holds bytes of `buffer`. */
  #isHeld = false;
  readonly #held: Buffer[] = [];

  constructor(socket: HostSocket, pool: BufferPool) {
    this.#socket = socket;
    this.#pool = pool;
    this.buffer = pool.take(REPLY_BUFFER_BYTES);
  }

  /** Bytes that the peer has not taken yet. */
  get queuedBytes(): number {
    return this.#socket.queuedBytes + this.#used - this.#sent;
  }

  reserve(lengthBytes: number): number {
    assert(lengthBytes <= REPLY_BUFFER_BYTES, `reply of ${lengthBytes} bytes`);
    if (this.#used + lengthBytes > this.buffer.length) {
      this.flush();
      if (this.#used + lengthBytes > this.buffer.length) this.#renew();
    }
    return this.#used;
  }

  commit(lengthBytes: number): void {
    this.#used += lengthBytes;
  }

  flush(): void {
    if (this.#used === this.#sent) return;
    const sent = this.#socket.write(this.buffer.subarray(this.#sent, this.#used)) === 'sent';
    this.#sent = this.#used;
    if (!sent) this.#isHeld = true;
    else if (!this.#isHeld) this.#sent = this.#used = 0;
  }

  /** Sends the first `lengthBytes` of a buffer of the pool, which goes back to it when the peer has them. */
  sendOwn(buffer: Buffer, lengthBytes: number): void {
    this.flush();
    if (this.#socket.write(buffer.subarray(0, lengthBytes)) === 'sent') this.#pool.give(buffer);
    else this.#held.push(buffer);
  }

  /** Sends bytes that the caller wants back at once. */
  sendCopy(bytes: Uint8Array): void {
    const copy = this.#pool.take(bytes.length);
    copy.set(bytes);
    this.sendOwn(copy, bytes.length);
  }

  /** The socket has nothing queued any more. */
  drained(): void {
    for (const buffer of this.#held) this.#pool.give(buffer);
    this.#held.length = 0;
    this.#isHeld = false;
    if (this.#sent === this.#used) this.#sent = this.#used = 0;
  }

  #renew(): void {
    assert(this.#sent === this.#used, 'unsent replies in a full buffer');
    this.#held.push(this.buffer);
    this.buffer = this.#pool.take(REPLY_BUFFER_BYTES);
    this.#sent = this.#used = 0;
    this.#isHeld = false;
  }
}
