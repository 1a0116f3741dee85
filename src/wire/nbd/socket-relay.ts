import type { HostSocket, SocketHandler } from '../../host/host.js';

/** A socket that is in use already, handed on to who takes it over: TLS. Its first user tells it what comes. */
export class SocketRelay implements HostSocket {
  readonly #inner: HostSocket;
  #handler: SocketHandler | undefined;

  constructor(inner: HostSocket) {
    this.#inner = inner;
  }

  /** From the first user's handler. */
  readonly handler: SocketHandler = {
    onData: (chunk) => this.#handler?.onData(chunk),
    onClose: (error) => this.#handler?.onClose(error),
    onDrain: () => this.#handler?.onDrain?.(),
  };

  start(handler: SocketHandler): void {
    this.#handler = handler;
  }

  write(buffer: Uint8Array): 'sent' | 'queued' {
    return this.#inner.write(buffer);
  }

  get queuedBytes(): number {
    return this.#inner.queuedBytes;
  }

  pause(): void {
    this.#inner.pause();
  }

  resume(): void {
    this.#inner.resume();
  }

  end(): void {
    this.#inner.end();
  }

  destroy(): void {
    this.#inner.destroy();
  }

  isPeerGone(): boolean {
    return this.#inner.isPeerGone();
  }

  shutDown(): Promise<void> {
    return this.#inner.shutDown();
  }
}
