import type { HostSocket, SocketHandler } from './host.js';

/** What comes out of one pipe, and what goes into another. */
export class JoinedPipes implements HostSocket {
  readonly #input: HostSocket;
  readonly #output: HostSocket;

  constructor(input: HostSocket, output: HostSocket) {
    this.#input = input;
    this.#output = output;
  }

  start(handler: SocketHandler): void {
    this.#input.start({
      onData: (chunk) => handler.onData(chunk),
      onClose: (error) => handler.onClose(error),
    });
    this.#output.start({
      onData: () => undefined,
      onClose: () => undefined,
      onDrain: () => handler.onDrain?.(),
    });
  }

  write(buffer: Uint8Array): 'sent' | 'queued' {
    return this.#output.write(buffer);
  }

  get queuedBytes(): number {
    return this.#output.queuedBytes;
  }

  pause(): void {
    this.#input.pause();
  }

  resume(): void {
    this.#input.resume();
  }

  end(): void {
    this.#input.destroy();
    this.#output.end();
  }

  destroy(): void {
    this.#input.destroy();
    this.#output.destroy();
  }

  isPeerGone(): boolean {
    return this.#input.isPeerGone();
  }

  async shutDown(): Promise<void> {
    this.destroy();
  }
}
