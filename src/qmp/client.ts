import { deferred, type Deferred } from '../base/async.js';
import { BlockError } from '../base/error.js';
import type { Host, HostSocket, SocketAddress } from '../host/host.js';
import type { JsonObject, JsonValue } from '../schema/types.js';
import { formatJson } from './json-format.js';
import { JsonStream } from './json-parser.js';
import { type ErrorClass, QmpError } from './registry.js';

export interface QmpEvent {
  event: string;
  data: JsonObject;
}

/** A QMP client: of livedisk, of QEMU, of whatever speaks it. */
export class QmpClient {
  /** What the server says of itself. */
  greeting: JsonObject = {};
  readonly #socket: HostSocket;
  readonly #greeted = deferred();
  readonly #replies: Array<Deferred<JsonValue>> = [];
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  #closed: Error | undefined;

  private constructor(socket: HostSocket) {
    this.#socket = socket;
    const stream = new JsonStream(
      (value) => this.#receive(value),
      () => socket.destroy(),
    );
    socket.start({
      onData: (chunk) => stream.push(chunk),
      onClose: (error) => this.#close(error),
    });
  }

  /** Connects and negotiates. Errors: those of connecting; kind closed when the server hangs up. */
  static async connect(host: Host, address: SocketAddress): Promise<QmpClient> {
    const client = new QmpClient(await host.net.connect(address));
    await client.#greeted.promise;
    await client.execute('qmp_capabilities');
    return client;
  }

  /** The command's return value. Errors: QmpError; BlockError of kind closed. */
  execute(command: string, args: JsonObject = {}): Promise<JsonValue> {
    if (this.#closed) return Promise.reject(this.#closed);
    const reply = deferred<JsonValue>();
    this.#replies.push(reply);
    this.#socket.write(Buffer.from(`${formatJson({ execute: command, arguments: args })}\n`, 'latin1'));
    return reply.promise;
  }

  /** Calls `listener` with every event; the answer ends that. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  close(): void {
    this.#socket.end();
  }

  #receive(value: JsonValue): void {
    const message = value as JsonObject;
    if (message['QMP'] !== undefined) {
      this.greeting = message['QMP'] as JsonObject;
      this.#greeted.resolve();
    } else if (typeof message['event'] === 'string') {
      const event = { event: message['event'], data: (message['data'] ?? {}) as JsonObject };
      for (const listener of this.#listeners) listener(event);
    } else {
      const reply = this.#replies.shift();
      const error = message['error'] as { class: ErrorClass; desc: string } | undefined;
      if (error) reply?.reject(new QmpError(error.class, error.desc));
      else reply?.resolve(message['return'] ?? null);
    }
  }

  #close(cause: Error | undefined): void {
    this.#closed = new BlockError('closed', 'the QMP server closed the connection', { cause });
    this.#greeted.reject(this.#closed);
    this.#greeted.promise.catch(() => undefined);
    for (const reply of this.#replies.splice(0)) reply.reject(this.#closed);
  }
}
