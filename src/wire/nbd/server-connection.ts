import { assert } from '../../base/assert.js';
import { Notifier } from '../../base/async.js';
import { MAX_CLIENT_IN_FLIGHT_BYTES, MiB } from '../../base/limits.js';
import type { Host, HostSocket, HostTimer } from '../../host/host.js';
import { BufferPool } from './buffer-pool.js';
import { ReplyStream } from './reply-stream.js';
import { type Agreement, ServerHandshake } from './server-handshake.js';
import { ServerTransmission } from './server-transmission.js';
import type { NbdExport, NbdExportLookup } from './target.js';

/** A client that has not chosen an export by then is dropped. */
const HANDSHAKE_TIMEOUT_MS = 30_000;

/** Answers of the handshake that the peer has not read; a listing of thousands of exports fits. */
const MAX_HANDSHAKE_QUEUE_BYTES = 16 * MiB;

export interface NbdConnectionOptions {
  socket: HostSocket;
  host: Host;
  exports: NbdExportLookup;
  /** Shared by the connections of a server. */
  pool?: BufferPool;
  handshakeTimeoutMs?: number;
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
  readonly #socket: HostSocket;
  readonly #host: Host;
  readonly #pool: BufferPool;
  readonly #mostInFlightBytes: () => number;
  readonly #onClose: ((connection: NbdServerConnection) => void) | undefined;
  readonly #settled = new Notifier();
  readonly #handshake: ServerHandshake;
  readonly #timer: HostTimer;
  #transmission: ServerTransmission | undefined;
  #agreement: Agreement | undefined;
  #isClosed = false;
  #isEnding = false;

  constructor(options: NbdConnectionOptions) {
    this.#socket = options.socket;
    this.#host = options.host;
    this.#pool = options.pool ?? new BufferPool((lengthBytes) => this.#host.files.buffer(lengthBytes));
    this.#onClose = options.onClose;
    this.#mostInFlightBytes = options.mostInFlightBytes ?? (() => MAX_CLIENT_IN_FLIGHT_BYTES);
    this.#timer = this.#host.clock.setTimer(options.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT_MS, () =>
      this.close(),
    );
    this.#handshake = new ServerHandshake(options.exports, (message) => {
      this.#socket.write(message);
      return this.#socket.queuedBytes <= MAX_HANDSHAKE_QUEUE_BYTES;
    });
    this.#handshake.begin();
    this.#socket.start({
      onData: (chunk) => this.#receive(chunk),
      onClose: () => this.#closed(),
      onDrain: () => this.#transmission?.drained(),
    });
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
    if (outcome === 'drop') this.close();
    else if (outcome === 'end') this.#end();
    else this.#transmit(outcome, chunk.subarray(next));
  }

  #transmit(agreement: Agreement, rest: Buffer): void {
    assert(!this.#transmission, 'second transmission phase');
    this.#timer.cancel();
    this.#agreement = agreement;
    const replies = new ReplyStream(this.#socket, this.#pool);
    this.#transmission = new ServerTransmission(
      {
        clock: this.#host.clock,
        mostInFlightBytes: this.#mostInFlightBytes,
        pause: () => this.#socket.pause(),
        resume: () => this.#socket.resume(),
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

  #end(): void {
    this.#isEnding = true;
    this.#timer.cancel();
    this.#socket.end();
  }

  #closed(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#timer.cancel();
    this.#transmission?.close();
    this.#onClose?.(this);
  }
}
