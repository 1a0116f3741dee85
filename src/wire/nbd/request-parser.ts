import { defined } from '../../base/assert.js';
import { MAX_NBD_REQUEST_BYTES } from '../../base/limits.js';
import type { BufferPool } from './buffer-pool.js';
import { ByteCollector } from './byte-collector.js';
import {
  decodeRequest,
  encodeReceived,
  type HeaderStyle,
  newRequest,
  type Request,
  requestBytes,
} from './codec.js';
import { Command, CommandFlag } from './constants.js';
import type { Refusal } from './server-commands.js';

/** What is done with requests as they come. The request object is the parser's: it becomes the next one. */
export interface RequestTaker {
  /** Memory that a request needs: for data, either way, and for what else is kept until it is answered. */
  memoryFor(request: Request, hasPayload: boolean): number;
  /** Before a request is taken: whether it, for which so much memory is needed, and all behind it, has to wait. */
  mustWait(memoryBytes: number): boolean;
  /** What is wrong with it, before its payload is there. */
  begin(request: Request, hasPayload: boolean): Refusal | undefined;
  serve(request: Request): void;
  /** The payload lies at `start`, in a buffer of the pool that is the taker's from here on, or in one that is lent. */
  serveWithPayload(request: Request, buffer: Buffer, start: number, isLent: boolean): void;
  /** Its payload was skipped. */
  refuse(request: Request, refusal: Refusal): void;
  /** The peer said DISC. */
  disconnect(): void;
  /** The peer broke the protocol. */
  drop(): void;
}

type State = 'request' | 'waiting' | 'payload' | 'skip' | 'closed';

/** Cuts what one client sends in the transmission phase into requests, whose payloads may span chunks. */
export class RequestParser {
  readonly #style: HeaderStyle;
  readonly #pool: BufferPool;
  readonly #taker: RequestTaker;
  readonly #request: Request = newRequest();
  readonly #requestBytes: number;
  readonly #header = new ByteCollector();
  #state: State = 'request';
  #payload: Buffer | undefined;
  #payloadBytes = 0;
  #skipBytes = 0;
  #refusal: Refusal | undefined;

  constructor(style: HeaderStyle, pool: BufferPool, taker: RequestTaker) {
    this.#style = style;
    this.#pool = pool;
    this.#taker = taker;
    this.#requestBytes = requestBytes(style);
    this.#header.expect(this.#requestBytes);
  }

  get isClosed(): boolean {
    return this.#state === 'closed';
  }

  /** Memory for a payload of which the peer owes the rest. */
  get keptBytes(): number {
    return this.#payload?.length ?? 0;
  }

  /** What it has taken of a request that is not whole: another parser that takes this goes on from there. */
  unfinished(): Buffer {
    if (this.#state === 'request') return Buffer.from(this.#header.part);
    const header = encodeReceived(this.#request, this.#style);
    if (this.#state === 'waiting') return header;
    if (this.#state === 'payload')
      return Buffer.concat([
        header,
        defined(this.#payload, 'a payload under way').subarray(0, this.#payloadBytes),
      ]);
    // What is skipped nobody looks at.
    return Buffer.concat([header, Buffer.alloc(this.#request.lengthBytes - this.#skipBytes)]);
  }

  /** Looks at nothing more. */
  close(): void {
    this.#state = 'closed';
    if (this.#payload) this.#pool.give(this.#payload);
    this.#payload = undefined;
  }

  /** Answers how many bytes it has taken: not all when a request has to wait. Goes on with one that waits, without more bytes, too. */
  take(chunk: Buffer): number {
    let at = 0;
    while ((at < chunk.length || this.#state === 'waiting') && this.#state !== 'closed') {
      if (this.#state === 'request') at = this.#takeRequest(chunk, at);
      else if (this.#state === 'waiting') {
        if (this.#taker.mustWait(this.neededBytes)) break;
        at = this.#dispatch(chunk, at);
      } else if (this.#state === 'payload') at = this.#takePayload(chunk, at);
      else at = this.#skip(chunk, at);
    }
    return at;
  }

  /** A request is there that has to wait. */
  get isWaiting(): boolean {
    return this.#state === 'waiting';
  }

  /** Memory that the request needs that waits, if any. */
  get neededBytes(): number {
    if (this.#state !== 'waiting') return 0;
    return this.#taker.memoryFor(this.#request, this.#hasPayload(this.#request));
  }

  /** Decodes the request at `at`; answers where the next byte to look at is. */
  #takeRequest(chunk: Buffer, at: number): number {
    const request = this.#request;
    let next: number;
    let isRequest: boolean;
    if (this.#header.isEmpty && chunk.length - at >= this.#requestBytes) {
      next = at + this.#requestBytes;
      isRequest = decodeRequest(chunk, at, request, this.#style);
    } else {
      next = at + this.#header.take(chunk, at);
      if (!this.#header.isComplete) return next;
      isRequest = decodeRequest(this.#header.bytes, 0, request, this.#style);
      this.#header.expect(this.#requestBytes);
    }
    if (isRequest) this.#state = 'waiting';
    else this.#taker.drop();
    return next;
  }

  #dispatch(chunk: Buffer, at: number): number {
    const request = this.#request;
    this.#state = 'request';
    if (request.command === Command.disconnect) {
      this.#state = 'closed';
      this.#taker.disconnect();
      return at;
    }
    const hasPayload = this.#hasPayload(request);
    const refusal = this.#taker.begin(request, hasPayload);
    if (hasPayload) return this.#beginPayload(chunk, at, refusal);
    if (refusal) this.#taker.refuse(request, refusal);
    else this.#taker.serve(request);
    return at;
  }

  /** With extended headers a flag says so; QEMU's client (10.0) leaves it out of writes, and sends their data all the same. */
  #hasPayload({ command, flags }: Request): boolean {
    if (command === Command.write) return true;
    return this.#style === 'extended' && (flags & CommandFlag.payloadLength) !== 0;
  }

  #beginPayload(chunk: Buffer, at: number, refusal: Refusal | undefined): number {
    const { lengthBytes } = this.#request;
    if (lengthBytes > MAX_NBD_REQUEST_BYTES) {
      this.#taker.drop();
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
      this.#taker.serveWithPayload(this.#request, chunk, at, true);
      return end;
    }
    this.#payload = this.#pool.take(lengthBytes);
    this.#payloadBytes = 0;
    this.#state = 'payload';
    return this.#takePayload(chunk, at);
  }

  #takePayload(chunk: Buffer, at: number): number {
    const payload = defined(this.#payload, 'a payload under way');
    const { lengthBytes } = this.#request;
    const end = Math.min(chunk.length, at + lengthBytes - this.#payloadBytes);
    chunk.copy(payload, this.#payloadBytes, at, end);
    this.#payloadBytes += end - at;
    if (this.#payloadBytes < lengthBytes) return end;
    this.#payload = undefined;
    this.#state = 'request';
    this.#taker.serveWithPayload(this.#request, payload, 0, false);
    return end;
  }

  #skip(chunk: Buffer, at: number): number {
    const bytes = Math.min(this.#skipBytes, chunk.length - at);
    this.#skipBytes -= bytes;
    if (this.#skipBytes === 0 && this.#refusal) {
      const refusal = this.#refusal;
      this.#refusal = undefined;
      this.#state = 'request';
      this.#taker.refuse(this.#request, refusal);
    }
    return at + bytes;
  }
}
