import { defined } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { Flag, type RequestWatch } from '../../base/io-request.js';
import { KiB, MiB } from '../../base/limits.js';
import type { TracePoint } from '../../base/trace.js';
import type { HostClock } from '../../host/host.js';
import type { BufferPool } from './buffer-pool.js';
import type { Request } from './codec.js';
import { Command, CommandFlag } from './constants.js';
import type { Change, LostChanges } from './lost-changes.js';
import { FileReply } from './file-reply.js';
import { KeptMemory } from './kept-memory.js';
import { REPLY_BUFFER_BYTES } from './reply-stream.js';
import { RequestParser, type RequestTaker } from './request-parser.js';
import {
  askedContexts,
  commandMemory,
  failureOf,
  INVALID_PAYLOAD,
  isChange,
  type Refusal,
  refusalOf,
  runCommand,
  statusExtents,
  statusMemory,
} from './server-commands.js';
import type { Agreement } from './server-handshake.js';
import { DATA_AT, type ServerReplies } from './server-replies.js';
import type { NbdTarget } from './target.js';
import { TargetRequests } from './target-requests.js';

/** Replies that the peer has not taken, above which no more of its requests are read. */
const MAX_QUEUED_REPLY_BYTES = 512 * KiB;
/** Requests of one client under way; QEMU's server takes 16. */
const MAX_IN_FLIGHT_REQUESTS = 256;
/** Bytes served to one client before others get their turn. */
const TURN_BYTES = 8 * MiB;
/** What a request counts for at least in that. */
const REQUEST_COST_BYTES = 8 * 1024;
/** Reads of this size and more are sent from their own buffers. */
const OWN_BUFFER_BYTES = 32 * KiB;

/** From this size on a file is sent rather than read. */
const LEAST_FILE_BYTES = 64 * KiB;
const NOTHING = Buffer.alloc(0);

/** What the transmission phase tells its connection, and asks it. */
export interface TransmissionOwner {
  readonly clock: HostClock;
  readonly requestWatch: RequestWatch | undefined;
  /** Of all clients of the disk. */
  readonly lost: LostChanges;
  /** Payload that this client may have in flight before no more of its requests are read. */
  mostInFlightBytes(): number;
  /**
   * Whether there is memory for a request of a client that holds some, or none; if not, proceed() is called when
   * there is.
   */
  hasMemory(lengthBytes: number, holdsSome: boolean): boolean;
  /** The peer has hung up, though not all that it sent has been read. */
  isPeerGone(): boolean;
  /** Stop or go on reading the peer's socket. */
  pause(): void;
  resume(): void;
  /** The peer broke the protocol. */
  drop(): void;
  /** The peer is gone. */
  letGo(): void;
  /** The peer said DISC and everything it asked for is done. */
  finished(): void;
  /** A request ended. */
  settled(): void;
  /** Told of each request. */
  readonly trace: TracePoint;
}

const COMMAND_NAMES = new Map<number, string>(Object.entries(Command).map(([name, code]) => [code, name]));

function traceRequest(trace: TracePoint, name: string, request: Request): void {
  const { command, cookieHigh, cookieLow, flags, offset, lengthBytes } = request;
  const cookie = cookieHigh * 2 ** 32 + cookieLow;
  const what = COMMAND_NAMES.get(command) ?? command;
  trace.say(`export '${name}' cookie ${cookie} flags ${flags} ${what} offset ${offset} bytes ${lengthBytes}`);
}

/**
 * The transmission phase of one connection. What the target can serve at once is read straight into the outgoing
 * buffer (or written straight from the incoming chunk); what it cannot is answered when it is done, in any order.
 */
