import type net from 'node:net';
import { assert } from '../base/assert.js';
import { toBlockError } from '../base/error.js';
import type { HostSocket, SocketHandler } from './host.js';

/** A connected stream socket whose chunks arrive through deliver(), see RealNet. */
export class RealSocket implements HostSocket {
  #socket!: net.Socket;
  #handler: SocketHandler | undefined;
  #error: Error | undefined;
  #closed = false;
  #closeTold = false;
  #ended = false;
  #owesDrain = false;

  /** The socket is paused: it delivers nothing before start(). */
  attach(socket: net.Socket): void {
    this.#socket = socket;
    socket.on('error', (error) => (this.#error ??= toBlockError(error)));
    socket.on('close', () => {
      this.#closed = true;
      this.#tellClose();
    });
  }

  /** A chunk of the shared read buffer. */
  deliver(chunk: Buffer): void {
    if (!this.#closeTold) this.#handler?.onData(chunk);
  }

  start(handler: SocketHandler): void {
    assert(!this.#handler, 'socket was started twice');
    this.#handler = handler;
    if (this.#closed) setImmediate(() => this.#tellClose());
    else this.#socket.resume();
  }

  write(buffer: Uint8Array): 'sent' | 'queued' {
    // What a dead peer does not get is not an error of the writer: onClose tells it.
    if (this.#ended || this.#socket.destroyed || buffer.length === 0) return 'sent';
    this.#socket.write(buffer, this.#wrote);
    if (this.#socket.writableLength === 0) return 'sent';
    this.#owesDrain = true;
    return 'queued';
  }

  get queuedBytes(): number {
    return this.#socket.destroyed ? 0 : this.#socket.writableLength;
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#socket.end(() => this.#socket.destroy());
  }

  destroy(): void {
    this.#ended = true;
    this.#socket.destroy();
  }

  /** After each write. The stream's own 'drain' event stays away below its high water mark. */
  readonly #wrote = (): void => {
    if (!this.#owesDrain || this.#socket.writableLength > 0 || this.#socket.destroyed) return;
    this.#owesDrain = false;
    if (!this.#closeTold) this.#handler?.onDrain?.();
  };

  #tellClose(): void {
    if (this.#closeTold || !this.#handler) return;
    this.#closeTold = true;
    this.#handler.onClose(this.#error);
  }
}
