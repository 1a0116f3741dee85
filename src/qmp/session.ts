import { AsyncMutex } from '../base/async.js';
import type { HostClock, HostSocket } from '../host/host.js';
import type { JsonObject, JsonValue } from '../schema/types.js';
import { arrayOf, enumOf, optional, struct } from '../schema/types.js';
import { formatJson, formatJsonPretty, type Writable } from './json-format.js';
import { JsonStream } from './json-parser.js';
import { type CommandRegistry, QmpError, toQmpError } from './registry.js';

/** Commands of one client that wait; beyond that its socket is not read. */
const MAX_QUEUED_COMMANDS = 8;

/** What clients are told of us. Tools parse the numbers and expect a QEMU. */
export const VERSION = { qemu: { micro: 22, minor: 2, major: 7 }, package: 'livedisk 0.1.0' };

const CAPABILITIES_ARGUMENTS = struct('qmp_capabilities-arg', {
  enable: optional(arrayOf(enumOf('QMPCapability', ['oob']))),
});

/**
 * All QMP clients of one engine: commands run one at a time, in the order in which they came in; events go to every
 * client that has negotiated.
 */
export class QmpHub {
  readonly registry: CommandRegistry;
  readonly clock: HostClock;
  /** Told of a handler's error that is no refusal: a bug to report, not a crash. */
  onUnexpectedError: (error: unknown) => void = () => undefined;
  readonly #sessions = new Set<QmpSession>();
  readonly #inBand = new AsyncMutex();

  constructor(registry: CommandRegistry, clock: HostClock) {
    this.registry = registry;
    this.clock = clock;
  }

  /** Sends an event now, so before the return of the command that is running. */
  emit(event: string, data: JsonObject): void {
    const message: { [key: string]: Writable } = { timestamp: this.clock.wallClock(), event };
    if (Object.keys(data).length > 0) message['data'] = data;
    for (const session of this.#sessions) if (session.isNegotiated) session.send(message);
  }

  /** One command, after all that came in before it. */
  execute(name: string, args: JsonObject): Promise<Writable> {
    return this.#inBand.run(() => this.registry.execute(name, args));
  }

  add(session: QmpSession): void {
    this.#sessions.add(session);
  }

  remove(session: QmpSession): void {
    this.#sessions.delete(session);
  }
}

/** One client's connection. */
export class QmpSession {
  readonly #hub: QmpHub;
  readonly #socket: HostSocket;
  readonly #pretty: boolean;
  readonly #onClose: () => void;
  #negotiated = false;
  #queue: Array<() => Promise<void>> = [];
  #working = false;
  #paused = false;
  #closed = false;

  constructor(hub: QmpHub, socket: HostSocket, options: { pretty?: boolean; onClose?: () => void } = {}) {
    this.#hub = hub;
    this.#socket = socket;
    this.#pretty = options.pretty ?? false;
    this.#onClose = options.onClose ?? (() => undefined);
    const stream = new JsonStream(
      (value) => this.#enqueue(() => this.#handle(value)),
      (error) => this.#enqueue(async () => this.#reply({ error: toQmpError(error) })),
    );
    hub.add(this);
    this.send({ QMP: { version: VERSION, capabilities: ['oob'] } });
    socket.start({
      onData: (chunk) => stream.push(chunk),
      onClose: () => this.#close(),
    });
  }

  get isNegotiated(): boolean {
    return this.#negotiated;
  }

  send(message: { [key: string]: Writable }): void {
    if (this.#closed) return;
    const text = this.#pretty ? formatJsonPretty(message) : formatJson(message);
    this.#socket.write(Buffer.from(`${text}\r\n`, 'latin1'));
  }

  end(): void {
    this.#socket.end();
  }

  #close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#queue = [];
    this.#hub.remove(this);
    this.#onClose();
  }

  #enqueue(work: () => Promise<void>): void {
    this.#queue.push(work);
    if (!this.#paused && this.#queue.length > MAX_QUEUED_COMMANDS) {
      this.#paused = true;
      this.#socket.pause();
    }
    if (!this.#working) void this.#work();
  }

  async #work(): Promise<void> {
    this.#working = true;
    for (let next = this.#queue.shift(); next; next = this.#queue.shift()) {
      await next();
      if (this.#paused && this.#queue.length < MAX_QUEUED_COMMANDS) {
        this.#paused = false;
        this.#socket.resume();
      }
    }
    this.#working = false;
  }

  async #handle(message: JsonValue): Promise<void> {
    let id: JsonValue | undefined;
    try {
      const request = parseRequest(message);
      id = request.id;
      const result = await this.#run(request);
      this.#reply(id === undefined ? { return: result } : { return: result, id });
    } catch (error) {
      const asObject =
        typeof message === 'object' && message !== null && !Array.isArray(message) ? message : {};
      id = asObject['id'];
      if (!(error instanceof Error) || error.name === 'AssertionFailure') this.#hub.onUnexpectedError(error);
      this.#reply(id === undefined ? { error: toQmpError(error) } : { id, error: toQmpError(error) });
    }
  }

  #reply(message: { [key: string]: Writable }): void {
    this.send(message);
  }

  async #run({ name, args, outOfBand }: Request): Promise<Writable> {
    if (outOfBand) {
      if (!this.#hub.registry.has(name))
        throw new QmpError('CommandNotFound', `The command ${name} has not been found`);
      throw new QmpError('GenericError', `The command ${name} does not support OOB`);
    }
    if (name === 'qmp_capabilities') {
      if (this.#negotiated) {
        const text = 'Capabilities negotiation is already complete, command ignored';
        throw new QmpError('CommandNotFound', text);
      }
      CAPABILITIES_ARGUMENTS.parse(args, '', 'qmp');
      this.#negotiated = true;
      return {};
    }
    if (!this.#negotiated) {
      throw new QmpError('CommandNotFound', "Expecting capabilities negotiation with 'qmp_capabilities'");
    }
    return this.#hub.execute(name, args);
  }
}

interface Request {
  name: string;
  args: JsonObject;
  id: JsonValue | undefined;
  outOfBand: boolean;
}

function parseRequest(message: JsonValue): Request {
  if (typeof message !== 'object' || message === null || Array.isArray(message)) {
    throw new QmpError('GenericError', 'QMP input must be a JSON object');
  }
  let name: string | undefined;
  let args: JsonObject = {};
  let outOfBand = false;
  for (const [key, value] of Object.entries(message)) {
    if (key === 'execute' || key === 'exec-oob') {
      if (typeof value !== 'string')
        throw new QmpError('GenericError', `QMP input member '${key}' must be a string`);
      if (name !== undefined)
        throw new QmpError('GenericError', "QMP input member 'exec-oob' clashes with 'execute'");
      name = value;
      outOfBand = key === 'exec-oob';
    } else if (key === 'arguments') {
      if (typeof value !== 'object' || value === null || Array.isArray(value)) {
        throw new QmpError('GenericError', "QMP input member 'arguments' must be an object");
      }
      args = value;
    } else if (key !== 'id') {
      throw new QmpError('GenericError', `QMP input member '${key}' is unexpected`);
    }
  }
  if (name === undefined) throw new QmpError('GenericError', "QMP input lacks member 'execute'");
  return { name, args, id: message['id'], outOfBand };
}
