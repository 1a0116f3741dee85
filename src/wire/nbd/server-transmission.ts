import { defined } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { Flag, type RequestWatch } from '../../base/io-request.js';
import { KiB, MAX_NBD_REQUEST_BYTES, MiB } from '../../base/limits.js';
import type { HostClock } from '../../host/host.js';
import type { BufferPool } from './buffer-pool.js';
import { ByteCollector } from './byte-collector.js';
import { decodeRequest, newRequest, type Request, requestBytes } from './codec.js';
import { Command, CommandFlag } from './constants.js';
import type { Change, LostChanges } from './lost-changes.js';
import { REPLY_BUFFER_BYTES } from './reply-stream.js';
import {
  askedContexts,
  failureOf,
  INVALID_PAYLOAD,
  isChange,
  type Refusal,
  refusalOf,
  runCommand,
  statusExtents,
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

type State = 'request' | 'payload' | 'skip' | 'closed';

/** What the transmission phase tells its connection, and asks it. */
export interface TransmissionOwner {
  readonly clock: HostClock;
  readonly requestWatch: RequestWatch | undefined;
  /** Of all clients of the disk. */
  readonly lost: LostChanges;
  /** Payload that this client may have in flight before no more of its requests are read. */
  mostInFlightBytes(): number;
  /** Whether there is memory for another request; if not, proceed() is called when there is. */
  hasMemory(): boolean;
  /** The peer has hung up, though not all that it sent has been read. */
  isPeerGone(): boolean;
  /** Stop or go on reading the peer's socket. */
  pause(): void;
  resume(): void;
  /** The peer broke the protocol, or is gone. */
  drop(): void;
  /** The peer said DISC and everything it asked for is done. */
  finished(): void;
  /** A request ended. */
  settled(): void;
}

/**
 * The transmission phase of one connection. What the target can serve at once is read straight into the outgoing
 * buffer (or written straight from the incoming chunk); what it cannot is answered when it is done, in any order.
 */
export class ServerTransmission {
  readonly #owner: TransmissionOwner;
  readonly #agreement: Agreement;
  readonly #target: NbdTarget;
  readonly #asked: TargetRequests;
  readonly #replies: ServerReplies;
  readonly #pool: BufferPool;
  readonly #request: Request = newRequest();
  readonly #requestBytes: number;
  readonly #header = new ByteCollector();
  #state: State = 'request';
  /** Of a request whose payload spans chunks. */
  #payload: Buffer | undefined;
  #payloadBytes = 0;
  #skipBytes = 0;
  #refusal: Refusal | undefined;
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
  #disconnecting = false;
  /** The connection is gone: nothing new begins, nothing is answered. */
  #isGone = false;
  #progressMs: number;

  constructor(owner: TransmissionOwner, agreement: Agreement, replies: ServerReplies, pool: BufferPool) {
    this.#owner = owner;
    this.#agreement = agreement;
    this.#target = agreement.export.target;
    this.#asked = new TargetRequests(this.#target, owner.requestWatch);
    this.#replies = replies;
    this.#pool = pool;
    this.#requestBytes = requestBytes(agreement.style);
    this.#header.expect(this.#requestBytes);
    this.#progressMs = owner.clock.nowMs();
  }

  /** Requests that the target is still working on. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** For how long the peer has kept memory waiting: for the rest of a payload, or for taking its replies. */
  hoardingMs(): number {
    const isHoarding = this.#payload !== undefined || this.#replies.stream.queuedBytes > 0;
    return isHoarding && this.#inFlight === 0 ? this.#owner.clock.nowMs() - this.#progressMs : 0;
  }

  /** The chunk may change after the call. */
  receive(chunk: Buffer): void {
    if (this.#state === 'closed') return;
    if (this.#backlog) {
      // A paused socket may still deliver what it had read.
      this.#backlog = Buffer.concat([this.#backlog, chunk]);
      return;
    }
    this.#progressMs = this.#owner.clock.nowMs();
    this.#process(chunk);
  }

  /** The peer has taken all replies. */
  drained(): void {
    this.#progressMs = this.#owner.clock.nowMs();
    this.#replies.stream.drained();
    this.proceed();
  }

  /**
   * The connection is gone: results of what is in flight are dropped, and so is what has not begun. Changes that have
   * are told to those who come after.
   */
  close(): void {
    this.#state = 'closed';
    this.#isGone = true;
    this.#backlog = undefined;
    if (this.#payload) this.#pool.give(this.#payload);
    this.#payload = undefined;
    this.#replies.stream.close();
    this.#asked.cancel();
    for (const change of this.#changes) this.#owner.lost.add(this.#target, change);
  }

  #isStalled(): boolean {
    return (
      this.#turnBytes >= TURN_BYTES ||
      this.#inFlight >= MAX_IN_FLIGHT_REQUESTS ||
      this.#inFlightBytes >= this.#owner.mostInFlightBytes() ||
      this.#replies.stream.queuedBytes >= MAX_QUEUED_REPLY_BYTES + REPLY_BUFFER_BYTES ||
      !this.#owner.hasMemory()
    );
  }

  #process(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length && this.#state !== 'closed') {
      if (this.#state === 'request') {
        if (this.#isStalled()) {
          this.#replies.stream.flush();
          if (this.#isStalled()) break;
        }
        at = this.#takeRequest(chunk, at);
      } else if (this.#state === 'payload') at = this.#takePayload(chunk, at);
      else at = this.#skip(chunk, at);
    }
    this.#replies.stream.flush();
    if (this.#state === 'closed') return;
    if (this.#turnBytes > 0) this.#armTurn();
    if (at < chunk.length) {
      this.#backlog = Buffer.from(chunk.subarray(at));
      this.#setPaused(true);
    } else this.#setPaused(false);
  }

  /** Goes on with what was left when the client was ahead; of one that has hung up meanwhile nothing is done. */
  proceed(): void {
    const backlog = this.#backlog;
    if (!backlog || this.#isStalled() || this.#state === 'closed') return;
    if (this.#owner.isPeerGone()) return this.#owner.drop();
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

  /** Decodes and serves the request at `at`; answers where the next byte to look at is. */
  #takeRequest(chunk: Buffer, at: number): number {
    const request = this.#request;
    const { style } = this.#agreement;
    let next: number;
    let isRequest: boolean;
    if (this.#header.isEmpty && chunk.length - at >= this.#requestBytes) {
      next = at + this.#requestBytes;
      isRequest = decodeRequest(chunk, at, request, style);
    } else {
      next = at + this.#header.take(chunk, at);
      if (!this.#header.isComplete) return next;
      isRequest = decodeRequest(this.#header.bytes, 0, request, style);
      this.#header.expect(this.#requestBytes);
    }
    if (!isRequest) {
      this.#owner.drop();
      return next;
    }
    if (request.command === Command.disconnect) {
      this.#disconnect();
      return next;
    }
    return this.#serve(chunk, next);
  }

  #disconnect(): void {
    this.#replies.stream.flush();
    this.#state = 'closed';
    if (this.#inFlight === 0) this.#owner.finished();
    else this.#disconnecting = true;
  }

  #serve(chunk: Buffer, at: number): number {
    const request = this.#request;
    const refusal = refusalOf(request, this.#agreement);
    if (this.#hasPayload(request)) return this.#beginPayload(chunk, at, refusal);
    if (refusal) {
      this.#turnBytes += REQUEST_COST_BYTES;
      this.#replies.sendError(request, refusal);
      return at;
    }
    if (request.command === Command.read) this.#read(request);
    else if (request.command === Command.blockStatus) {
      const copy = { ...request };
      this.#start(copy, () => this.#blockStatus(copy, [...this.#agreement.contexts.keys()]), 0);
    } else {
      const copy = { ...request };
      this.#start(copy, () => this.#run(copy), 0);
    }
    return at;
  }

  /** With extended headers a flag says so; QEMU's client (10.0) leaves it out of writes, and sends their data all the same. */
  #hasPayload({ command, flags }: Request): boolean {
    if (command === Command.write) return true;
    return this.#agreement.style === 'extended' && (flags & CommandFlag.payloadLength) !== 0;
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
    try {
      if (!this.#asked.tryRun('read', request.offset, lengthBytes, Flag.none, buffer, DATA_AT)) {
        const copy = { ...request };
        return this.#start(copy, () => this.#readInto(buffer, copy), lengthBytes);
      }
    } catch (error) {
      this.#pool.give(buffer);
      return this.#replies.sendError(request, failureOf(Command.read, error));
    }
    this.#replies.sendRead(buffer, request);
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

  /** A write's data, or what BLOCK_STATUS is asked of. */
  #beginPayload(chunk: Buffer, at: number, refusal: Refusal | undefined): number {
    const { lengthBytes, command } = this.#request;
    this.#turnBytes += Math.max(lengthBytes, REQUEST_COST_BYTES);
    if (lengthBytes > MAX_NBD_REQUEST_BYTES) {
      this.#owner.drop();
      return at;
    }
    const mostBytes = 8 + 4 * this.#agreement.contexts.size;
    const isTooLong = command === Command.blockStatus && (lengthBytes % 4 !== 0 || lengthBytes > mostBytes);
    const refused = refusal ?? (isTooLong ? INVALID_PAYLOAD : undefined);
    if (refused) {
      this.#refusal = refused;
      this.#skipBytes = lengthBytes;
      this.#state = 'skip';
      return this.#skip(chunk, at);
    }
    const end = at + lengthBytes;
    if (end <= chunk.length) {
      if (command !== Command.write) this.#filteredStatus(chunk.subarray(at, end));
      else if (!this.#writeNow(chunk, at)) this.#writeLater(this.#copyOf(chunk.subarray(at, end)));
      return end;
    }
    this.#payload = this.#pool.take(lengthBytes);
    this.#payloadBytes = 0;
    this.#state = 'payload';
    return this.#takePayload(chunk, at);
  }

  #copyOf(bytes: Buffer): Buffer {
    const copy = this.#pool.take(bytes.length);
    bytes.copy(copy);
    return copy;
  }

  #takePayload(chunk: Buffer, at: number): number {
    const payload = defined(this.#payload, 'a payload under way');
    const { lengthBytes, command } = this.#request;
    const end = Math.min(chunk.length, at + lengthBytes - this.#payloadBytes);
    chunk.copy(payload, this.#payloadBytes, at, end);
    this.#payloadBytes += end - at;
    if (this.#payloadBytes < lengthBytes) return end;
    this.#payload = undefined;
    this.#state = 'request';
    if (command === Command.write && !this.#writeNow(payload, 0)) {
      this.#writeLater(payload);
      return end;
    }
    if (command !== Command.write) this.#filteredStatus(payload.subarray(0, lengthBytes));
    this.#pool.give(payload);
    return end;
  }

  /** BLOCK_STATUS of some of the contexts; the effect length is in the payload, too. */
  #filteredStatus(payload: Buffer): void {
    const asked = askedContexts(payload, this.#agreement);
    const request = { ...this.#request, flags: this.#request.flags & ~CommandFlag.payloadLength };
    request.lengthBytes = asked?.lengthBytes ?? 0;
    const refusal = asked ? refusalOf(request, this.#agreement) : INVALID_PAYLOAD;
    if (refusal) return this.#replies.sendError(request, refusal);
    this.#start(request, () => this.#blockStatus(request, asked?.ids ?? []), 0);
  }

  #skip(chunk: Buffer, at: number): number {
    const bytes = Math.min(this.#skipBytes, chunk.length - at);
    this.#skipBytes -= bytes;
    if (this.#skipBytes === 0 && this.#refusal) {
      this.#replies.sendError(this.#request, this.#refusal);
      this.#refusal = undefined;
      this.#state = 'request';
    }
    return at + bytes;
  }

  /** False: must be written asynchronously. */
  #writeNow(buffer: Buffer, start: number): boolean {
    const request = this.#request;
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

  #writeLater(buffer: Buffer): void {
    const request = { ...this.#request };
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
    await runCommand(this.#asked, request);
    this.#replies.sendDone(request);
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
