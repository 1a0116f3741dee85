import { Notifier } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import { KiB, MiB } from '../../base/limits.js';
import type { HostSocket } from '../../host/host.js';
import { EXTENSIONS } from '../../schema/extensions.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import { arrayOf, enumOf, isJsonObject, optional, struct } from '../../schema/types.js';
import { NEGOTIATE, type QmpHub } from './hub.js';
import { formatJson, formatJsonPretty, type Writable } from './json-format.js';
import { JsonStream } from './json-parser.js';
import { type Caller, type ErrorClass, QmpError, toQmpError } from './registry.js';
import { VERSION } from './version.js';

/** Messages of one client that wait; beyond that its input is not looked at. */
const MAX_QUEUED_MESSAGES = 8;

/** Input that is looked at in one go; it may hold as many messages as bytes. */
const SLICE_BYTES = 4 * KiB;

/** Unsent answers beyond which no further command of that client is run until it has read some. */
const MAX_UNSENT_BYTES = MiB;

/** QEMU's, and livedisk's own, of which nothing is told to clients that do not ask for it. */
const ALL_CAPABILITIES_ARGUMENTS = struct('qmp_capabilities-arg', {
  enable: optional(arrayOf(enumOf('QMPCapability', ['oob', EXTENSIONS]))),
});

/** A message of a client, or what is wrong with one; with descriptors that came with it. */
interface Message {
  readonly value?: JsonValue;
  readonly error?: QmpError;
  readonly descriptors: number[];
  hasBegun: boolean;
}

/** A client as another process may go on with it; descriptors are numbers of this process. */
export interface PassedSession {
  readonly pretty: boolean;
  readonly negotiated: boolean;
  readonly outOfBand: boolean;
  readonly extensions: boolean;
  /** Not begun, in their order. */
  readonly messages: ReadonlyArray<{
    value?: JsonValue;
    error?: { class: ErrorClass; desc: string };
    fds: number[];
  }>;
  /** What came and was not looked at. */
  readonly unseen: Buffer;
  /** That came with messages handled before. */
  readonly fds: readonly number[];
  /** Of the command that it waits for: the one that passes it. */
  readonly asked: { readonly id: JsonValue | undefined } | undefined;
}

interface SessionOptions {
  pretty?: boolean;
  onClose?: () => void;
  /** One that another process has served so far. */
  passed?: PassedSession;
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
  readonly #queue: Message[] = [];
  /** The one that is handled. */
  #current: Message | undefined;
  #runningOutOfBand = 0;
  #isFrozen = false;
  readonly #thawed = new Notifier();
  /** Received, but not looked at while messages wait. */
  #unseen: Buffer | undefined;
  #isWorking = false;
  #isPaused = false;
  /** Descriptors that came with the messages handled last. */
  #descriptors: number[] = [];
  #isClosed = false;

