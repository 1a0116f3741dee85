import { BlockError, errnoError } from '../../base/error.js';
import { ByteCollector } from './byte-collector.js';
import {
  decodeExtents,
  decodeReplyHeader,
  errnoOfNbdError,
  type Extent,
  extentsBytes,
  type HeaderStyle,
  readUint64Rounded,
  type ReplyHeader,
  replyHeaderBytes,
} from './codec.js';
import * as nbd from './constants.js';
import { Command, ReplyType } from './constants.js';

/** Pieces of one read that may be apart at a time: a server sends them more or less in order. */
const MAX_READ_GAPS = 1024;

/** A request that was sent. */
export interface SentRequest {
  readonly command: number;
  readonly offset: number;
  readonly lengthBytes: number;
  /** Of a read, lengthBytes long. */
  readonly buffer: Uint8Array | undefined;
  /** The first error that the server told. */
  error: BlockError | undefined;
  /** Of BLOCK_STATUS. */
  extent: Extent | undefined;
  /** Ranges [start, end) of the buffer that have their bytes, in order, none touching another. */
  readonly filled: Array<[start: number, end: number]>;
}

/** Where replies find their requests. */
export interface ReplyOwner {
  readonly style: HeaderStyle;
  /** Id of the context that BLOCK_STATUS is about. */
  readonly context: number | undefined;
  /** The request of that cookie, which is in flight. */
  find(cookieHigh: number, cookieLow: number): SentRequest | undefined;
  /** It is answered in full. */
  finished(cookieLow: number): void;
}

type State = 'header' | 'prefix' | 'payload' | 'data';

/**
 * Reads replies from chunks that split them anywhere; data goes straight to where it is wanted. A peer can make it
 * hold one small message at most. Errors, from receive(): kind corrupt; the connection is of no use afterwards.
 */
