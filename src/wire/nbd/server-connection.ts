import { assert } from '../../base/assert.js';
import { Notifier } from '../../base/async.js';
import { toBlockError } from '../../base/error.js';
import { MAX_CLIENT_IN_FLIGHT_BYTES, MiB } from '../../base/limits.js';
import type { Host, HostSocket, HostTimer, SocketHandler } from '../../host/host.js';
import { BufferPool } from './buffer-pool.js';
import { LostChanges } from './lost-changes.js';
import { ReplyStream } from './reply-stream.js';
import { type Agreement, ServerHandshake } from './server-handshake.js';
import { ServerReplies } from './server-replies.js';
import { ServerTransmission } from './server-transmission.js';
import type { NbdExport, NbdExportLookup } from './target.js';

/** A client that has not chosen an export by then is dropped; QEMU's default. */
const HANDSHAKE_TIMEOUT_MS = 10_000;
/** How often it is looked whether a client has hung up whose requests are not read, since it is ahead of us. */
const GONE_POLL_MS = 250;

/** Answers of the handshake that the peer has not read; a listing of thousands of exports fits. */
const MAX_HANDSHAKE_QUEUE_BYTES = 16 * MiB;

export interface NbdConnectionOptions {
  socket: HostSocket;
  host: Host;
  exports: NbdExportLookup;
  /** Shared by the connections of a server. */
  pool?: BufferPool;
  /** Shared by all servers of the same disks. */
  lost?: LostChanges;
  /** Clients must take TLS, which this begins. */
  secure?: (socket: HostSocket) => Promise<HostSocket>;
  /** It does not come in. */
  onRefused?: (why: string) => void;
  /** 0: no limit. */
  handshakeTimeoutMs?: number;
  /** Whether there is memory for another request; if not, proceed() is called when there is. */
  hasMemory?: (connection: NbdServerConnection) => boolean;
  /** It has chosen an export. */
  onAgreed?: (connection: NbdServerConnection) => void;
  /** Payload that the client may have in flight. */
  mostInFlightBytes?: () => number;
  /** The socket is closed; requests may still be in flight (see idle). */
  onClose?: (connection: NbdServerConnection) => void;
}

/** Serves one client until it leaves, breaks the protocol or is closed. */
export function serveNbdConnection(options: NbdConnectionOptions): NbdServerConnection {
  return new NbdServerConnection(options);
}

export class NbdServerConnection {
  #socket: HostSocket;
  readonly #host: Host;
  readonly #pool: BufferPool;
  readonly #mostInFlightBytes: () => number;
  readonly #lost: LostChanges;
  readonly #options: NbdConnectionOptions;
  readonly #settled = new Notifier();
  readonly #handshake: ServerHandshake;
  readonly #timer: HostTimer | undefined;
  #goneTimer: HostTimer | undefined;
  #transmission: ServerTransmission | undefined;
  #agreement: Agreement | undefined;
  #isClosed = false;
  #isEnding = false;
  readonly #handler: SocketHandler = {
    onData: (chunk) => this.#receive(chunk),
    onClose: () => {
      if (!this.#isClosed && !this.#isEnding && !this.#agreement) this.#refuse(this.#handshake.failure);
      this.#closed();
    },
    onDrain: () => this.#transmission?.drained(),
  };

