import { assert } from '../../base/assert.js';
import { deferred, Notifier } from '../../base/async.js';
import { BlockError, errnoError, toBlockError } from '../../base/error.js';
import { GiB, KiB, MiB, MAX_NBD_REQUEST_BYTES } from '../../base/limits.js';
import type { Host, HostSocket, HostTimer, SocketAddress, TlsEnd } from '../../host/host.js';
import { BufferPool } from './buffer-pool.js';
import { ClientHandshake, type NbdExportInfo } from './client-handshake.js';
import { HandshakeSocket } from './handshake-socket.js';
import { ReplyParser, type SentRequest } from './client-replies.js';
import { encodeRequest, type Extent, type HeaderStyle, type NewRequest, requestBytes } from './codec.js';
import * as nbd from './constants.js';
import { Command } from './constants.js';
import { ReplyStream, REPLY_BUFFER_BYTES } from './reply-stream.js';

const HANDSHAKE_TIMEOUT_MS = 10_000;
/** A request that is not answered in full by then takes the connection with it. */
const REQUEST_TIMEOUT_MS = 60_000;
/** Times as long for what makes a server wait for its disk: flush, trim, write zeroes. */
const SLOW_COMMAND_FACTOR = 5;
/** What a peer has to take our goodbye. */
const CLOSE_TIMEOUT_MS = 1_000;
/** Sent and not answered; QEMU's client has 16. */
const MAX_REQUESTS = 64;
/** Payload of those, in both directions together: what the request timeout is for must be able to pass. */
const MAX_PAYLOAD_BYTES = 32 * MiB;
/** Longer reads and writes are sent in pieces, so that several are under way. */
const MAX_PIECE_BYTES = 4 * MiB;
const MAX_TRIM_BYTES = GiB;
/** Larger writes travel in a buffer of their own. */
const MAX_GATHERED_BYTES = 64 * KiB;
/** In the high word of every cookie. */
const COOKIE_HIGH = 0x6c697665;

export interface NbdClientOptions {
  host: Host;
  address: SocketAddress;
  exportName: string;
  /** The metadata context that blockStatus is about (base:allocation). */
  contextName?: string;
  /** The headers to ask for first (extended); servers that lack them are spoken to in an older style. */
  style?: HeaderStyle;
  /** TLS, or nothing. */
  tls?: TlsEnd;
  handshakeTimeoutMs?: number;
  /** Of reads, writes and status; five times that of flushes, trims and zeroes. */
  requestTimeoutMs?: number;
  /** The connection, once it was made, is lost, or was abandoned: called once, before its requests fail. */
  onLost?: () => void;
}

/** Where the bytes of a write lie in a file of the host. */
interface FilePlace {
  readonly file: object;
  readonly position: number;
}

interface Pending extends SentRequest {
  readonly flags: number;
  /** Of a write; copied when it is sent. */
  readonly payload: Uint8Array | undefined;
  /** Of a write whose bytes are sent without being read; undefined also when they could not be. */
  place: FilePlace | undefined;
  /** Bytes of its file are still to be sent. */
  isLeaving: boolean;
  /** It is answered: called when they are gone. */
  whenLeft: (() => void) | undefined;
  deadlineMs: number;
  resolve(request: Pending): void;
  reject(error: unknown): void;
}

/**
 * One connection to one export. Requests run in parallel up to a limit and wait in order for a place beyond it.
 * They always end: a peer that is silent for too long, breaks the protocol or goes away fails all of them.
 * Errors: kind timeout, corrupt, io (connection lost), and what the server answers.
 */
export class NbdClient {
  readonly info: NbdExportInfo;
  readonly #host: Host;
  readonly #socket: HostSocket;
  readonly #stream: ReplyStream;
  readonly #parser: ReplyParser;
  readonly #requestTimeoutMs: number;
  readonly #changed = new Notifier();
  readonly #sent = new Map<number, Pending>();
  readonly #waiting: Pending[] = [];
  #payloadBytes = 0;
  #nextCookie = 1;
  #timer: HostTimer | undefined;
  /** When #timer fires. */
  #timerMs = Infinity;
  #flushArmed = false;
  /** Why no request can be sent any more. */
  #failure: BlockError | undefined;
  #isClosing = false;
  #isClosed = false;
  #onLost: (() => void) | undefined;
  readonly #gone = deferred();