export class ReplyParser {
  readonly #owner: ReplyOwner;
  readonly #collector = new ByteCollector();
  #state: State = 'header';
  #hasMagic = false;
  #header: ReplyHeader = {
    style: 'simple',
    error: 0,
    flags: 0,
    type: 0,
    lengthBytes: 0,
    cookieHigh: 0,
    cookieLow: 0,
    offset: 0,
  };
  #request: SentRequest | undefined;
  /** Data under way: into buffer at #dataAt, #dataBytes left. */
  #dataAt = 0;
  #dataBytes = 0;

  constructor(owner: ReplyOwner) {
    this.#owner = owner;
    this.#collector.expect(nbd.SIMPLE_REPLY_BYTES);
  }

  receive(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#state === 'data') at = this.#takeData(chunk, at);
      else if (this.#state === 'header' && this.#isWholeHeader(chunk, at)) {
        const end = at + replyHeaderBytes(chunk.readUInt32BE(at));
        this.#dispatch(chunk.subarray(at, end));
        at = end;
      } else {
        at += this.#collector.take(chunk, at);
        if (this.#collector.isComplete) this.#collected();
      }
    }
  }

  #collected(): void {
    if (this.#state === 'header') this.#takeHeader();
    else if (this.#state === 'prefix') this.#beginData(readUint64Rounded(this.#collector.bytes, 0));
    else {
      this.#takePayload(this.#collector.bytes);
      this.#ended();
    }
  }

  /** The usual case: nothing of it came before. */
  #isWholeHeader(chunk: Buffer, at: number): boolean {
    const leftBytes = chunk.length - at;
    if (this.#hasMagic || !this.#collector.isEmpty || leftBytes < nbd.SIMPLE_REPLY_BYTES) return false;
    const needed = replyHeaderBytes(chunk.readUInt32BE(at));
    return needed > 0 && leftBytes >= needed;
  }

  #takeHeader(): void {
    const { bytes } = this.#collector;
    if (!this.#hasMagic) {
      const needed = replyHeaderBytes(bytes.readUInt32BE(0));
      if (needed === 0) throw corrupt('invalid magic in reply');
      if (needed > bytes.length) {
        // The rest of a longer header is gathered behind what is there.
        const start = Buffer.from(bytes);
        this.#collector.expect(needed);
        this.#collector.take(start, 0);
        this.#hasMagic = true;
        return;
      }
    }
    this.#hasMagic = false;
    this.#dispatch(bytes);
  }

  #dispatch(bytes: Buffer): void {
    this.#header = decodeReplyHeader(bytes);
    const request = this.#owner.find(this.#header.cookieHigh, this.#header.cookieLow);
    if (!request) throw corrupt('unexpected reply: no such request');
    this.#request = request;
    if (this.#header.style === 'simple') this.#simple(request);
    else this.#beginChunk(request);
  }

  #simple(request: SentRequest): void {
    const { style } = this.#owner;
    if (style === 'extended') throw corrupt('simple reply when extended headers were agreed upon');
    if (
      style === 'structured' &&
      (request.command === Command.read || request.command === Command.blockStatus)
    )
      throw corrupt('simple reply when structured reply chunk was expected');
    if (this.#header.error !== 0) request.error = replyError(this.#header.error);
    if (request.command !== Command.read || request.error) return this.#ended();
    this.#beginBytes(0, request.lengthBytes);
  }

  #beginChunk(request: SentRequest): void {
    const { type, lengthBytes, flags, style, offset } = this.#header;
    if (style !== this.#owner.style) throw corrupt(`${style} reply without negotiation`);
    if (style === 'extended' && offset !== request.offset) throw corrupt('reply for another offset');
    if ((type & FIRST_ERROR) !== 0) return this.#expect('payload', lengthBytes, 6, nbd.MAX_ERROR_BYTES);
    switch (type) {
      case ReplyType.none:
        if (lengthBytes !== 0 || (flags & nbd.REPLY_FLAG_DONE) === 0)
          throw corrupt('invalid NBD_REPLY_TYPE_NONE chunk');
        return this.#ended();
      case ReplyType.offsetData:
        if (request.command !== Command.read) break;
        return this.#expect('prefix', 8, 8, 8, lengthBytes > 8);
      case ReplyType.offsetHole:
        if (request.command !== Command.read) break;
        return this.#expect('payload', lengthBytes, 12, 12);
      case ReplyType.blockStatus:
      case ReplyType.blockStatusExtended: {
        const isExtended = type === ReplyType.blockStatusExtended;
        if (request.command !== Command.blockStatus || isExtended !== (style === 'extended')) break;
        const mostBytes = extentsBytes(nbd.MAX_STATUS_EXTENTS, style);
        return this.#expect('payload', lengthBytes, extentsBytes(1, style), mostBytes);
      }
    }
    throw corrupt(`unexpected reply type ${type} to command ${request.command}`);
  }

  #expect(state: State, lengthBytes: number, least: number, most: number, isValid = true): void {
    if (!isValid || lengthBytes < least || lengthBytes > most)
      throw corrupt(`invalid payload length of reply type ${this.#header.type}`);
    this.#state = state;
    this.#collector.expect(lengthBytes);
  }

  /** The small payloads. */
  #takePayload(payload: Buffer): void {
    const request = this.#request;
    const { type } = this.#header;
    if (!request) return;
    if ((type & FIRST_ERROR) !== 0) request.error ??= chunkError(payload);
    else if (type === ReplyType.offsetHole) {
      const lengthBytes = payload.readUInt32BE(8);
      const start = this.#claim(request, readUint64Rounded(payload, 0), lengthBytes);
      request.buffer?.fill(0, start, start + lengthBytes);
    } else {
      const { contextId, extents } = decodeExtents(payload, this.#owner.style);
      if (contextId !== this.#owner.context) throw corrupt('unexpected meta context in block status');
      if (request.extent) throw corrupt('several NBD_REPLY_TYPE_BLOCK_STATUS chunks');
      request.extent = extents[0];
    }
  }

  #beginData(offset: number): void {
    const request = this.#request;
    if (!request) return;
    const lengthBytes = this.#header.lengthBytes - 8;
    this.#beginBytes(this.#claim(request, offset, lengthBytes), lengthBytes);
  }

  #beginBytes(start: number, lengthBytes: number): void {
    this.#state = 'data';
    this.#dataAt = start;
    this.#dataBytes = lengthBytes;
    if (lengthBytes === 0) this.#ended();
  }

  #takeData(chunk: Buffer, at: number): number {
    const bytes = Math.min(this.#dataBytes, chunk.length - at);
    const { buffer } = this.#request ?? {};
    if (buffer) chunk.copy(buffer, this.#dataAt, at, at + bytes);
    this.#dataAt += bytes;
    this.#dataBytes -= bytes;
    if (this.#dataBytes === 0) this.#ended();
    return at + bytes;
  }

  /** Marks bytes of a read as received; answers where they go in its buffer. None may come twice. */
  #claim(request: SentRequest, offset: number, lengthBytes: number): number {
    const start = offset - request.offset;
    const end = start + lengthBytes;
    if (lengthBytes === 0 || start < 0 || end > request.lengthBytes)
      throw corrupt('server sent chunk exceeding requested region');
    const { filled } = request;
    let index = filled.length;
    while (index > 0 && (filled[index - 1]?.[0] ?? 0) >= end) index--;
    const before = filled[index - 1];
    if (before && before[1] > start) throw corrupt('server sent overlapping chunks');
    if (before?.[1] === start) before[1] = end;
    else if (filled.length >= MAX_READ_GAPS) throw corrupt('server sent too many separate chunks');
    else filled.splice(index, 0, [start, end]);
    const joined = before?.[1] === end ? index - 1 : index;
    const now = filled[joined];
    const after = filled[joined + 1];
    if (now && after && now[1] === after[0]) {
      now[1] = after[1];
      filled.splice(joined + 1, 1);
    }
    return start;
  }

  /** A reply, or one chunk of it, was read to its end. */
  #ended(): void {
    const request = this.#request;
    this.#request = undefined;
    this.#state = 'header';
    this.#collector.expect(nbd.SIMPLE_REPLY_BYTES);
    const { flags, style, cookieLow } = this.#header;
    if (!request || (flags & nbd.REPLY_FLAG_DONE) === 0) return;
    if (style !== 'simple' && !request.error) checkComplete(request);
    this.#owner.finished(cookieLow);
  }
}

const FIRST_ERROR = 0x8000;

function checkComplete(request: SentRequest): void {
  const [first] = request.filled;
  const filledBytes = first ? first[1] - first[0] : 0;
  if (request.command === Command.read && filledBytes !== request.lengthBytes)
    throw corrupt('server did not send all bytes of a read');
  if (request.command === Command.blockStatus && !request.extent)
    throw corrupt('server did not reply with any status extents');
}

/** Payload: error number, length of the text, text, and for some types an offset. */
function chunkError(payload: Buffer): BlockError {
  const error = payload.readUInt32BE(0);
  if (error === 0) throw corrupt('server sent error chunk with error zero');
  if (payload.readUInt16BE(4) > payload.length - 6) throw corrupt('invalid length of an error text');
  return replyError(error);
}

function replyError(error: number): BlockError {
  return errnoError(errnoOfNbdError(error));
}

function corrupt(what: string): BlockError {
  return new BlockError('corrupt', `Protocol error: ${what}`);
}
