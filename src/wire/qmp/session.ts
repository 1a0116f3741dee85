import { assert } from '../../base/assert.js';
import { AsyncMutex, Notifier } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import { KiB, MiB } from '../../base/limits.js';
import type { HostClock, HostSocket } from '../../host/host.js';
import { EXTENSION_EVENTS, EXTENSIONS } from '../../schema/extensions.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import { arrayOf, enumOf, isJsonObject, optional, struct } from '../../schema/types.js';
import { EventLimits } from './event-limits.js';
import { formatJson, formatJsonPretty, type Writable } from './json-format.js';
import { JsonStream } from './json-parser.js';
import { type Caller, type CommandRegistry, QmpError, toQmpError, Waiting } from './registry.js';
import { Turns } from './turns.js';
import { VERSION } from './version.js';

/** Messages of one client that wait; beyond that its input is not looked at. */
const MAX_QUEUED_MESSAGES = 8;

/** Input that is looked at in one go; it may hold as many messages as bytes. */
const SLICE_BYTES = 4 * KiB;

/** Memory of messages that have begun and not ended, of all clients together. */
const MAX_UNFINISHED_BYTES = 256 * MiB;

/** Unsent answers beyond which no further command of that client is run until it has read some. */
const MAX_UNSENT_BYTES = MiB;

/** What all clients together have not read, beyond which the one that is farthest behind is cut off. */
const MAX_UNREAD_BYTES = 64 * MiB;

const NEGOTIATE = 'qmp_capabilities';
const CAPABILITIES_ARGUMENTS = struct('qmp_capabilities-arg', {
  enable: optional(arrayOf(enumOf('QMPCapability', ['oob']))),
});
/** The same with livedisk's own, of which nothing is told to clients that do not ask for it. */
const ALL_CAPABILITIES_ARGUMENTS = struct('qmp_capabilities-arg', {
  enable: optional(arrayOf(enumOf('QMPCapability', ['oob', EXTENSIONS]))),
});

/**
 * All QMP clients of one engine: commands run one at a time, in the order in which they came in; events go to every
 * client that has negotiated.
 */
export class QmpHub {
  readonly registry: CommandRegistry;
  readonly clock: HostClock;
  /** Told of an error that is no refusal of a command: a bug to report, not a crash. */
  onUnexpectedError: (error: unknown) => void = () => undefined;
  /** Owns a descriptor that a client sent and no command took. */
  onUnclaimed: (fd: number) => void = () => undefined;
  /** What is to be done after a command, before its answer; what it throws is the answer. */
  onDone: (name: string) => Promise<void> = () => Promise.resolve();
  /** A client has gone. */
  onGone: (caller: Caller) => void = () => undefined;
  /** The last client has gone. */
  onDeserted: () => void = () => undefined;
  readonly turns: Turns;
  readonly #sessions = new Set<QmpSession>();
  readonly #inBand = new AsyncMutex();
  readonly #limits: EventLimits;
  #isClosed = false;

  constructor(registry: CommandRegistry, clock: HostClock) {
    this.registry = registry;
    this.clock = clock;
    this.turns = new Turns(clock);
    this.#limits = new EventLimits(clock);
    registry.register({ name: NEGOTIATE, arguments: CAPABILITIES_ARGUMENTS }, () => {
      const text = 'Capabilities negotiation is already complete, command ignored';
      throw new QmpError('CommandNotFound', text);
    });
  }

  /** Sends an event now, so before the return of the command that is running; some, of which many may come, later or not. */
  emit(event: string, data: JsonObject): void {
    this.#limits.pass(event, data, (told) => this.#tell(event, told));
  }