  private constructor(options: NbdClientOptions, socket: HostSocket, info: NbdExportInfo) {
    const { host } = options;
    this.#host = host;
    this.#socket = socket;
    this.info = info;
    this.#requestTimeoutMs = options.requestTimeoutMs ?? REQUEST_TIMEOUT_MS;
    this.#stream = new ReplyStream(socket, new BufferPool((lengthBytes) => host.files.buffer(lengthBytes)));
    this.#parser = new ReplyParser({
      style: info.style,
      context: info.context,
      find: (high, low) => (high === COOKIE_HIGH ? this.#unanswered(low) : undefined),
      finished: (low) => this.#finished(low),
    });
  }

  /** Errors: those of the host's connect and of ClientHandshake.run; kind timeout; kind corrupt. */
  static async connect(options: NbdClientOptions): Promise<NbdClient> {
    const { host, address } = options;
    const timeoutMs = options.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT_MS;
    return HandshakeSocket.run(host, address, timeoutMs, async (connection) => {
      const { tls } = options;
      const handshake = new ClientHandshake(connection.reader, connection.send, {
        ...options,
        ...(tls && { secure: () => connection.secure(tls) }),
      });
      const info = await handshake.run();
      const client = new NbdClient(options, connection.socket, info);
      connection.handOn({
        onData: (chunk) => client.#receive(chunk),
        onClose: () => client.#socketClosed(),
        onDrain: () => client.#stream.drained(),
      });
      connection.reader.check();
      client.#receive(connection.reader.rest());
      // What came with the end of the handshake may have broken the protocol: then there was no connection to lose.
      if (client.#failure) throw client.#failure;
      client.#onLost = options.onLost;
      return client;
    });
  }

  /** Whether an error of a request is that of the connection, and not the server's answer. */
  isLost(error: unknown): boolean {
    if (!this.#failure) return false;
    return error === this.#failure || (error instanceof BlockError && error.cause === this.#failure);
  }

  /** Resolves when a lost connection was seen closed by the server: it reads no more of what was sent. */
  get gone(): Promise<void> {
    return this.#gone.promise;
  }

  /** Requests that were sent or wait for their turn. */
  get inFlight(): number {
    return this.#sent.size + this.#waiting.length;
  }

  /** Bytes of the largest request that is sent: a multiple of the server's minimum block size. */
  get maxRequestBytes(): number {
    const { blockSize } = this.info;
    const most = Math.min(blockSize?.maximum ?? MAX_NBD_REQUEST_BYTES, MAX_NBD_REQUEST_BYTES);
    return most - (most % (blockSize?.minimum ?? 1));
  }

  has(transmissionFlag: number): boolean {
    return (this.info.flags & transmissionFlag) !== 0;
  }

  /** Fills the buffer. */
  read(offset: number, buffer: Uint8Array): Promise<void> {
    return inPieces(buffer.length, this.#pieceBytes(), async (at, lengthBytes) => {
      const part = buffer.subarray(at, at + lengthBytes);
      await this.#submit(Command.read, 0, offset + at, lengthBytes, part, undefined);
    });
  }

  /** `flags` (CommandFlag) are sent as they are. The buffer must not change until this resolves. */
  write(offset: number, buffer: Uint8Array, flags: number): Promise<void> {
    return inPieces(buffer.length, this.#pieceBytes(), async (at, lengthBytes) => {
      const part = buffer.subarray(at, at + lengthBytes);
      await this.#submit(Command.write, flags, offset + at, lengthBytes, undefined, part);
    });
  }

  /** Whether writeFile() sends any. */
  get sendsFiles(): boolean {
    return this.#stream.sendsFiles;
  }

  /**
   * A write of bytes of a HostFile that are not read, see HostSocket.sendFile. False: some of them are to be read and
   * written. What is written to their place before this resolves may be sent instead.
   */
  async writeFile(
    offset: number,
    { file, position }: FilePlace,
    lengthBytes: number,
    flags: number,
  ): Promise<boolean> {
    let isDone = true;
    await inPieces(lengthBytes, this.#pieceBytes(), async (at, bytes) => {
      const place = { file, position: position + at };
      const sent = await this.#submit(Command.write, flags, offset + at, bytes, undefined, undefined, place);
      if (!sent.place) isDone = false;
    });
    return isDone;
  }

  writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    return inPieces(lengthBytes, this.maxRequestBytes, async (at, bytes) => {
      await this.#submit(Command.writeZeroes, flags, offset + at, bytes);
    });
  }

  trim(offset: number, lengthBytes: number): Promise<void> {
    return inPieces(lengthBytes, MAX_TRIM_BYTES, async (at, bytes) => {
      await this.#submit(Command.trim, 0, offset + at, bytes);
    });
  }

  async flush(): Promise<void> {
    await this.#submit(Command.flush, 0, 0, 0);
  }

  /** The extent that begins at offset; it may be longer than asked. Only with an agreed context. */
  async blockStatus(offset: number, lengthBytes: number): Promise<Extent> {
    const { extent } = await this.#submit(Command.blockStatus, nbd.CommandFlag.reqOne, offset, lengthBytes);
    assert(extent, 'a status without extent');
    return extent;
  }

  /** Hangs up; what is in flight fails. */
  abandon(): void {
    this.#fail(errnoError('ECANCELED'));
  }

  /** Waits for what is in flight, says goodbye and hangs up; ends in any case. */
  async close(): Promise<void> {
    this.#isClosing = true;
    await this.#changed.until(() => this.#sent.size === 0 && this.#waiting.length === 0);
    this.#timer?.cancel();
    if (this.#failure) return;
    this.#failure = errnoError('ESHUTDOWN');
    const goodbye = Buffer.alloc(requestBytes(this.info.style));
    encodeRequest(goodbye, 0, header(Command.disconnect, 0, 0, 0, 0), this.info.style);
    this.#stream.flush();
    this.#socket.write(goodbye);
    this.#socket.end();
    const timer = this.#host.clock.setTimer(CLOSE_TIMEOUT_MS, () => this.#socketClosed());
    await this.#changed.until(() => this.#isClosed);
    timer.cancel();
    this.#socket.destroy();
  }

  /** The minimum block size divides it: a power of two up to 64 KiB. */
  #pieceBytes(): number {
    return Math.min(this.maxRequestBytes, MAX_PIECE_BYTES);
  }

  #submit(
    command: number,
    flags: number,
    offset: number,
    lengthBytes: number,
    buffer?: Uint8Array,
    payload?: Uint8Array,
    place?: FilePlace,
  ): Promise<Pending> {
    return new Promise((resolve, reject) => {
      if (this.#failure) return reject(errnoError('EIO', undefined, { cause: this.#failure }));
      if (this.#isClosing) return reject(errnoError('ESHUTDOWN'));
      const pending: Pending = {
        command,
        flags,
        offset,
        lengthBytes,
        buffer,
        payload,
        place,
        isLeaving: false,
        whenLeft: undefined,
        error: undefined,
        extent: undefined,
        filled: [],
        deadlineMs: 0,
        resolve,
        reject,
      };
      if (this.#waiting.length > 0 || !this.#hasRoomFor(pending)) this.#waiting.push(pending);
      else this.#send(pending);
    });
  }

  #hasRoomFor(pending: Pending): boolean {
    if (this.#sent.size === 0) return true;
    return this.#sent.size < MAX_REQUESTS && this.#payloadBytes + payloadBytes(pending) <= MAX_PAYLOAD_BYTES;
  }

  #send(pending: Pending): void {
    const cookie = this.#nextCookie;
    this.#nextCookie = (this.#nextCookie + 1) % 2 ** 32;
    if (pending.place && !this.#sendFile(pending, cookie)) {
      pending.place = undefined;
      return pending.resolve(pending);
    }
    pending.deadlineMs = this.#deadlineOf(pending);
    this.#sent.set(cookie, pending);
    this.#payloadBytes += payloadBytes(pending);
    this.#watch(pending.deadlineMs);
    if (!pending.place) this.#sendBytes(pending, cookie);
  }

  /** False: nothing is sent. */
  #sendFile(pending: Pending, cookie: number): boolean {
    const { command, flags, offset, lengthBytes, place } = pending;
    const { style } = this.info;
    assert(place, 'a write of bytes that lie in a file');
    const head = Buffer.alloc(requestBytes(style));
    const request = header(command, flags, offset, lengthBytes, cookie);
    if (style === 'extended') request.flags |= nbd.CommandFlag.payloadLength;
    encodeRequest(head, 0, request, style);
    pending.isLeaving = true;
    const left = (): void => {
      pending.isLeaving = false;
      pending.whenLeft?.();
    };
    return this.#stream.sendFile(head, place.file, place.position, lengthBytes, left);
  }

  #sendBytes(pending: Pending, cookie: number): void {
    const { command, flags, offset, lengthBytes, payload } = pending;
    const request = header(command, flags, offset, lengthBytes, cookie);
    const gathered = payload && payload.length <= MAX_GATHERED_BYTES ? payload : undefined;
    const { style } = this.info;
    const headBytes = requestBytes(style);
    const bytes = headBytes + (gathered?.length ?? 0);
    assert(bytes <= REPLY_BUFFER_BYTES, 'gathered request');
    const at = this.#stream.reserve(bytes);
    if (payload && style === 'extended') request.flags |= nbd.CommandFlag.payloadLength;
    encodeRequest(this.#stream.buffer, at, request, style);
    // Copied: a server that answers early must not make us send what the caller does with its buffer next.
    if (gathered) this.#stream.buffer.set(gathered, at + headBytes);
    this.#stream.commit(bytes);
    if (payload && !gathered) this.#stream.sendCopy(payload);
    else this.#armFlush();
  }

  /** What is submitted in one go is sent in one go. */
  #armFlush(): void {
    if (this.#flushArmed) return;
    this.#flushArmed = true;
    queueMicrotask(() => {
      this.#flushArmed = false;
      if (!this.#failure) this.#stream.flush();
    });
  }

  #receive(chunk: Buffer): void {
    if (this.#failure) return;
    try {
      this.#parser.receive(chunk);
    } catch (error) {
      this.#fail(toBlockError(error));
    }
  }

  #unanswered(cookie: number): Pending | undefined {
    const pending = this.#sent.get(cookie);
    return pending?.whenLeft ? undefined : pending;
  }

  #finished(cookie: number): void {
    const pending = this.#sent.get(cookie);
    assert(pending, 'reply without request');
    if (pending.isLeaving) {
      // A server may answer, to refuse it, before it has read what is on its way.
      pending.whenLeft = () => {
        if (this.#sent.get(cookie) === pending) this.#finished(cookie);
      };
      return;
    }
    this.#sent.delete(cookie);
    this.#payloadBytes -= payloadBytes(pending);
    if (pending.error) pending.reject(pending.error);
    else pending.resolve(pending);
    for (;;) {
      const [next] = this.#waiting;
      if (!next || !this.#hasRoomFor(next)) break;
      this.#waiting.shift();
      this.#send(next);
    }
    if (this.#sent.size === 0) this.#changed.notify();
  }

  #deadlineOf({ command }: Pending): number {
    const factor = SLOW_COMMANDS.has(command) ? SLOW_COMMAND_FACTOR : 1;
    return this.#host.clock.nowMs() + factor * this.#requestTimeoutMs;
  }

  /** Looks at the deadlines at that time at the latest. */
  #watch(deadlineMs: number): void {
    if (this.#timerMs <= deadlineMs) return;
    this.#timer?.cancel();
    this.#timerMs = deadlineMs;
    this.#timer = this.#host.clock.setTimer(deadlineMs - this.#host.clock.nowMs(), () => {
      this.#timerMs = Infinity;
      const deadlines = [...this.#sent.values()].map((pending) => pending.deadlineMs);
      if (deadlines.length === 0) return;
      const firstMs = Math.min(...deadlines);
      if (firstMs <= this.#host.clock.nowMs()) this.#fail(errnoError('ETIMEDOUT'));
      else this.#watch(firstMs);
    });
  }

  #socketClosed(): void {
    this.#isClosed = true;
    this.#fail(errnoError('EIO'));
    this.#changed.notify();
  }

  /** Ends the connection and everything on it. */
  #fail(error: BlockError): void {
    if (this.#failure) return;
    this.#failure = error;
    this.#timer?.cancel();
    const failed = [...this.#sent.values(), ...this.#waiting.splice(0)];
    // Before the socket drops what of files is still to be sent: that is no end of a write.
    this.#sent.clear();
    this.#payloadBytes = 0;
    void this.#socket.shutDown().then(() => this.#gone.resolve());
    this.#onLost?.();
    for (const pending of failed) pending.reject(error);
    this.#changed.notify();
  }
}

const SLOW_COMMANDS: ReadonlySet<number> = new Set([Command.flush, Command.trim, Command.writeZeroes]);

function payloadBytes({ buffer, payload, place, lengthBytes }: Pending): number {
  return place ? lengthBytes : ((buffer ?? payload)?.length ?? 0);
}

function header(
  command: number,
  flags: number,
  offset: number,
  lengthBytes: number,
  cookieLow: number,
): NewRequest {
  return { command, flags, offset, lengthBytes, cookieHigh: COOKIE_HIGH, cookieLow };
}

/**
 * Runs the pieces of a range together, so many at a time: a server's largest request may be one byte. Fails with the
 * first error, after all that were begun have ended.
 */
async function inPieces(
  lengthBytes: number,
  pieceBytes: number,
  run: (at: number, lengthBytes: number) => Promise<void>,
): Promise<void> {
  if (lengthBytes === 0) return;
  if (lengthBytes <= pieceBytes) return run(0, lengthBytes);
  let at = 0;
  const errors: unknown[] = [];
  const runner = async (): Promise<void> => {
    while (at < lengthBytes && errors.length === 0) {
      const from = at;
      at += pieceBytes;
      const piece = run(from, Math.min(pieceBytes, lengthBytes - from));
      await piece.catch((error: unknown) => void errors.push(error));
    }
  };
  const runners = Math.min(MAX_REQUESTS, Math.ceil(lengthBytes / pieceBytes));
  await Promise.all(Array.from({ length: runners }, runner));
  if (errors.length > 0) throw errors[0];
}
