import { assert } from '../../base/assert.js';
import { Notifier } from '../../base/async.js';
import { toBlockError } from '../../base/error.js';
import { KiB, MAX_CLIENT_IN_FLIGHT_BYTES, MiB } from '../../base/limits.js';
import type { Host, HostSocket, HostTimer, SocketHandler } from '../../host/host.js';
import { BufferPool } from './buffer-pool.js';
import type { HeaderStyle } from './codec.js';
import { LostChanges } from './lost-changes.js';
import { ReplyStream } from './reply-stream.js';
import { type Agreement, ServerHandshake } from './server-handshake.js';
import { ServerReplies } from './server-replies.js';
import { ServerTransmission } from './server-transmission.js';
import { contextsOf, type MetaContext, type NbdExport, type NbdExportLookup } from './target.js';

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
  /** Whether there is memory for a request of a client that holds some, or none; if not, proceed() is called when there is. */
  hasMemory?: (connection: NbdServerConnection, lengthBytes: number, holdsSome: boolean) => boolean;
  /** It has chosen an export. */
  onAgreed?: (connection: NbdServerConnection) => void;
  /** Payload that the client may have in flight. */
  mostInFlightBytes?: () => number;
  /** One that another process has served so far. */
  passed?: PassedClient;
  /** The socket is closed; requests may still be in flight (see idle). */
  onClose?: (connection: NbdServerConnection) => void;
}

/** What a client agreed upon. A type alias: it is JSON. */
export type PassedAgreement = {
  export: string;
  style: HeaderStyle;
  /** By their ids. */
  contexts: { [id: string]: string };
};

/** A client of a server as another process may go on with it. */
export interface PassedClient {
  /** Undefined: it has not chosen an export. */
  readonly agreement: PassedAgreement | undefined;
  /** In the handshake that goes on: all that was answered. */
  readonly said: Buffer;
  /** What came and is not done yet. */
  readonly received: Buffer;
}

