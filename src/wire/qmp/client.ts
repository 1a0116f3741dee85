import { deferred, type Deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import type { Host, HostClock, HostSocket, SocketAddress } from '../../host/host.js';
import { EXTENSIONS } from '../../schema/extensions.js';
import { isJsonObject, type JsonObject, type JsonValue } from '../../schema/types.js';
import { formatJson } from './json-format.js';
import { JsonStream } from './json-parser.js';
import { type ErrorClass, QmpError } from './registry.js';

export interface QmpEvent {
  event: string;
  data: JsonObject;
  timestamp: { seconds: number; microseconds: number };
}

export interface ConnectOptions {
  /** How long connecting and the greeting may take. Default 10 s. */
  timeoutMs?: number;
  /** Without, no greeting is waited for, and answers need not say whose they are. Default true. */
  negotiate?: boolean;
}

/** A type alias: it is JSON. `unseen`: in base64. */
export type PassedClient = { lastId: number; unseen: string };

/** Who has greeted may be busy, and is given so long for the answer that opens the session. */
const NEGOTIATION_MS = 10_000;
const DEFAULT_TIMEOUT_MS = 10_000;

/** A QMP client: of livedisk, of QEMU, of whatever speaks it. */
export class QmpClient {
  /** What the server says of itself: `version` and `capabilities`. */
  greeting: JsonObject = {};
  /** Resolves when the connection has ended, with its error if it failed. */
  readonly closed: Promise<Error | undefined>;
  readonly #socket: HostSocket;
  readonly #stream: JsonStream;
  /** What came since freeze(). */
  #unseen: Buffer[] | undefined;
  readonly #greeted = deferred();
  readonly #ended = deferred<Error | undefined>();
  readonly #replies = new Map<number, Deferred<JsonValue>>();
  readonly #listeners = new Set<(event: QmpEvent) => void>();
  #lastId = 0;
  #hasExtensions = false;
  #failure: BlockError | undefined;

  private constructor(socket: HostSocket) {
    this.#socket = socket;
    this.closed = this.#ended.promise;
    // Whoever waits for the greeting is told; nobody may.
    this.#greeted.promise.catch(() => undefined);
    this.#stream = new JsonStream(
      (value) => this.#receive(value),
      (error) => this.#breakOff(error.message),
    );
    socket.start({
      onData: (chunk) => this.#take(chunk),
      onClose: (error) => this.#close(error),
    });
  }

  /** Connects and negotiates. Errors: those of connecting; kind timeout; closed; corrupt when it is no QMP server. */
  static async connect(host: Host, address: SocketAddress, options: ConnectOptions = {}): Promise<QmpClient> {
    const { timeoutMs = DEFAULT_TIMEOUT_MS } = options;
    return QmpClient.over(await host.net.connect(address, { timeoutMs }), host.clock, options);
  }

  /** Goes on with a session that another process has negotiated, from thaw() on. */
  static adopt(socket: HostSocket, { lastId, unseen }: PassedClient): QmpClient {
    const client = new QmpClient(socket);
    client.#lastId = lastId;
    client.#greeted.resolve();
    client.#unseen = [Buffer.from(unseen, 'base64')];
    return client;
  }

  /** Negotiates on a connection that was not started. Errors: as connect's. */
  static async over(socket: HostSocket, clock: HostClock, options: ConnectOptions = {}): Promise<QmpClient> {
    const { timeoutMs = DEFAULT_TIMEOUT_MS, negotiate = true } = options;
    const client = new QmpClient(socket);
    if (!negotiate) return client;
    const hint = 'A QMP socket of QEMU serves one client at a time.';
    await client.#within(clock, timeoutMs, 'no QMP greeting', hint, client.#greeted.promise);
    const patienceMs = Math.max(timeoutMs, NEGOTIATION_MS);
    await client.#within(clock, patienceMs, 'no answer to qmp_capabilities', undefined, client.#negotiate());
    return client;
  }

  async #within<T>(
    clock: HostClock,
    mostMs: number,
    what: string,
    hint: string | undefined,
    work: Promise<T>,
  ): Promise<T> {
    const timer = clock.setTimer(mostMs, () =>
      this.#fail(
        new BlockError('timeout', `${what} within ${mostMs / 1000} s`, hint === undefined ? {} : { hint }),
      ),
    );
    return work.finally(() => timer.cancel());
  }

  #take(chunk: Buffer): void {
    if (this.#unseen) this.#unseen.push(Buffer.from(chunk));
    else this.#stream.push(chunk);
  }

  /** Commands wait for their answers, or a part of a message has come. */
  get isBusy(): boolean {
    return this.#replies.size > 0 || this.#stream.unfinishedBytes > 0;
  }

  /** Looks at nothing more that comes, until thaw(). Nobody asks anything meanwhile. */
  freeze(): void {
    this.#unseen ??= [];
    this.#socket.pause();
  }

  thaw(): void {
    const unseen = this.#unseen ?? [];
    this.#unseen = undefined;
    for (const chunk of unseen) this.#take(chunk);
    this.#socket.resume();
  }

  /** Frozen: for adopt() in another process. Errors: busy; unsupported for a connection that cannot be passed. */
  passed(): { client: PassedClient; fd: number } {
    if (this.isBusy) throw new BlockError('busy', 'A command has no answer yet');
    const fd = this.#socket.descriptor?.();
    if (fd === undefined) throw new BlockError('unsupported', 'The connection cannot be passed');
    const unseen = Buffer.concat(this.#unseen ?? []).toString('base64');
    return { client: { lastId: this.#lastId, unseen }, fd };
  }

  /** Whether the server is a livedisk, which has agreed to what is its own. */
  get hasExtensions(): boolean {
    return this.#hasExtensions;
  }

  /** With livedisk's own, where the server is one; QEMU refuses that, and is asked again. */
  async #negotiate(): Promise<void> {
    try {
      await this.execute('qmp_capabilities', { enable: [EXTENSIONS] });
      this.#hasExtensions = true;
    } catch (error) {
      if (!(error instanceof QmpError)) throw error;
      await this.execute('qmp_capabilities');
    }
  }

  /** The command's return value. Errors: QmpError; BlockError of kind closed or corrupt when the connection ends. */
  execute(command: string, args?: JsonObject): Promise<JsonValue> {
    return this.request({ execute: command, ...(args && { arguments: args }) });
  }

  /** A request as it is on the wire, its id apart; for what execute() does not say. Errors: as execute's. */
  request(message: JsonObject): Promise<JsonValue> {
    if (this.#failure) return Promise.reject(this.#failure);
    const id = ++this.#lastId;
    const reply = deferred<JsonValue>();
    this.#replies.set(id, reply);
    this.#socket.write(Buffer.from(`${formatJson({ ...message, id })}\n`, 'latin1'));
    return reply.promise;
  }

  /** Calls `listener` with every event; the answer ends that. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** The events from now on (kept until they are taken), until the connection ends or the caller stops. */
  events(): AsyncIterableIterator<QmpEvent> {
    const arrived: QmpEvent[] = [];
    let wake = deferred();
    let isOver = false;
    const stop = this.onEvent((event) => {
      arrived.push(event);
      wake.resolve();
    });
    const end = (): void => {
      stop();
      isOver = true;
      wake.resolve();
    };
    void this.closed.then(end);
    const done = { done: true as const, value: undefined };
    return {
      [Symbol.asyncIterator]() {
        return this;
      },
      async next() {
        for (;;) {
          const value = arrived.shift();
          if (value) return { done: false, value };
          if (isOver) return done;
          wake = deferred();
          await wake.promise;
        }
      },
      async return() {
        end();
        arrived.length = 0;
        return done;
      },
    };
  }

  /**
   * The next event of that name whose data `filter` accepts, from now on: ask before the command that causes it.
   * Errors: kind closed when the connection ends before.
   */
  async waitForEvent(name: string, filter: (data: JsonObject) => boolean = () => true): Promise<QmpEvent> {
    if (this.#failure) throw this.#failure;
    for await (const event of this.events()) if (event.event === name && filter(event.data)) return event;
    throw this.#failure ?? new BlockError('closed', 'the QMP connection was closed');
  }

  /** Ends the connection; commands that wait for their answer are rejected. */
  close(): void {
    this.#failure ??= new BlockError('closed', 'the QMP connection was closed');
    this.#rejectAll(this.#failure);
    this.#socket.end();
    this.#ended.resolve(undefined);
  }

  #receive(value: JsonValue): void {
    if (!isJsonObject(value)) return this.#breakOff('a message is no object');
    const { QMP, event, data, timestamp, id } = value;
    if (QMP !== undefined) {
      this.greeting = isJsonObject(QMP) ? QMP : {};
      this.#greeted.resolve();
    } else if (typeof event === 'string') {
      const told = { event, data: asObject(data), timestamp: timeOf(timestamp) };
      for (const listener of [...this.#listeners]) listener(told);
    } else {
      // A server that has not greeted may be none of QEMU's own and answer in order.
      const [oldest] = this.#replies.keys();
      const answered = id === undefined && this.greeting['version'] === undefined ? oldest : id;
      const reply = typeof answered === 'number' ? this.#replies.get(answered) : undefined;
      if (!reply) return this.#breakOff(`an unexpected message: ${formatJson(value).slice(0, 200)}`);
      this.#replies.delete(answered as number);
      const { error } = value;
      if (error !== undefined) reply.reject(errorOf(error));
      else reply.resolve(value['return'] ?? null);
    }
  }

  #breakOff(reason: string): void {
    this.#fail(new BlockError('corrupt', `the server does not speak QMP: ${reason}`));
  }

  #fail(error: BlockError): void {
    this.#failure ??= error;
    this.#rejectAll(this.#failure);
    this.#socket.destroy();
    this.#ended.resolve(error);
  }

  #close(cause: Error | undefined): void {
    this.#failure ??= new BlockError('closed', 'the QMP server closed the connection', { cause });
    this.#rejectAll(this.#failure);
    this.#ended.resolve(cause);
  }

  #rejectAll(error: BlockError): void {
    this.#greeted.reject(error);
    const replies = [...this.#replies.values()];
    this.#replies.clear();
    for (const reply of replies) reply.reject(error);
  }
}

function asObject(value: JsonValue | undefined): JsonObject {
  return value !== undefined && isJsonObject(value) ? value : {};
}

/** A time that a server does not tell is 1970. */
function timeOf(value: JsonValue | undefined): QmpEvent['timestamp'] {
  const { seconds, microseconds } = asObject(value);
  const numberOf = (one: JsonValue | undefined): number => (typeof one === 'number' ? one : 0);
  return { seconds: numberOf(seconds), microseconds: numberOf(microseconds) };
}

function errorOf(value: JsonValue): QmpError {
  const { class: errorClass, desc } = asObject(value);
  return new QmpError(
    (typeof errorClass === 'string' ? errorClass : 'GenericError') as ErrorClass,
    typeof desc === 'string' ? desc : 'an error without a description',
  );
}
