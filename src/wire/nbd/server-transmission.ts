import { KiB, MAX_NBD_REQUEST_BYTES, MiB } from '../../base/limits.js';
import type { HostClock } from '../../host/host.js';
import type { BufferPool } from './buffer-pool.js';
import { ByteCollector } from './byte-collector.js';
import {
  type Cookie,
  decodeRequest,
  encodeChunkHeader,
  encodeExtents,
  encodeSimpleReply,
  type Extent,
  newRequest,
  type Request,
  writeUint64,
} from './codec.js';
import * as nbd from './constants.js';
import { Command, CommandFlag, ReplyType } from './constants.js';
import { REPLY_BUFFER_BYTES, type ReplyStream } from './reply-stream.js';
import { failureOf, type Refusal, refusalOf, runCommand, statusExtents } from './server-commands.js';
import type { Agreement } from './server-handshake.js';
import { type Run, sparseRuns } from './sparse-data.js';
import { type NbdTarget, TargetFlag } from './target.js';

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
/**
 * Where the data of a read begins in its own buffer: not right behind the head, since the kernel copies slowly to where
 * memory is not aligned (see HostFiles.buffer).
 */
const DATA_AT = 64;
/** Longest error text sent. */
const MAX_MESSAGE_BYTES = 1024;

const CHUNK = nbd.STRUCTURED_REPLY_BYTES;
/** An OFFSET_DATA chunk before its data. */
const DATA_CHUNK_BYTES = CHUNK + 8;

type State = 'request' | 'payload' | 'skip' | 'closed';

/** What the transmission phase tells its connection. */
export interface TransmissionOwner {
  readonly clock: HostClock;
  /** Payload that this client may have in flight before no more of its requests are read. */
  mostInFlightBytes(): number;
  /** Stop or go on reading the peer's socket. */
  pause(): void;
  resume(): void;
  /** The peer broke the protocol. */
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
  readonly #structured: boolean;
  readonly #replies: ReplyStream;
  readonly #pool: BufferPool;
  readonly #request: Request = newRequest();
  readonly #header = new ByteCollector();
  #state: State = 'request';
  /** Of a write's payload that spans chunks. */
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
  #isPaused = false;

  constructor(owner: TransmissionOwner, agreement: Agreement, replies: ReplyStream, pool: BufferPool) {
    this.#owner = owner;
    this.#agreement = agreement;
    this.#target = agreement.export.target;
    this.#structured = agreement.structured;
    this.#replies = replies;
    this.#pool = pool;
    this.#header.expect(nbd.REQUEST_BYTES);
  }

  /** Requests that the target is still working on. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** The chunk may change after the call. */
  receive(chunk: Buffer): void {
    if (this.#state === 'closed') return;
    if (this.#backlog) {
      // A paused socket may still deliver what it had read.
      this.#backlog = Buffer.concat([this.#backlog, chunk]);
      return;
    }
    this.#process(chunk);
  }

  /** The peer has taken all replies. */
  drained(): void {
    this.#replies.drained();
    this.#continue();
  }

  /** The connection is gone: results of what is in flight are dropped. */
  close(): void {
    this.#state = 'closed';
    this.#backlog = undefined;
  }

  #isStalled(): boolean {
    return (
      this.#turnBytes >= TURN_BYTES ||
      this.#inFlight >= MAX_IN_FLIGHT_REQUESTS ||
      this.#inFlightBytes >= this.#owner.mostInFlightBytes() ||
      this.#replies.queuedBytes >= MAX_QUEUED_REPLY_BYTES + REPLY_BUFFER_BYTES
    );
  }

