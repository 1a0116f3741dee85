import { BlockError, errnoError, toBlockError } from '../../base/error.js';
import type { Host, HostSocket, SocketAddress, SocketHandler, TlsEnd } from '../../host/host.js';
import { ByteReader, type EndOfData } from './byte-reader.js';

/** A client's connection while it shakes hands: what comes is read byte by byte, and it may turn into one of TLS. */
export class HandshakeSocket {
  readonly reader = new ByteReader();
  readonly #host: Host;
  #socket: HostSocket;
  #handler: SocketHandler = {
    onData: (chunk) => this.reader.push(chunk),
    onClose: (error) => this.reader.fail(endOfFile(error)),
  };
  /** Passes on to whatever is the handler by then. */
  readonly #current: SocketHandler = {
    onData: (chunk) => this.#handler.onData(chunk),
    onClose: (error) => this.#handler.onClose(error),
    onDrain: () => this.#handler.onDrain?.(),
  };

  private constructor(host: Host, socket: HostSocket) {
    this.#host = host;
    this.#socket = socket;
    socket.start(this.#current);
  }

  /**
   * Runs a handshake; the connection is closed when that fails. Errors: those of the host's connect, of `body`, and
   * ETIMEDOUT.
   */
  static async run<T>(
    host: Host,
    address: SocketAddress,
    timeoutMs: number,
    body: (connection: HandshakeSocket) => Promise<T>,
  ): Promise<T> {
    const connection = new HandshakeSocket(host, await host.net.connect(address, { timeoutMs }));
    const timer = host.clock.setTimer(timeoutMs, () => {
      connection.reader.fail(errnoError('ETIMEDOUT', 'NBD handshake failed'));
      // Ends a handshake of TLS, too.
      connection.#socket.destroy();
    });
    try {
      return await body(connection);
    } catch (error) {
      // Goodbye may have been said.
      connection.#socket.end();
      throw error;
    } finally {
      timer.cancel();
    }
  }

  readonly send = (message: Buffer): void => void this.#socket.write(message);

  /** As it is by now; what comes goes to `handler`, and no more to the reader. */
  handOn(handler: SocketHandler): void {
    this.#handler = handler;
  }

  get socket(): HostSocket {
    return this.#socket;
  }

  /** Errors: corrupt when something was said before it was secret; those of the host's secure. */
  async secure(end: TlsEnd): Promise<void> {
    if (this.reader.rest().length > 0) throw new BlockError('corrupt', 'Unexpected data before TLS');
    try {
      this.#socket = await this.#host.net.secure(this.#socket, end);
    } catch (error) {
      // Why it was closed, if it was by this side.
      this.reader.check();
      throw error;
    }
    this.#socket.start(this.#current);
  }
}

function endOfFile(error: Error | undefined): EndOfData {
  return (what) => {
    const text = `Failed to read ${what}`;
    if (error) return toBlockError(error, text);
    return new BlockError('closed', `${text}: Unexpected end-of-file before all data were read`);
  };
}