  constructor(hub: QmpHub, socket: HostSocket, options: SessionOptions = {}) {
    this.#hub = hub;
    this.#socket = socket;
    this.#pretty = options.pretty ?? false;
    this.#onClose = options.onClose ?? (() => undefined);
    this.#stream = new JsonStream(
      (value) => this.#receive(value),
      (error) => this.#enqueue({ error: asQmpError(error), descriptors: [], hasBegun: false }),
    );
    hub.add(this);
    const { passed } = options;
    if (!passed) this.send({ QMP: { version: VERSION, capabilities: ['oob'] } });
    socket.start({
      onData: (chunk) => this.#take(chunk),
      onClose: () => this.#close(),
      onDrain: () => {
        this.#drained.notify();
        this.#lookAgain();
      },
    });
    if (passed) this.#goOnWith(passed);
  }

  #goOnWith(passed: PassedSession): void {
    this.#negotiated = passed.negotiated;
    this.#outOfBand = passed.outOfBand;
    this.#hasExtensions = passed.extensions;
    this.#descriptors = [...passed.fds];
    for (const { value, error, fds } of passed.messages)
      this.#enqueue({
        ...(value !== undefined && { value }),
        ...(error && { error: new QmpError(error.class, error.desc) }),
        descriptors: fds,
        hasBegun: false,
      });
    if (passed.unseen.length > 0) this.#look(passed.unseen);
  }

  // ---- passing it to another process

  /** Its connection. */
  get socket(): HostSocket {
    return this.#socket;
  }

  /** Begins no more of its commands, until thaw(). */
  freeze(): void {
    this.#isFrozen = true;
    this.#setPaused(true);
  }

  thaw(): void {
    this.#isFrozen = false;
    this.#thawed.notify();
    // Also while a command waits: what is to end it may come out of band.
    this.#lookAgain();
  }

  /** It goes over: it is a plain connection. */
  get isPassable(): boolean {
    return !this.#isClosed && this.#socket.descriptor?.() !== undefined;
  }

  /** What keeps it from being passed now; undefined: nothing. `asker`: it waits for an answer to a command that passes it. */
  obstacle(asker: Caller | undefined): string | undefined {
    if (this.#isClosed || !this.isPassable) return undefined;
    const isWaiting = this.#current?.hasBegun === true && asker !== this;
    if (isWaiting || this.#runningOutOfBand > 0) return 'a command of a QMP client is not answered yet';
    if (this.unfinishedBytes > 0) return 'a QMP client has sent a part of a message';
    return this.unreadBytes > 0 ? 'a QMP client does not read what it is sent' : undefined;
  }

  /** For another process, with the descriptor of its socket. */
  passed(asker: Caller | undefined): { session: PassedSession; fd: number } | undefined {
    const fd = this.#socket.descriptor?.();
    if (this.#isClosed || fd === undefined) return undefined;
    const current = this.#current;
    const waiting = [...(current && !current.hasBegun ? [current] : []), ...this.#queue];
    const isAsker = asker === this && current !== undefined;
    const session = {
      ...{ pretty: this.#pretty, negotiated: this.#negotiated, outOfBand: this.#outOfBand },
      extensions: this.#hasExtensions,
      messages: waiting.map(({ value, error, descriptors }) => ({
        ...(value !== undefined && { value }),
        ...(error && { error: { class: error.errorClass, desc: error.message } }),
        // Those of the one that waits to begin are counted as come.
        fds: descriptors === this.#descriptors ? [] : descriptors,
      })),
      unseen: this.#unseen ?? Buffer.alloc(0),
      fds: [...this.#descriptors, ...(this.#socket.takeFds?.() ?? [])],
      asked: isAsker ? { id: parseRequest(current.value ?? null, this.#outOfBand).id } : undefined,
    };
    return { session, fd };
  }

  /** Its command, in the order of all, begins. */
  begins(): void {
    if (this.#current) this.#current.hasBegun = true;
  }

  /** What a command is answered with that another process was given. */
  answer(id: JsonValue | undefined, result: Writable): void {
    this.send(id === undefined ? { return: result } : { return: result, id });
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
    const left = this.#queue.splice(0).flatMap(({ descriptors }) => descriptors);
    this.#thawed.notify();
    this.#unseen = undefined;
    for (const fd of [...left, ...this.#descriptors.splice(0), ...(this.#socket.takeFds?.() ?? [])])
      this.#hub.onUnclaimed(fd);
    this.#hub.remove(this);
    this.#drained.notify();
    this.#onClose();
  }

  #take(chunk: Buffer): void {
    // A paused socket may still deliver what it had read.
    const all = this.#unseen ? Buffer.concat([this.#unseen, chunk]) : chunk;
    if (this.#isFrozen) this.#unseen = Buffer.from(all);
    else this.#look(all);
  }

  /** Enough messages wait or run, or the client does not read what they are answered. */
  #isFull(): boolean {
    const mostMessages = Math.max(this.#queue.length, this.#runningOutOfBand);
    return mostMessages >= MAX_QUEUED_MESSAGES || this.unreadBytes > MAX_UNSENT_BYTES;
  }

  /** Looks at input until that is enough. */
  #look(input: Buffer): void {
    let at = 0;
    while (at < input.length && !this.#isFull() && !this.#isClosed) {
      const slice = input.subarray(at, at + SLICE_BYTES);
      at += slice.length;
      this.#stream.push(slice);
      this.#hub.limitUnfinished();
    }
    if (this.#isClosed) return;
    // The chunk is the socket's: what is left of it is copied.
    this.#unseen = at < input.length ? Buffer.from(input.subarray(at)) : undefined;
    this.#setPaused(this.#unseen !== undefined || this.#isFull());
  }

  #lookAgain(): void {
    const mayLook = this.#isPaused && !this.#isFrozen && !this.#isClosed;
    // What is left is copied by each look.
    if (mayLook && !this.#isFull()) this.#look(this.#unseen ?? Buffer.alloc(0));
  }

  #setPaused(wanted: boolean): void {
    const isPaused = wanted || this.#isFrozen;
    if (this.#isPaused === isPaused) return;
    this.#isPaused = isPaused;
    if (isPaused) this.#socket.pause();
    else this.#socket.resume();
  }

  #receive(message: JsonValue): void {
    // Out of band means at once, whatever waits.
    const descriptors = this.#socket.takeFds?.() ?? [];
    const whole = { value: message, descriptors, hasBegun: false };
    if (!this.#outOfBand || !isOutOfBand(message)) return this.#enqueue(whole);
    this.#runningOutOfBand++;
    void this.#see(whole).finally(() => {
      this.#runningOutOfBand--;
      this.#lookAgain();
    });
  }

  #see({ value, error, descriptors }: Message): Promise<void> {
    this.#bring(descriptors);
    if (value !== undefined) return this.#handle(value);
    this.send({ error: toQmpError(error) });
    return Promise.resolve();
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

  #enqueue(message: Message): void {
    if (this.#isClosed) return;
    this.#queue.push(message);
    if (!this.#isWorking) void this.#work();
  }

  /** Runs what waits, in order, while the client reads what it is sent. */
  async #work(): Promise<void> {
    this.#isWorking = true;
    while (this.#queue.length > 0) {
      await this.#hub.turns.enter();
      await this.#thawed.until(() => !this.#isFrozen || this.#isClosed);
      const next = this.#queue.shift();
      if (!next) break;
      this.#current = next;
      await this.#see(next);
      this.#current = undefined;
      await this.#drained.until(() => this.#isClosed || this.unreadBytes <= MAX_UNSENT_BYTES);
      await this.#thawed.until(() => !this.#isFrozen || this.#isClosed);
      if (this.#queue.length === 0 && !this.#isClosed) this.#look(this.#unseen ?? Buffer.alloc(0));
    }
    this.#isWorking = false;
  }

  async #handle(message: JsonValue): Promise<void> {
    const { qmpCommand } = this.#hub.trace;
    if (qmpCommand.isOn) qmpCommand.say(`req: ${formatJson(message)}`);
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

function asQmpError(error: unknown): QmpError {
  const told = toQmpError(error);
  return new QmpError(told.class, told.desc);
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