  #tell(event: string, data: JsonObject): void {
    const timestamp = this.clock.wallClock();
    const whole = eventMessage(timestamp, event, data);
    const plain = EXTENSION_EVENTS.has(event)
      ? undefined
      : eventMessage(timestamp, event, withoutExtensions(data));
    for (const session of this.#sessions) {
      const message = session.hasExtensions ? whole : plain;
      if (session.isNegotiated && message) session.send(message);
    }
    this.#cutOff();
  }

  /** Clients that do not read may keep only so much of our memory. */
  #cutOff(): void {
    const sizeOf = (session: QmpSession): number => session.unreadBytes;
    relieve(this.#sessions, sizeOf, MAX_UNREAD_BYTES, (largest) => largest.drop());
  }

  /** Nor may those that begin messages and do not end them. */
  limitUnfinished(): void {
    const sizeOf = (session: QmpSession): number => session.unfinishedBytes;
    relieve(this.#sessions, sizeOf, MAX_UNFINISHED_BYTES, (largest) => largest.refuse());
  }

  /** One command, after all that came in before it. Errors: kind closed after close(); those of the command. */
  async execute(name: string, args: JsonObject, caller?: Caller): Promise<Writable> {
    const outcome = await this.inBand(async () => {
      const result = await this.registry.execute(name, args, caller);
      await this.onDone(name);
      return result;
    });
    if (!(outcome instanceof Waiting)) return outcome;
    await outcome.result;
    return {};
  }

  /** The same of other work than a command's. */
  inBand<T>(work: () => Promise<T>): Promise<T> {
    return this.#inBand.run(() => {
      if (this.#isClosed) throw new BlockError('closed', 'The engine is closed');
      return work();
    });
  }

  /** One command ahead of all others. Errors: as of execute. */
  async executeNow(name: string, args: JsonObject, caller: Caller): Promise<Writable> {
    if (this.#isClosed) throw new BlockError('closed', 'The engine is closed');
    const outcome = await this.registry.execute(name, args, caller);
    assert(!(outcome instanceof Waiting), () => `${name} waits, and may run ahead of others`);
    return outcome;
  }

  /** Commands that wait, and later ones, are refused. Resolves when the one that runs is done. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#inBand.run(() => Promise.resolve());
  }

  add(session: QmpSession): void {
    this.#sessions.add(session);
  }

  remove(session: QmpSession): void {
    this.#sessions.delete(session);
    this.onGone(session);
    if (this.#sessions.size === 0) this.onDeserted();
  }
}

function eventMessage(timestamp: Writable, event: string, data: JsonObject): { [key: string]: Writable } {
  return Object.keys(data).length > 0 ? { timestamp, event, data } : { timestamp, event };
}

/** No event of QEMU has members that begin so. */
function withoutExtensions(data: JsonObject): JsonObject {
  return Object.fromEntries(Object.entries(data).filter(([name]) => !name.startsWith('x-')));
}

/** Takes from those that have most until all together are within the bound. */
function relieve<T>(
  items: Iterable<T>,
  sizeOf: (item: T) => number,
  mostBytes: number,
  free: (largest: T) => void,
): void {
  for (;;) {
    let sum = 0;
    let largest: T | undefined;
    for (const item of items) {
      sum += sizeOf(item);
      if (largest === undefined || sizeOf(item) > sizeOf(largest)) largest = item;
    }
    if (sum <= mostBytes || largest === undefined) return;
    free(largest);
  }
}

/** One client's connection. */
export class QmpSession implements Caller {
  readonly #hub: QmpHub;
  readonly #socket: HostSocket;
  readonly #pretty: boolean;
  readonly #onClose: () => void;
  readonly #stream: JsonStream;
  readonly #drained = new Notifier();
  #negotiated = false;
  #outOfBand = false;
  #hasExtensions = false;
  #queue: Array<() => Promise<void>> = [];
  /** Received, but not looked at while messages wait. */
  #unseen: Buffer | undefined;
  #isWorking = false;
  #isPaused = false;
  /** Descriptors that came with the messages handled last. */
  #descriptors: number[] = [];
  #isClosed = false;

  constructor(hub: QmpHub, socket: HostSocket, options: { pretty?: boolean; onClose?: () => void } = {}) {
    this.#hub = hub;
    this.#socket = socket;
    this.#pretty = options.pretty ?? false;
    this.#onClose = options.onClose ?? (() => undefined);
    this.#stream = new JsonStream(
      (value) => this.#receive(value),
      (error) => this.#enqueue(async () => this.send({ error: toQmpError(error) })),
    );
    hub.add(this);
    this.send({ QMP: { version: VERSION, capabilities: ['oob'] } });
    socket.start({
      onData: (chunk) => this.#take(chunk),
      onClose: () => this.#close(),
      onDrain: () => this.#drained.notify(),
    });
  }

  readonly isConnection = true;

  get isNegotiated(): boolean {
    return this.#negotiated;
  }

  get hasExtensions(): boolean {
    return this.#hasExtensions;
  }

  /** Sent, and not taken by the client yet. */
  get unreadBytes(): number {
    return this.#isClosed ? 0 : this.#socket.queuedBytes;
  }

  /** Memory of a message whose end has not come. */
  get unfinishedBytes(): number {
    return this.#stream.unfinishedBytes;
  }

  send(message: { [key: string]: Writable }): void {
    if (this.#isClosed) return;
    const text = this.#pretty ? formatJsonPretty(message) : formatJson(message);
    this.#hub.turns.spend(text.length);
    this.#socket.write(Buffer.from(`${text}\r\n`, 'latin1'));
  }

  end(): void {
    this.#socket.end();
  }

  /** Ends the connection now. */
  drop(): void {
    this.#socket.destroy();
    this.#close();
  }

  /** Drops the message that has begun, as too large. */
  refuse(): void {
    this.#stream.refuse();
  }

  #close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#queue = [];
    this.#unseen = undefined;
    for (const fd of [...this.#descriptors.splice(0), ...(this.#socket.takeFds?.() ?? [])])
      this.#hub.onUnclaimed(fd);
    this.#hub.remove(this);
    this.#drained.notify();
    this.#onClose();
  }

  #take(chunk: Buffer): void {
    // A paused socket may still deliver what it had read.
    this.#look(this.#unseen ? Buffer.concat([this.#unseen, chunk]) : chunk);
  }

  /** Looks at input until enough messages wait. */
  #look(input: Buffer): void {
    let at = 0;
    while (at < input.length && this.#queue.length < MAX_QUEUED_MESSAGES && !this.#isClosed) {
      const slice = input.subarray(at, at + SLICE_BYTES);
      at += slice.length;
      this.#stream.push(slice);
      this.#hub.limitUnfinished();
    }
    if (this.#isClosed) return;
    // The chunk is the socket's: what is left of it is copied.
    this.#unseen = at < input.length ? Buffer.from(input.subarray(at)) : undefined;
    this.#setPaused(this.#unseen !== undefined || this.#queue.length >= MAX_QUEUED_MESSAGES);
  }

  #setPaused(isPaused: boolean): void {
    if (this.#isPaused === isPaused) return;
    this.#isPaused = isPaused;
    if (isPaused) this.#socket.pause();
    else this.#socket.resume();
  }

  #receive(message: JsonValue): void {
    // Out of band means at once, whatever waits.
    const descriptors = this.#socket.takeFds?.() ?? [];
    const handle = (): Promise<void> => {
      this.#bring(descriptors);
      return this.#handle(message);
    };
    if (this.#outOfBand && isOutOfBand(message)) void handle();
    else this.#enqueue(handle);
  }

  /** What came with earlier messages and was not taken goes. */
  #bring(descriptors: number[]): void {
    if (descriptors.length === 0) return;
    for (const fd of this.#descriptors) this.#hub.onUnclaimed(fd);
    this.#descriptors = descriptors;
  }

  takeDescriptor(): number | undefined {
    return this.#descriptors.shift();
  }

  #enqueue(work: () => Promise<void>): void {
    if (this.#isClosed) return;
    this.#queue.push(work);
    if (!this.#isWorking) void this.#work();
  }

  /** Runs what waits, in order, while the client reads what it is sent. */
  async #work(): Promise<void> {
    this.#isWorking = true;
    while (this.#queue.length > 0) {
      const batch = this.#queue;
      this.#queue = [];
      for (const next of batch) {
        await this.#hub.turns.enter();
        if (this.#isClosed) break;
        await next();
        await this.#drained.until(() => this.#isClosed || this.unreadBytes <= MAX_UNSENT_BYTES);
      }
      if (!this.#isClosed) this.#look(this.#unseen ?? Buffer.alloc(0));
    }
    this.#isWorking = false;
  }

  async #handle(message: JsonValue): Promise<void> {
    const request = parseRequest(message, this.#outOfBand);
    const { id } = request;
    try {
      if ('error' in request) throw request.error;
      const result = await this.#run(request);
      this.send(id === undefined ? { return: result } : { return: result, id });
    } catch (error) {
      if (!(error instanceof QmpError || error instanceof BlockError)) this.#hub.onUnexpectedError(error);
      this.send(id === undefined ? { error: toQmpError(error) } : { id, error: toQmpError(error) });
    }
  }

  async #run({ name, args, outOfBand }: Request): Promise<Writable> {
    if (outOfBand) {
      const command = this.#hub.registry.find(name, this);
      if (!command) throw new QmpError('CommandNotFound', `The command ${name} has not been found`);
      if (command.outOfBand === true) return this.#hub.executeNow(name, args, this);
      throw new QmpError('GenericError', `The command ${name} does not support OOB`);
    }
    if (name === NEGOTIATE && !this.#negotiated) {
      const { enable = [] } = ALL_CAPABILITIES_ARGUMENTS.parse(args, '', 'qmp');
      this.#negotiated = true;
      this.#outOfBand = enable.includes('oob');
      this.#hasExtensions = enable.includes(EXTENSIONS);
      return {};
    }
    if (!this.#negotiated) {
      throw new QmpError('CommandNotFound', `Expecting capabilities negotiation with '${NEGOTIATE}'`);
    }
    return this.#hub.execute(name, args, this);
  }
}

interface Request {
  readonly name: string;
  readonly args: JsonObject;
  readonly id: JsonValue | undefined;
  readonly outOfBand: boolean;
}

interface BadRequest {
  readonly error: QmpError;
  readonly id: JsonValue | undefined;
}

function isOutOfBand(message: JsonValue): boolean {
  return isJsonObject(message) && 'exec-oob' in message && !('execute' in message);
}

function parseRequest(message: JsonValue, outOfBandEnabled: boolean): Request | BadRequest {
  if (!isJsonObject(message)) {
    return { error: new QmpError('GenericError', 'QMP input must be a JSON object'), id: undefined };
  }
  const { id } = message;
  const bad = (text: string): BadRequest => ({ error: new QmpError('GenericError', text), id });
  let name: string | undefined;
  let args: JsonObject = {};
  let outOfBand = false;
  for (const [key, value] of Object.entries(message)) {
    if (key === 'execute' || (key === 'exec-oob' && outOfBandEnabled)) {
      if (typeof value !== 'string') return bad(`QMP input member '${key}' must be a string`);
      if (name !== undefined) return bad("QMP input member 'execute' clashes with 'exec-oob'");
      name = value;
      outOfBand = key === 'exec-oob';
    } else if (key === 'arguments') {
      if (!isJsonObject(value)) {
        return bad("QMP input member 'arguments' must be an object");
      }
      args = value;
    } else if (key !== 'id') {
      return bad(`QMP input member '${key}' is unexpected`);
    }
  }
  if (name === undefined) return bad("QMP input lacks member 'execute'");
  return { name, args, id, outOfBand };
}
