import type { BufferPool } from './buffer-pool.js';
import {
  chunkHeaderBytes,
  encodeChunkHeader,
  encodeExtents,
  encodeSimpleReply,
  type Extent,
  extentsBytes,
  type HeaderStyle,
  type Request,
  type RequestId,
  writeUint64,
} from './codec.js';
import * as nbd from './constants.js';
import { CommandFlag, REPLY_FLAG_DONE, ReplyType } from './constants.js';
import type { ReplyStream } from './reply-stream.js';
import type { Refusal } from './server-commands.js';
import { type Run, sparseRuns } from './sparse-data.js';

/**
 * Where the data of a read begins in its own buffer: not right behind the head, since the kernel copies slowly to where
 * memory is not aligned (see HostFiles.buffer). The longest head fits before it.
 */
export const DATA_AT = 64;
/** Longest error text sent. */
const MAX_MESSAGE_BYTES = 1024;

/** How the server's answers look, in the style of headers that was agreed. */
export class ServerReplies {
  readonly stream: ReplyStream;
  readonly #pool: BufferPool;
  readonly #style: HeaderStyle;
  /** Of a chunk's header. */
  readonly #headerBytes: number;
  readonly #head = Buffer.alloc(DATA_AT);

  constructor(stream: ReplyStream, pool: BufferPool, style: HeaderStyle) {
    this.stream = stream;
    this.#pool = pool;
    this.#style = style;
    this.#headerBytes = chunkHeaderBytes(style);
  }

  /** Success without data. */
  sendDone(request: RequestId): void {
    if (this.#style !== 'extended') return this.#sendSimple(0, request);
    const at = this.stream.reserve(this.#headerBytes);
    this.#encodeHeader(this.stream.buffer, at, REPLY_FLAG_DONE, ReplyType.none, request, 0);
    this.stream.commit(this.#headerBytes);
  }

  sendError(request: RequestId, { error, message }: Refusal): void {
    if (this.#style === 'simple') return this.#sendSimple(error, request);
    const text = Buffer.from(message).subarray(0, MAX_MESSAGE_BYTES);
    const lengthBytes = 6 + text.length;
    const at = this.stream.reserve(this.#headerBytes + lengthBytes);
    const { buffer } = this.stream;
    this.#encodeHeader(buffer, at, REPLY_FLAG_DONE, ReplyType.error, request, lengthBytes);
    const payloadAt = at + this.#headerBytes;
    buffer.writeUInt32BE(error, payloadAt);
    buffer.writeUInt16BE(text.length, payloadAt + 4);
    text.copy(buffer, payloadAt + 6);
    this.stream.commit(this.#headerBytes + lengthBytes);
  }

  /** One context's part of a BLOCK_STATUS. */
  sendExtents(request: RequestId, contextId: number, extents: readonly Extent[], isLast: boolean): void {
    const type = this.#style === 'extended' ? ReplyType.blockStatusExtended : ReplyType.blockStatus;
    const lengthBytes = extentsBytes(extents.length, this.#style);
    const at = this.stream.reserve(this.#headerBytes + lengthBytes);
    const { buffer } = this.stream;
    this.#encodeHeader(buffer, at, isLast ? REPLY_FLAG_DONE : 0, type, request, lengthBytes);
    encodeExtents(buffer, at + this.#headerBytes, contextId, extents, this.#style);
    this.stream.commit(this.#headerBytes + lengthBytes);
  }

  /** Before the data of a read that is sent in one piece. */
  readHeadBytes(lengthBytes: number): number {
    if (this.#style === 'simple') return nbd.SIMPLE_REPLY_BYTES;
    return lengthBytes === 0 ? this.#headerBytes : this.#headerBytes + 8;
  }

  encodeReadHead(out: Buffer, at: number, request: Request): void {
    const { lengthBytes } = request;
    if (this.#style === 'simple') return encodeSimpleReply(out, at, 0, request);
    if (lengthBytes === 0) return this.#encodeHeader(out, at, REPLY_FLAG_DONE, ReplyType.none, request, 0);
    this.#encodeHeader(out, at, REPLY_FLAG_DONE, ReplyType.offsetData, request, 8 + lengthBytes);
    writeUint64(out, at + this.#headerBytes, request.offset);
  }

  /**
   * Sends a read's data from a file, see ReplyStream.sendFile. False: nothing is sent. To peers that are far away, what reads
   * as zeroes is better not sent than not copied.
   */
  sendFile(request: Request, file: object, position: number): boolean {
    if (!this.stream.isLocal) return false;
    this.encodeReadHead(this.#head, 0, request);
    const head = this.#head.subarray(0, this.readHeadBytes(request.lengthBytes));
    return this.stream.sendFile(head, file, position, request.lengthBytes);
  }

  /** Sends data that lies at DATA_AT, and its head right before it; zeroes as holes where the client takes them. */
  sendRead(buffer: Buffer, request: Request): void {
    if (this.#style !== 'simple' && (request.flags & CommandFlag.df) === 0) {
      const runs = sparseRuns(buffer, DATA_AT, request.lengthBytes);
      if (runs) return this.#sendSparse(buffer, request, runs);
    }
    const headAt = DATA_AT - this.readHeadBytes(request.lengthBytes);
    this.encodeReadHead(buffer, headAt, request);
    this.stream.sendOwn(buffer, headAt, DATA_AT + request.lengthBytes);
  }

  /** Holes first: before each stretch of data lie zeroes, or DATA_AT bytes, so there is room for its head. */
  #sendSparse(buffer: Buffer, request: Request, runs: readonly Run[]): void {
    const data = runs.filter(({ isHole }) => !isHole);
    const last = data.at(-1) ?? runs.at(-1);
    for (const run of runs) if (run.isHole) this.#sendHole(request, run, run === last);
    for (const { at, lengthBytes } of data) {
      const headAt = DATA_AT + at - this.#headerBytes - 8;
      const isLast = at === last?.at;
      const flags = isLast ? REPLY_FLAG_DONE : 0;
      this.#encodeHeader(buffer, headAt, flags, ReplyType.offsetData, request, 8 + lengthBytes);
      writeUint64(buffer, headAt + this.#headerBytes, request.offset + at);
      const end = DATA_AT + at + lengthBytes;
      if (isLast) this.stream.sendOwn(buffer, headAt, end);
      else this.stream.sendPart(buffer, headAt, end);
    }
    if (data.length === 0) this.#pool.give(buffer);
  }

  #sendHole(request: Request, { at, lengthBytes }: Run, isLast: boolean): void {
    const bytes = this.#headerBytes + 12;
    const to = this.stream.reserve(bytes);
    const { buffer } = this.stream;
    this.#encodeHeader(buffer, to, isLast ? REPLY_FLAG_DONE : 0, ReplyType.offsetHole, request, 12);
    writeUint64(buffer, to + this.#headerBytes, request.offset + at);
    buffer.writeUInt32BE(lengthBytes, to + this.#headerBytes + 8);
    this.stream.commit(bytes);
  }

  #sendSimple(error: number, request: RequestId): void {
    const at = this.stream.reserve(nbd.SIMPLE_REPLY_BYTES);
    encodeSimpleReply(this.stream.buffer, at, error, request);
    this.stream.commit(nbd.SIMPLE_REPLY_BYTES);
  }

  #encodeHeader(
    out: Buffer,
    at: number,
    flags: number,
    type: number,
    request: RequestId,
    lengthBytes: number,
  ): void {
    encodeChunkHeader(out, at, flags, type, request, lengthBytes, this.#style);
  }
}