  #process(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length && this.#state !== 'closed') {
      if (this.#state === 'request') {
        if (this.#isStalled()) {
          this.#replies.flush();
          if (this.#isStalled()) break;
        }
        at = this.#takeRequest(chunk, at);
      } else if (this.#state === 'payload') at = this.#takePayload(chunk, at);
      else at = this.#skip(chunk, at);
    }
    this.#replies.flush();
    if (this.#state === 'closed') return;
    if (this.#turnBytes > 0) this.#armTurn();
    if (at < chunk.length) {
      this.#backlog = Buffer.from(chunk.subarray(at));
      this.#setPaused(true);
    } else this.#setPaused(false);
  }

  /** Goes on with what was left when the client was ahead. */
  #continue(): void {
    const backlog = this.#backlog;
    if (!backlog || this.#isStalled() || this.#state === 'closed') return;
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
    this.#continue();
  };

  /** Decodes and serves the request at `at`; answers where the next byte to look at is. */
  #takeRequest(chunk: Buffer, at: number): number {
    const request = this.#request;
    let next: number;
    let isRequest: boolean;
    if (this.#header.isEmpty && chunk.length - at >= nbd.REQUEST_BYTES) {
      next = at + nbd.REQUEST_BYTES;
      isRequest = decodeRequest(chunk, at, request);
    } else {
      next = at + this.#header.take(chunk, at);
      if (!this.#header.isComplete) return next;
      isRequest = decodeRequest(this.#header.bytes, 0, request);
      this.#header.expect(nbd.REQUEST_BYTES);
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
    this.#replies.flush();
    this.#state = 'closed';
    if (this.#inFlight === 0) this.#owner.finished();
    else this.#disconnecting = true;
  }
  #disconnecting = false;

  #serve(chunk: Buffer, at: number): number {
    const request = this.#request;
    const refusal = refusalOf(request, this.#agreement);
    if (request.command === Command.write) return this.#beginWrite(chunk, at, refusal);
    if (refusal) {
      this.#turnBytes += REQUEST_COST_BYTES;
      this.#sendError(request, refusal);
      return at;
    }
    if (request.command === Command.read) this.#read(request);
    else if (request.command === Command.blockStatus)
      this.#start(request, this.#blockStatus({ ...request }), 0);
    else this.#start(request, this.#run({ ...request }), 0);
    return at;
  }

  #read(request: Request): void {
    const { lengthBytes } = request;
    this.#turnBytes += Math.max(lengthBytes, REQUEST_COST_BYTES);
    if ((request.flags & CommandFlag.fua) !== 0) return this.#readLater(request);
    if (lengthBytes >= OWN_BUFFER_BYTES) return this.#readLarge(request);
    const headBytes = this.#readHeadBytes(lengthBytes);
    const at = this.#replies.reserve(headBytes + lengthBytes);
    const { buffer } = this.#replies;
    const start = at + headBytes;
    try {
      if (!this.#target.tryRead(request.offset, buffer, start, lengthBytes)) return this.#readLater(request);
    } catch (error) {
      return this.#sendError(request, failureOf(Command.read, error));
    }
    this.#encodeReadHead(buffer, at, request);
    this.#replies.commit(headBytes + lengthBytes);
  }

  /** One that does not go through the gathering buffer. */
  #readLarge(request: Request): void {
    const { lengthBytes } = request;
    const buffer = this.#pool.take(DATA_AT + lengthBytes);
    try {
      if (!this.#target.tryRead(request.offset, buffer, DATA_AT, lengthBytes))
        return this.#start(request, this.#readInto(buffer, { ...request }), lengthBytes);
    } catch (error) {
      this.#pool.give(buffer);
      return this.#sendError(request, failureOf(Command.read, error));
    }
    this.#sendRead(buffer, request);
  }

  /** Sends data that lies at DATA_AT, and its head right before it; zeroes as holes where the client takes them. */
  #sendRead(buffer: Buffer, request: Request): void {
    if (this.#structured && (request.flags & CommandFlag.df) === 0) {
      const runs = sparseRuns(buffer, DATA_AT, request.lengthBytes);
      if (runs) return this.#sendSparse(buffer, request, runs);
    }
    const headAt = DATA_AT - this.#readHeadBytes(request.lengthBytes);
    this.#encodeReadHead(buffer, headAt, request);
    this.#replies.sendOwn(buffer, headAt, DATA_AT + request.lengthBytes);
  }

  /** Holes first: before each stretch of data lie zeroes, or DATA_AT bytes, so there is room for its head. */
  #sendSparse(buffer: Buffer, request: Request, runs: readonly Run[]): void {
    const data = runs.filter(({ isHole }) => !isHole);
    const last = data.at(-1) ?? runs.at(-1);
    for (const run of runs) if (run.isHole) this.#sendHole(request, run, run === last);
    for (const { at, lengthBytes } of data) {
      const headAt = DATA_AT + at - DATA_CHUNK_BYTES;
      const flags = at === last?.at ? nbd.REPLY_FLAG_DONE : 0;
      encodeChunkHeader(buffer, headAt, flags, ReplyType.offsetData, request, 8 + lengthBytes);
      writeUint64(buffer, headAt + CHUNK, request.offset + at);
      const end = DATA_AT + at + lengthBytes;
      if (at === last?.at) this.#replies.sendOwn(buffer, headAt, end);
      else this.#replies.sendPart(buffer, headAt, end);
    }
    if (data.length === 0) this.#pool.give(buffer);
  }

  #sendHole(request: Request, { at, lengthBytes }: Run, isLast: boolean): void {
    const bytes = CHUNK + 12;
    const to = this.#replies.reserve(bytes);
    const { buffer } = this.#replies;
    const flags = isLast ? nbd.REPLY_FLAG_DONE : 0;
    encodeChunkHeader(buffer, to, flags, ReplyType.offsetHole, request, 12);
    writeUint64(buffer, to + CHUNK, request.offset + at);
    buffer.writeUInt32BE(lengthBytes, to + CHUNK + 8);
    this.#replies.commit(bytes);
  }

  #readLater(request: Request): void {
    const { lengthBytes } = request;
    const buffer = this.#pool.take(DATA_AT + lengthBytes);
    this.#start(request, this.#readInto(buffer, { ...request }), lengthBytes);
  }

  async #readInto(buffer: Buffer, request: Request): Promise<void> {
    const { lengthBytes } = request;
    try {
      if ((request.flags & CommandFlag.fua) !== 0) await this.#target.flush();
      await this.#target.read(request.offset, buffer.subarray(DATA_AT, DATA_AT + lengthBytes));
    } catch (error) {
      this.#pool.give(buffer);
      throw error;
    }
    if (lengthBytes >= OWN_BUFFER_BYTES) return this.#sendRead(buffer, request);
    const headBytes = this.#readHeadBytes(lengthBytes);
    const at = this.#replies.reserve(headBytes + lengthBytes);
    this.#encodeReadHead(this.#replies.buffer, at, request);
    buffer.copy(this.#replies.buffer, at + headBytes, DATA_AT, DATA_AT + lengthBytes);
    this.#replies.commit(headBytes + lengthBytes);
    this.#pool.give(buffer);
  }

  #readHeadBytes(lengthBytes: number): number {
    if (!this.#structured) return nbd.SIMPLE_REPLY_BYTES;
    return lengthBytes === 0 ? CHUNK : DATA_CHUNK_BYTES;
  }

  #encodeReadHead(out: Buffer, at: number, request: Request): void {
    const { lengthBytes } = request;
    if (!this.#structured) return encodeSimpleReply(out, at, 0, request);
    if (lengthBytes === 0) return encodeChunkHeader(out, at, nbd.REPLY_FLAG_DONE, ReplyType.none, request, 0);
    encodeChunkHeader(out, at, nbd.REPLY_FLAG_DONE, ReplyType.offsetData, request, 8 + lengthBytes);
    writeUint64(out, at + CHUNK, request.offset);
  }

  #beginWrite(chunk: Buffer, at: number, refusal: Refusal | undefined): number {
    const { lengthBytes } = this.#request;
    this.#turnBytes += Math.max(lengthBytes, REQUEST_COST_BYTES);
    if (lengthBytes > MAX_NBD_REQUEST_BYTES) {
      this.#owner.drop();
      return at;
    }
    if (refusal) {
      this.#refusal = refusal;
      this.#skipBytes = lengthBytes;
      this.#state = 'skip';
      return this.#skip(chunk, at);
    }
    const end = at + lengthBytes;
    if (end <= chunk.length) {
      if (!this.#writeNow(chunk, at)) this.#writeLater(this.#copyOf(chunk.subarray(at, end)));
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
    const payload = this.#payload;
    const { lengthBytes } = this.#request;
    if (!payload) return chunk.length;
    const end = Math.min(chunk.length, at + lengthBytes - this.#payloadBytes);
    chunk.copy(payload, this.#payloadBytes, at, end);
    this.#payloadBytes += end - at;
    if (this.#payloadBytes < lengthBytes) return end;
    this.#payload = undefined;
    this.#state = 'request';
    if (this.#writeNow(payload, 0)) this.#pool.give(payload);
    else this.#writeLater(payload);
    return end;
  }

  #skip(chunk: Buffer, at: number): number {
    const bytes = Math.min(this.#skipBytes, chunk.length - at);
    this.#skipBytes -= bytes;
    if (this.#skipBytes === 0 && this.#refusal) {
      this.#sendError(this.#request, this.#refusal);
      this.#refusal = undefined;
      this.#state = 'request';
    }
    return at + bytes;
  }

  /** False: must be written asynchronously. */
  #writeNow(buffer: Buffer, start: number): boolean {
    const request = this.#request;
    const { offset, lengthBytes } = request;
    try {
      if (!this.#target.tryWrite(offset, buffer, this.#writeFlags(request), start, lengthBytes)) return false;
    } catch (error) {
      this.#sendError(request, failureOf(Command.write, error));
      return true;
    }
    this.#sendDone(request);
    return true;
  }

  #writeLater(buffer: Buffer): void {
    const request = { ...this.#request };
    this.#start(request, this.#writeFrom(buffer, request), request.lengthBytes);
  }

  async #writeFrom(buffer: Buffer, request: Request): Promise<void> {
    const bytes = buffer.subarray(0, request.lengthBytes);
    try {
      await this.#target.write(request.offset, bytes, this.#writeFlags(request));
    } finally {
      this.#pool.give(buffer);
    }
    this.#sendDone(request);
  }

  #writeFlags(request: Request): number {
    return (request.flags & CommandFlag.fua) === 0 ? TargetFlag.none : TargetFlag.fua;
  }

  async #run(request: Request): Promise<void> {
    await runCommand(this.#target, request);
    this.#sendDone(request);
  }

  async #blockStatus(request: Request): Promise<void> {
    this.#sendExtents(request, await statusExtents(this.#target, request));
  }

  /** Counts a request that is under way until it ends. */
  #start({ command, cookieHigh, cookieLow }: Request, running: Promise<void>, payloadBytes: number): void {
    this.#turnBytes += REQUEST_COST_BYTES;
    this.#inFlight++;
    this.#inFlightBytes += payloadBytes;
    running
      .catch((error: unknown) => this.#sendError({ cookieHigh, cookieLow }, failureOf(command, error)))
      .finally(() => this.#ended(payloadBytes));
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
    this.#replies.flush();
    if (this.#disconnecting && this.#inFlight === 0) {
      this.#disconnecting = false;
      this.#owner.finished();
    } else this.#continue();
  };

  #sendDone(cookie: Cookie): void {
    const at = this.#replies.reserve(nbd.SIMPLE_REPLY_BYTES);
    encodeSimpleReply(this.#replies.buffer, at, 0, cookie);
    this.#replies.commit(nbd.SIMPLE_REPLY_BYTES);
  }

  #sendError(cookie: Cookie, { error, message }: Refusal): void {
    if (!this.#structured) {
      const at = this.#replies.reserve(nbd.SIMPLE_REPLY_BYTES);
      encodeSimpleReply(this.#replies.buffer, at, error, cookie);
      this.#replies.commit(nbd.SIMPLE_REPLY_BYTES);
      return;
    }
    const text = Buffer.from(message).subarray(0, MAX_MESSAGE_BYTES);
    const at = this.#replies.reserve(CHUNK + 6 + text.length);
    const { buffer } = this.#replies;
    encodeChunkHeader(buffer, at, nbd.REPLY_FLAG_DONE, ReplyType.error, cookie, 6 + text.length);
    buffer.writeUInt32BE(error, at + CHUNK);
    buffer.writeUInt16BE(text.length, at + CHUNK + 4);
    text.copy(buffer, at + CHUNK + 6);
    this.#replies.commit(CHUNK + 6 + text.length);
  }

  #sendExtents(cookie: Cookie, extents: readonly Extent[]): void {
    const bytes = 4 + 8 * extents.length;
    const at = this.#replies.reserve(CHUNK + bytes);
    const { buffer } = this.#replies;
    encodeChunkHeader(buffer, at, nbd.REPLY_FLAG_DONE, ReplyType.blockStatus, cookie, bytes);
    encodeExtents(buffer, at + CHUNK, nbd.BASE_ALLOCATION_ID, extents);
    this.#replies.commit(CHUNK + bytes);
  }
}
