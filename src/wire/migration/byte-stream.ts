import { deferred, Notifier } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import type { HostPipe, HostSocket } from '../../host/host.js';

/**
 * Where a machine's state goes to or comes from: a connection, or what has one direction only (a file, a command's
 * standard input or output). The chunks that are read are the reader's; bytes to write must stay as they are until then.
 */
export interface ByteStream extends HostPipe {
  /** Nobody answers: what one end writes is read later, or never. */
  readonly isOneWay: boolean;
}

/** A connection as a byte stream. */
export class SocketStream implements ByteStream {
  readonly isOneWay = false;
  readonly #socket: HostSocket;
  readonly #chunks: Buffer[] = [];
  readonly #changed = new Notifier();
  #isClosed = false;
  #error: Error | undefined;
  #drained = deferred();
  #isPaused = false;

  constructor(socket: HostSocket) {
    this.#socket = socket;
    socket.start({
      onData: (chunk) => this.#take(chunk),
      onClose: (error) => this.#close(error),
      onDrain: () => {
        this.#drained.resolve();
        this.#drained = deferred();
      },
    });
  }

  async read(): Promise<Buffer | undefined> {
    await this.#changed.until(() => this.#chunks.length > 0 || this.#isClosed);
    const chunk = this.#chunks.shift();
    if (chunk && this.#isPaused && this.#chunks.length === 0) {
      this.#isPaused = false;
      this.#socket.resume();
    }
    if (!chunk && this.#error) throw closed(this.#error);
    return chunk;
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (this.#isClosed) throw closed(this.#error);
    if (this.#socket.write(bytes) === 'sent') return;
    const { promise } = this.#drained;
    await Promise.race([promise, this.#changed.until(() => this.#isClosed)]);
    if (this.#isClosed) throw closed(this.#error);
  }

  async finish(): Promise<void> {
    this.#socket.end();
    await this.#changed.until(() => this.#isClosed);
  }

  destroy(): void {
    this.#socket.destroy();
    this.#close();
  }

  #take(chunk: Buffer): void {
    if (this.#isClosed) return;
    this.#chunks.push(Buffer.from(chunk));
    if (!this.#isPaused) {
      this.#isPaused = true;
      this.#socket.pause();
    }
    this.#changed.notify();
  }

  #close(error?: Error): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#error = error;
    this.#changed.notify();
  }
}

function closed(cause: Error | undefined): BlockError {
  const text = cause instanceof BlockError ? cause.message : 'the other end has closed the connection';
  return new BlockError('closed', text, cause && { cause });
}