export class ServerTransmission implements RequestTaker {
  readonly #owner: TransmissionOwner;
  readonly #agreement: Agreement;
  readonly #target: NbdTarget;
  readonly #asked: TargetRequests;
  readonly #replies: ServerReplies;
  readonly #pool: BufferPool;
  readonly #fileReply: FileReply;
  readonly #parser: RequestParser;
  /** Received but not looked at yet, since the client is ahead of us. */
  #backlog: Buffer | undefined;
  #turnBytes = 0;
  #turnArmed = false;
  #flushArmed = false;
  #inFlight = 0;
  #inFlightBytes = 0;
  /** Of what is in flight. */
  readonly #changes = new Set<Change>();
  #isPaused = false;
  /** Nothing more is looked at: the connection may go to another process. */
  #isFrozen = false;
  #disconnecting = false;
  /** The connection is gone: nothing new begins, nothing is answered. */
  #isGone = false;
  #receivedBytes = 0;
  readonly #kept: KeptMemory;

  constructor(owner: TransmissionOwner, agreement: Agreement, replies: ServerReplies, pool: BufferPool) {
    this.#owner = owner;
    this.#agreement = agreement;
    this.#target = agreement.export.target;
    this.#asked = new TargetRequests(this.#target, owner.requestWatch);
    this.#replies = replies;
    this.#fileReply = new FileReply(replies);
    this.#pool = pool;
    this.#parser = new RequestParser(agreement.style, pool, this);
    this.#kept = new KeptMemory(owner.clock);
  }

  /** Requests that the target is still working on. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** For how long the peer has kept memory waiting: for the rest of a payload, or for taking its replies. */
  hoardingMs(): number {
    const keptBytes = this.#keptBytes();
    if (this.#inFlight > 0 || keptBytes === 0) return 0;
    return this.#kept.waitingMs(keptBytes, this.#movedBytes());
  }

  #keptBytes(): number {
    return this.#parser.keptBytes + this.#replies.stream.queuedBytes;
  }

