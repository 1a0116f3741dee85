import { assert } from '../../base/assert.js';
import { KiB } from '../../base/limits.js';
import type { HostSocket } from '../../host/host.js';
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
  /** Bytes given to the socket in all. */
  #writtenBytes = 0;
  /** What #writtenBytes was after the last bytes of `buffer` that the socket queued; 0: it holds none. */
  #bufferEnd = 0;
  /** Full or foreign buffers that the socket holds, oldest first, with what #writtenBytes was after them. */
  readonly #held: Array<{ buffer: Buffer; end: number }> = [];
  #isClosed = false;

  constructor(socket: HostSocket, pool: BufferPool) {
    this.#socket = socket;
    this.#pool = pool;
    this.buffer = pool.take(REPLY_BUFFER_BYTES);
  }

  /** Bytes that the peer has not taken yet. */
  get queuedBytes(): number {
    return this.#socket.queuedBytes + this.#used - this.#sent;
  }

  /** Bytes that the socket has handed on, in all. */
  get goneBytes(): number {
    return this.#writtenBytes - this.#socket.queuedBytes;
  }

  reserve(lengthBytes: number): number {
    assert(lengthBytes <= REPLY_BUFFER_BYTES, () => `reply of ${lengthBytes} bytes`);
    if (this.#used + lengthBytes > this.buffer.length) this.#makeRoom(lengthBytes);
    return this.#used;
  }

  #makeRoom(lengthBytes: number): void {
    // A socket that is gone may tell of queued bytes for a while; nobody gets them.
    if (this.#isClosed) this.#sent = this.#used = 0;
    else {
      this.flush();
      if (this.#used + lengthBytes > this.buffer.length) this.#renew();
    }
  }

  commit(lengthBytes: number): void {
    this.#used += lengthBytes;
  }

  flush(): void {
    if (this.#used === this.#sent) return;
    const sent = this.#write(this.buffer.subarray(this.#sent, this.#used));
    this.#sent = this.#used;
    if (!sent) this.#bufferEnd = this.#writtenBytes;
    this.#release();
  }

  /** Sends [from, to) of a buffer of the pool, which goes back to it when the peer has them. */
  sendOwn(buffer: Buffer, from: number, to: number): void {
    this.flush();
    if (this.#write(buffer.subarray(from, to))) this.#pool.give(buffer);
    else this.#held.push({ buffer, end: this.#writtenBytes });
    this.#release();
  }

  /** Sends [from, to) of a buffer of the pool that stays in use until a sendOwn of it, which must follow. */
  sendPart(buffer: Buffer, from: number, to: number): void {
    this.flush();
    this.#write(buffer.subarray(from, to));
  }

  /** See HostSocket. */
  get isLocal(): boolean {
    return this.#socket.isLocal === true;
  }

  /** Whether sendFile() sends any. */
  get sendsFiles(): boolean {
    return this.#socket.sendFile !== undefined;
  }

  /** Sends a head, which is the caller's again at once, and bytes of a file; see HostSocket.sendFile. */
  sendFile(
    head: Uint8Array,
    file: object,
    position: number,
    lengthBytes: number,
    left?: () => void,
  ): boolean {
    if (this.#isClosed || !this.#socket.sendFile) return false;
    this.flush();
    if (!this.#socket.sendFile(head, file, position, lengthBytes, left)) return false;
    this.#writtenBytes += head.length + lengthBytes;
    this.#release();
    return true;
  }

  /** Sends bytes that the caller wants back at once. */
  sendCopy(bytes: Uint8Array): void {
    const copy = this.#pool.take(bytes.length);
    copy.set(bytes);
    this.sendOwn(copy, 0, bytes.length);
  }

  /** The socket has nothing queued any more. */
  drained(): void {
    this.#release();
  }

  /** The socket is gone: what it held is left to it, and what is still sent goes nowhere. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const { buffer } of this.#held.splice(0)) this.#pool.leave(buffer);
    this.#pool.leave(this.buffer);
  }

  /** False: the socket still needs the bytes. */
  #write(bytes: Buffer): boolean {
    if (this.#isClosed) return true;
    const sent = this.#socket.write(bytes) === 'sent';
    this.#writtenBytes += bytes.length;
    return sent;
  }

  /** Takes back what the socket has handed on. A busy connection may never have nothing queued. */
  #release(): void {
    const { goneBytes } = this;
    let count = 0;
    for (const { buffer, end } of this.#held) {
      if (end > goneBytes) break;
      this.#pool.give(buffer);
      count++;
    }
    if (count > 0) this.#held.splice(0, count);
    if (this.#bufferEnd > goneBytes) return;
    this.#bufferEnd = 0;
    if (this.#sent === this.#used) this.#sent = this.#used = 0;
  }

  #renew(): void {
    assert(this.#sent === this.#used, 'unsent replies in a full buffer');
    assert(!this.#isClosed, 'a closed stream holds nothing back');
    this.#held.push({ buffer: this.buffer, end: this.#bufferEnd });
    this.buffer = this.#pool.take(REPLY_BUFFER_BYTES);
    this.#sent = this.#used = 0;
    this.#bufferEnd = 0;
  }
}