/** So much of a handshake is kept, to be said again to another process. */
const MAX_KEPT_HANDSHAKE_BYTES = 64 * KiB;

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
  #isFrozen = false;
  /** It speaks TLS, or is about to. */
  #isSecure = false;
  /** All that it has said in the handshake; undefined: too much to keep. */
  #said: Buffer | undefined = Buffer.alloc(0);
  /** Came while nothing was looked at. */
  #unseen: Buffer | undefined;
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
    // What another process has answered is not said again.
    let isMute = options.passed !== undefined;
    this.#handshake = new ServerHandshake(
      options.exports,
      options.secure !== undefined,
      (message) => {
        if (isMute) return true;
        this.#socket.write(message);
        return this.#socket.queuedBytes <= MAX_HANDSHAKE_QUEUE_BYTES;
      },
      this.#host.trace.nbdNegotiateOption,
    );
    this.#handshake.begin();
    this.#socket.start(this.#handler);
    if (!options.passed) return;
    const { agreement, said, received } = options.passed;
    if (said.length > 0) this.#receive(said);
    isMute = false;
    if (agreement) this.#goOnWith(agreement, received);
    else if (received.length > 0) this.#receive(received);
  }

  #goOnWith(agreement: PassedAgreement, received: Buffer): void {
    const agreed = restoreAgreement(agreement, this.#options.exports);
    if (agreed) this.#transmit(agreed, received);
    else this.close();
  }

  /** Looks at nothing more of what comes, until thaw(). */
  freeze(): void {
    this.#isFrozen = true;
    if (this.#transmission) this.#transmission.freeze();
    else this.#socket.pause();
  }

  thaw(): void {
    if (!this.#isFrozen) return;
    this.#isFrozen = false;
    if (this.#isClosed) return;
    if (this.#transmission) return this.#transmission.thaw();
    const unseen = this.#unseen;
    this.#unseen = undefined;
    if (unseen) this.#receive(unseen);
    if (!this.#isClosed && !this.#transmission) this.#socket.resume();
  }

  /** Frozen, with all that was asked answered and taken; or it is on its way out, or cannot be passed anyway. */
  get isQuiet(): boolean {
    if (this.#isClosed || this.#isSecure) return this.inFlight === 0;
    return (
      this.#isFrozen && !this.#isEnding && (this.#transmission?.isQuiet ?? this.#socket.queuedBytes === 0)
    );
  }

  /** The client for another process, and the descriptor of its socket. Undefined: it cannot be passed. */
  passed(): { client: PassedClient; fd: number } | undefined {
    const fd = this.#socket.descriptor?.();
    if (fd === undefined || this.#isClosed || this.#isSecure || !this.#said) return undefined;
    const agreement = this.#agreement && describeAgreement(this.#agreement);
    const received = this.#transmission?.unread() ?? this.#unseen ?? Buffer.alloc(0);
    return { client: { agreement, said: this.#said, received }, fd };
  }

  /** It goes over where its server is: it speaks no TLS. */
  get isPassable(): boolean {
    return (
      !this.#isClosed &&
      !this.#isSecure &&
      this.#said !== undefined &&
      this.#socket.descriptor?.() !== undefined
    );
  }

  /** The export that the client chose; undefined while it has not. */
  get export(): NbdExport | undefined {
    return this.#agreement?.export;
  }

  /** Its client has said that it goes, or has gone. */
  get isLeaving(): boolean {
    return this.#isClosed || this.#isEnding || this.#socket.isPeerGone();
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

  /** Of a peer that has hung up. What it sent is thrown away, but read: else it hears of an error though it said that it goes. */
  letGo(): void {
    if (this.#isClosed) return;
    void this.#socket.shutDown();
    this.#closed();
  }

  /** Resolves when no request of this client is in flight. */
  idle(): Promise<void> {
    return this.#settled.until(() => this.inFlight === 0);
  }

  #receive(chunk: Buffer): void {
    if (this.#isClosed || this.#isEnding) return;
    if (this.#transmission) return this.#transmission.receive(chunk);
    if (this.#isFrozen) {
      this.#unseen = Buffer.concat([this.#unseen ?? Buffer.alloc(0), chunk]);
      return;
    }
    this.#keep(chunk);
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

  #keep(chunk: Buffer): void {
    const isTooMuch = this.#said && this.#said.length + chunk.length > MAX_KEPT_HANDSHAKE_BYTES;
    this.#said = this.#said && !isTooMuch ? Buffer.concat([this.#said, chunk]) : undefined;
  }

  #refuse(why: string): void {
    const { nbdRefused } = this.#host.trace;
    if (nbdRefused.isOn) nbdRefused.say(`why ${why}`);
    this.#options.onRefused?.(why);
  }

  async #secure(): Promise<void> {
    const { secure } = this.#options;
    assert(secure, 'TLS without credentials');
    this.#isSecure = true;
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
    const { nbdNegotiated } = this.#host.trace;
    if (nbdNegotiated.isOn) nbdNegotiated.say(`export '${agreement.export.name}' style ${agreement.style}`);
    this.#said = Buffer.alloc(0);
    this.#options.onAgreed?.(this);
    const stream = new ReplyStream(this.#socket, this.#pool);
    const replies = new ServerReplies(stream, this.#pool, agreement.style);
    this.#transmission = new ServerTransmission(
      {
        clock: this.#host.clock,
        requestWatch: this.#host.requestWatch,
        trace: this.#host.trace.nbdRequest,
        lost: this.#lost,
        mostInFlightBytes: this.#mostInFlightBytes,
        hasMemory: (lengthBytes, holdsSome) =>
          this.#options.hasMemory?.(this, lengthBytes, holdsSome) ?? true,
        isPeerGone: () => this.#socket.isPeerGone(),
        pause: () => this.#pause(),
        resume: () => this.#resume(),
        drop: () => this.close(),
        letGo: () => this.letGo(),
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
      if (this.#socket.isPeerGone()) this.letGo();
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

function describeAgreement({ export: { name }, style, contexts }: Agreement): PassedAgreement {
  const named = [...contexts].map(([id, context]) => [String(id), context.name]);
  return { export: name, style, contexts: Object.fromEntries(named) as PassedAgreement['contexts'] };
}

/** Undefined: there is no such export, or context, any more. */
function restoreAgreement(
  { export: name, style, contexts }: PassedAgreement,
  exports: NbdExportLookup,
): Agreement | undefined {
  const found = exports.find(name);
  if (!found) return undefined;
  const all = new Map(contextsOf(found).map((context) => [context.name, context]));
  const agreed = new Map<number, MetaContext>();
  for (const [id, context] of Object.entries(contexts)) {
    const there = all.get(context);
    if (!there) return undefined;
    agreed.set(Number(id), there);
  }
  return { export: found, style, contexts: agreed };
}