  constructor(options: NbdConnectionOptions) {
    this.#socket = options.socket;
    this.#host = options.host;
    this.#pool = options.pool ?? new BufferPool((lengthBytes) => this.#host.files.buffer(lengthBytes));
    this.#lost = options.lost ?? new LostChanges();
    this.#options = options;
    this.#mostInFlightBytes = options.mostInFlightBytes ?? (() => MAX_CLIENT_IN_FLIGHT_BYTES);
    const timeoutMs = options.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT_MS;
    if (timeoutMs > 0) this.#timer = this.#host.clock.setTimer(timeoutMs, () => this.close());
    this.#handshake = new ServerHandshake(options.exports, options.secure !== undefined, (message) => {
      this.#socket.write(message);
      return this.#socket.queuedBytes <= MAX_HANDSHAKE_QUEUE_BYTES;
    });
    this.#handshake.begin();
    this.#socket.start(this.#handler);
  }

  /** The export that the client chose; undefined while it has not. */
  get export(): NbdExport | undefined {
    return this.#agreement?.export;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Requests that the target is working on, also after the connection is closed. */
  get inFlight(): number {
    return this.#transmission?.inFlight ?? 0;
  }

  /** For how long the peer has kept memory waiting for itself. */
  hoardingMs(): number {
    return this.#transmission?.hoardingMs() ?? 0;
  }

  /** The peer has hung up: nothing is done of what it sent and nobody has read yet. */
  isPeerGone(): boolean {
    return this.#socket.isPeerGone();
  }

  /** There is memory for requests again. */
  proceed(): void {
    this.#transmission?.proceed();
  }

  /** Drops the connection now. */
  close(): void {
    if (this.#isClosed) return;
    this.#socket.destroy();
    this.#closed();
  }

  /** Resolves when no request of this client is in flight. */
  idle(): Promise<void> {
    return this.#settled.until(() => this.inFlight === 0);
  }

  #receive(chunk: Buffer): void {
    if (this.#isClosed || this.#isEnding) return;
    if (this.#transmission) return this.#transmission.receive(chunk);
    const { next, outcome } = this.#handshake.consume(chunk, 0);
    if (outcome === 'more') return;
    if (outcome === 'secure') {
      // Nothing may be said before it is secret.
      if (next < chunk.length) this.close();
      else void this.#secure();
    } else if (outcome === 'drop') {
      this.#refuse(this.#handshake.failure);
      this.close();
    } else if (outcome === 'end') this.#end();
    else this.#transmit(outcome, chunk.subarray(next));
  }

  #refuse(why: string): void {
    this.#options.onRefused?.(why);
  }

  async #secure(): Promise<void> {
    const { secure } = this.#options;
    assert(secure, 'TLS without credentials');
    try {
      const socket = await secure(this.#socket);
      if (this.#isClosed) return socket.destroy();
      this.#socket = socket;
      socket.start(this.#handler);
    } catch (error) {
      // Whoever is not wanted is told by TLS itself.
      if (!this.#isClosed) this.#refuse(toBlockError(error).message);
      this.close();
    }
  }

  #transmit(agreement: Agreement, rest: Buffer): void {
    assert(!this.#transmission, 'second transmission phase');
    this.#timer?.cancel();
    this.#agreement = agreement;
    this.#options.onAgreed?.(this);
    const stream = new ReplyStream(this.#socket, this.#pool);
    const replies = new ServerReplies(stream, this.#pool, agreement.style);
    this.#transmission = new ServerTransmission(
      {
        clock: this.#host.clock,
        requestWatch: this.#host.requestWatch,
        lost: this.#lost,
        mostInFlightBytes: this.#mostInFlightBytes,
        hasMemory: () => this.#options.hasMemory?.(this) ?? true,
        isPeerGone: () => this.#socket.isPeerGone(),
        pause: () => this.#pause(),
        resume: () => this.#resume(),
        drop: () => this.close(),
        finished: () => this.#end(),
        settled: () => this.#settled.notify(),
      },
      agreement,
      replies,
      this.#pool,
    );
    if (rest.length > 0) this.#transmission.receive(rest);
  }

  /** A socket that is not read does not tell that its peer has hung up. */
  #pause(): void {
    this.#socket.pause();
    this.#goneTimer = this.#host.clock.setTimer(GONE_POLL_MS, () => {
      if (this.#socket.isPeerGone()) this.close();
      else this.#pause();
    });
  }

  #resume(): void {
    this.#goneTimer?.cancel();
    this.#socket.resume();
  }

  #end(): void {
    this.#isEnding = true;
    this.#timer?.cancel();
    this.#socket.end();
  }

  #closed(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#timer?.cancel();
    this.#goneTimer?.cancel();
    this.#transmission?.close();
    this.#options.onClose?.(this);
  }
}
