import type { Duplex } from 'node:stream';
import type { HostSocket, SocketHandler } from '../../host/host.js';

/** One end of a socket pair whose other end a child has. */
export class ChildSocket implements HostSocket {
  readonly #stream: Duplex;
  #isGone = false;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.on('error', () => (this.#isGone = true));
  }

  start(handler: SocketHandler): void {
    this.#stream.on('data', (chunk: Buffer) => handler.onData(chunk));
    this.#stream.on('drain', () => handler.onDrain?.());
    this.#stream.once('close', () => {
      this.#isGone = true;
      handler.onClose();
    });
  }

  write(buffer: Uint8Array): 'sent' | 'queued' {
    if (this.#isGone) return 'sent';
    return this.#stream.write(buffer) ? 'sent' : 'queued';
  }

  get queuedBytes(): number {
    return this.#stream.writableLength;
  }

  pause(): void {
    this.#stream.pause();
  }

  resume(): void {
    this.#stream.resume();
  }

  end(): void {
    this.#stream.end();
  }

  destroy(): void {
    this.#stream.destroy();
  }

  isPeerGone(): boolean {
    return this.#isGone;
  }

  async shutDown(): Promise<void> {
    this.#stream.destroy();
  }
}