  #movedBytes(): number {
    return this.#receivedBytes + this.#replies.stream.goneBytes;
  }

  /** The chunk may change after the call. */
  receive(chunk: Buffer): void {
    if (this.#parser.isClosed) return;
    if (this.#backlog || this.#isFrozen) {
      // A paused socket may still deliver what it had read.
      this.#backlog = Buffer.concat([this.#backlog ?? NOTHING, chunk]);
      return;
    }
    this.#receivedBytes += chunk.length;
    this.#process(chunk);
  }

  /** The peer has taken all replies. */
  drained(): void {
    this.#replies.stream.drained();
    this.proceed();
  }

  /**
   * The connection is gone: results of what is in flight are dropped, and so is what has not begun. Changes that have
   * are told to those who come after.
   */
  close(): void {
    this.#parser.close();
    this.#isGone = true;
    this.#backlog = undefined;
    this.#replies.stream.close();
    this.#asked.cancel();
    for (const change of this.#changes) this.#owner.lost.add(this.#target, change);
  }

  /** Looks at nothing more until thaw(). What was asked is answered. */
  freeze(): void {
    this.#isFrozen = true;
    this.#setPaused(true);
  }

  thaw(): void {
    this.#isFrozen = false;
    if (this.#backlog) this.proceed();
    else this.#setPaused(false);
  }

  /** Frozen, and all that it was asked is answered, and taken by the peer. */
  get isQuiet(): boolean {
    this.#replies.stream.flush();
    return this.#isFrozen && this.#inFlight === 0 && this.#replies.stream.queuedBytes === 0;
  }

  /** What came and is not done yet. */
  unread(): Buffer {
    return Buffer.concat([this.#parser.unfinished(), this.#backlog ?? NOTHING]);
  }

  #isStalled(memoryBytes: number): boolean {
    const { queuedBytes } = this.#replies.stream;
    return (
      this.#isFrozen ||
      this.#turnBytes >= TURN_BYTES ||
      this.#inFlight >= MAX_IN_FLIGHT_REQUESTS ||
      this.#inFlightBytes >= this.#owner.mostInFlightBytes() ||
      queuedBytes >= MAX_QUEUED_REPLY_BYTES + REPLY_BUFFER_BYTES ||
      !this.#owner.hasMemory(memoryBytes, this.#inFlightBytes + queuedBytes > 0)
    );
  }

  memoryFor(request: Request, hasPayload: boolean): number {
    const { command, flags, lengthBytes } = request;
    if (command === Command.blockStatus) {
      const contexts = this.#agreement.contexts.size;
      // A payload tells of which, and of what range.
      return hasPayload
        ? lengthBytes + statusMemory(flags, Infinity, contexts)
        : statusMemory(flags, lengthBytes, contexts);
    }
    return command === Command.read || hasPayload ? lengthBytes : commandMemory(request);
  }

  mustWait(memoryBytes: number): boolean {
    if (!this.#isStalled(memoryBytes)) return false;
    this.#replies.stream.flush();
    return this.#isStalled(memoryBytes);
  }

  #process(chunk: Buffer): void {
    if (this.#keptBytes() === 0) this.#kept.begin(this.#movedBytes());
    const at = this.#parser.take(chunk);
    this.#replies.stream.flush();
    if (this.#parser.isClosed) return;
    if (this.#turnBytes > 0) this.#armTurn();
    if (at < chunk.length || this.#parser.isWaiting) {
      this.#backlog = Buffer.from(chunk.subarray(at));
      this.#setPaused(true);
    } else this.#setPaused(false);
  }

  /** Goes on with what was left when the client was ahead; of one that has hung up meanwhile nothing is done. */
  proceed(): void {
    const backlog = this.#backlog;
    if (!backlog || this.#parser.isClosed || this.#isStalled(this.#parser.neededBytes)) return;
    if (this.#owner.isPeerGone()) return this.#owner.letGo();
    this.#backlog = undefined;
    this.#process(backlog);
  }

  #setPaused(paused: boolean): void {
    if (this.#isPaused === paused) return;
    this.#isPaused = paused;
    if (paused) this.#owner.pause();
    else this.#owner.resume();
  }

  #armTurn(): void {
    if (this.#turnArmed) return;
    this.#turnArmed = true;
    this.#owner.clock.defer(this.#turnEnded);
  }

  readonly #turnEnded = (): void => {
    this.#turnArmed = false;
    this.#turnBytes = 0;
    this.proceed();
  };

  drop(): void {
    this.#owner.drop();
  }

  disconnect(): void {
    this.#replies.stream.flush();
    if (this.#inFlight === 0) this.#owner.finished();
    else this.#disconnecting = true;
  }

  begin(request: Request, hasPayload: boolean): Refusal | undefined {
    const { lengthBytes, command } = request;
    const { trace } = this.#owner;
    if (trace.isOn) traceRequest(trace, this.#agreement.export.name, request);
    const refusal = refusalOf(request, this.#agreement);
    if (refusal || hasPayload) this.#turnBytes += REQUEST_COST_BYTES;
    if (!hasPayload) return refusal;
    this.#turnBytes += Math.max(lengthBytes - REQUEST_COST_BYTES, 0);
    const mostBytes = 8 + 4 * this.#agreement.contexts.size;
    const isTooLong = command === Command.blockStatus && (lengthBytes % 4 !== 0 || lengthBytes > mostBytes);
    return refusal ?? (isTooLong ? INVALID_PAYLOAD : undefined);
  }

  refuse(request: Request, refusal: Refusal): void {
    this.#replies.sendError(request, refusal);
  }

  serve(request: Request): void {
    if (request.command === Command.read) return this.#read(request);
    const copy = { ...request };
    if (request.command === Command.blockStatus)
      return this.#startStatus(copy, [...this.#agreement.contexts.keys()]);
    // What is prefetched is read.
    if (request.command === Command.cache)
      this.#turnBytes += Math.max(request.lengthBytes - REQUEST_COST_BYTES, 0);
    this.#start(copy, () => this.#run(copy), commandMemory(copy));
  }

  /** A write's data, or what BLOCK_STATUS is asked of. */
  serveWithPayload(request: Request, buffer: Buffer, start: number, isLent: boolean): void {
    const { command, lengthBytes } = request;
    if (command !== Command.write) this.#filteredStatus(request, buffer.subarray(start, start + lengthBytes));
    else if (!this.#writeNow(request, buffer, start)) {
      const own = isLent ? this.#copyOf(buffer.subarray(start, start + lengthBytes)) : buffer;
      return this.#writeLater(request, own);
    }
    if (!isLent) this.#pool.give(buffer);
  }

  #read(request: Request): void {
    const { lengthBytes } = request;
    this.#turnBytes += Math.max(lengthBytes, REQUEST_COST_BYTES);
    if ((request.flags & CommandFlag.fua) !== 0) return this.#readLater(request);
    if (lengthBytes >= OWN_BUFFER_BYTES) return this.#readLarge(request);
    const { stream } = this.#replies;
    const headBytes = this.#replies.readHeadBytes(lengthBytes);
    const at = stream.reserve(headBytes + lengthBytes);
    const start = at + headBytes;
    try {
      if (!this.#asked.tryRun('read', request.offset, lengthBytes, Flag.none, stream.buffer, start))
        return this.#readLater(request);
    } catch (error) {
      return this.#replies.sendError(request, failureOf(Command.read, error));
    }
    this.#replies.encodeReadHead(stream.buffer, at, request);
    stream.commit(headBytes + lengthBytes);
  }

  /** One that does not go through the gathering buffer. */
  #readLarge(request: Request): void {
    const { lengthBytes } = request;
    const buffer = this.#pool.take(DATA_AT + lengthBytes);
    const isPlain = lengthBytes >= LEAST_FILE_BYTES && this.#target.isPlainFile === true;
    const taker = isPlain ? this.#fileReply.of(request) : undefined;
    try {
      if (!this.#asked.tryRun('read', request.offset, lengthBytes, Flag.none, buffer, DATA_AT, taker)) {
        const copy = { ...request };
        return this.#start(copy, () => this.#readInto(buffer, copy), lengthBytes);
      }
    } catch (error) {
      this.#pool.give(buffer);
      return this.#replies.sendError(request, failureOf(Command.read, error));
    }
    if (taker?.isSent === true) this.#pool.give(buffer);
    else this.#replies.sendRead(buffer, request);
  }

  #readLater(request: Request): void {
    const { lengthBytes } = request;
    const buffer = this.#pool.take(DATA_AT + lengthBytes);
    const copy = { ...request };
    this.#start(copy, () => this.#readInto(buffer, copy), lengthBytes);
  }

  async #readInto(buffer: Buffer, request: Request): Promise<void> {
    const { lengthBytes } = request;
    try {
      if ((request.flags & CommandFlag.fua) !== 0) await this.#asked.run('flush', 0, 0);
      await this.#asked.run('read', request.offset, lengthBytes, Flag.none, buffer, DATA_AT);
      this.#checkHere();
    } catch (error) {
      this.#pool.give(buffer);
      throw error;
    }
    if (lengthBytes >= OWN_BUFFER_BYTES) return this.#replies.sendRead(buffer, request);
    const { stream } = this.#replies;
    const headBytes = this.#replies.readHeadBytes(lengthBytes);
    const at = stream.reserve(headBytes + lengthBytes);
    this.#replies.encodeReadHead(stream.buffer, at, request);
    buffer.copy(stream.buffer, at + headBytes, DATA_AT, DATA_AT + lengthBytes);
    stream.commit(headBytes + lengthBytes);
    this.#pool.give(buffer);
  }

  #copyOf(bytes: Buffer): Buffer {
    const copy = this.#pool.take(bytes.length);
    bytes.copy(copy);
    return copy;
  }

  /** BLOCK_STATUS of some of the contexts; the effect length is in the payload, too. */
  #filteredStatus(sent: Request, payload: Buffer): void {
    const asked = askedContexts(payload, this.#agreement);
    const request = { ...sent, flags: sent.flags & ~CommandFlag.payloadLength };
    request.lengthBytes = asked?.lengthBytes ?? 0;
    const refusal = asked ? refusalOf(request, this.#agreement) : INVALID_PAYLOAD;
    if (refusal) return this.#replies.sendError(request, refusal);
    this.#startStatus(request, asked?.ids ?? []);
  }

  /** False: must be written asynchronously. */
  #writeNow(request: Request, buffer: Buffer, start: number): boolean {
    const { offset, lengthBytes } = request;
    if (this.#lostBefore(request)) return false;
    try {
      const flags = this.#writeFlags(request);
      if (!this.#asked.tryRun('write', offset, lengthBytes, flags, buffer, start)) return false;
    } catch (error) {
      this.#replies.sendError(request, failureOf(Command.write, error));
      return true;
    }
    this.#replies.sendDone(request);
    return true;
  }

  #writeLater(sent: Request, buffer: Buffer): void {
    const request = { ...sent };
    this.#start(request, () => this.#writeFrom(buffer, request), request.lengthBytes);
  }

  async #writeFrom(buffer: Buffer, request: Request): Promise<void> {
    const { offset, lengthBytes } = request;
    try {
      await this.#afterLost(request);
      await this.#asked.run('write', offset, lengthBytes, this.#writeFlags(request), buffer);
    } finally {
      this.#pool.give(buffer);
    }
    this.#replies.sendDone(request);
  }

  #writeFlags(request: Request): number {
    return (request.flags & CommandFlag.fua) === 0 ? Flag.none : Flag.fua;
  }

  async #run(request: Request): Promise<void> {
    if (isChange(request.command)) await this.#afterLost(request);
    await runCommand(this.#asked, request, this.#pool);
    this.#replies.sendDone(request);
  }

  #startStatus(request: Request, ids: readonly number[]): void {
    const keptBytes = statusMemory(request.flags, request.lengthBytes, ids.length);
    this.#turnBytes += keptBytes;
    this.#pool.hold(keptBytes);
    const told = async (): Promise<void> => {
      try {
        await this.#blockStatus(request, ids);
      } finally {
        this.#pool.release(keptBytes);
      }
    };
    this.#start(request, told, keptBytes);
  }

  async #blockStatus(request: Request, ids: readonly number[]): Promise<void> {
    const answers: Array<[id: number, extents: Awaited<ReturnType<typeof statusExtents>>]> = [];
    for (const id of ids) {
      const context = defined(this.#agreement.contexts.get(id), 'a context that was agreed upon');
      answers.push([id, await statusExtents(context, request)]);
    }
    answers.forEach(([id, extents], i) =>
      this.#replies.sendExtents(request, id, extents, i === answers.length - 1),
    );
  }

  #lostBefore({ offset, lengthBytes }: Request): Promise<unknown> | undefined {
    return this.#owner.lost.overlapping(this.#target, offset, lengthBytes);
  }

  /** Waits for changes of clients that are gone. Errors: closed, when this one is gone itself by then. */
  async #afterLost(request: Request): Promise<void> {
    for (let lost = this.#lostBefore(request); lost; lost = this.#lostBefore(request)) {
      await lost;
      this.#checkHere();
    }
  }

  #checkHere(): void {
    if (this.#isGone) throw new BlockError('closed', 'The client is gone');
  }

  /** Counts a request that is under way until it ends. */
  #start(request: Request, begin: () => Promise<void>, payloadBytes: number): void {
    this.#turnBytes += REQUEST_COST_BYTES;
    this.#inFlight++;
    this.#inFlightBytes += payloadBytes;
    const over = begin()
      .catch((error: unknown) => this.#replies.sendError(request, failureOf(request.command, error)))
      .finally(() => this.#ended(payloadBytes));
    if (!isChange(request.command)) return;
    const { offset, lengthBytes } = request;
    const change = { offset, lengthBytes, over };
    this.#changes.add(change);
    void over.then(() => this.#changes.delete(change));
  }

  #ended(payloadBytes: number): void {
    this.#inFlight--;
    this.#inFlightBytes -= payloadBytes;
    if (this.#inFlight === 0) this.#kept.begin(this.#movedBytes());
    // What ends in this turn is sent together at its end.
    if (!this.#flushArmed) {
      this.#flushArmed = true;
      this.#owner.clock.defer(this.#flush);
    }
    this.#owner.settled();
  }

  readonly #flush = (): void => {
    this.#flushArmed = false;
    this.#replies.stream.flush();
    if (this.#disconnecting && this.#inFlight === 0) {
      this.#disconnecting = false;
      this.#owner.finished();
    } else this.proceed();
  };
}
