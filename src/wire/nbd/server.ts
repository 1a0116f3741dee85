import { BlockError } from '../../base/error.js';
import {
  MAX_CLIENT_IN_FLIGHT_BYTES,
  MAX_NBD_CONNECTIONS,
  MAX_NBD_STRING_BYTES,
  MAX_SERVER_BUFFER_BYTES,
  MAX_SERVER_IN_FLIGHT_BYTES,
  NBD_RESERVE_BYTES,
} from '../../base/limits.js';
import type { Host, HostListener, HostSocket, HostTimer, SocketAddress, TlsEnd } from '../../host/host.js';
import { BufferPool } from './buffer-pool.js';
import { LostChanges } from './lost-changes.js';
import { type NbdServerConnection, type PassedClient, serveNbdConnection } from './server-connection.js';
import type { NbdExport, NbdExportLookup } from './target.js';

/** Connections beyond maxConnections that may wait for a place; as a listen backlog. */
const MAX_WAITING = 128;
/** A client that others wait for has this long to send a part of what it announced, or to take one of what it asked for. */
const HOARDING_MS = 10_000;

export interface NbdServerOptions {
  /** Served at once; the next ones wait, unanswered, for a place. 0 or absent: MAX_NBD_CONNECTIONS. */
  maxConnections?: number;
  /** 0: no limit. */
  handshakeTimeoutMs?: number;
  /** Clients must take TLS; asked when one does. */
  tls?: () => TlsEnd;
  /** A client does not come in, in QEMU's words. */
  onRefused?: (why: string) => void;
  /** Shared with the other servers of the same disks. */
  lost?: LostChanges;
  /** A client that had chosen an export has left; so many are connected still. */
  onLeft?: (left: number) => void;
}

/** Exports by name behind one listening socket. */
export class NbdServer implements NbdExportLookup {
  readonly #host: Host;
  readonly #options: NbdServerOptions;
  readonly #exports = new Map<string, NbdExport>();
  readonly #connections = new Set<NbdServerConnection>();
  readonly #waiting: HostSocket[] = [];
  readonly #pool: BufferPool;
  readonly #lost: LostChanges;
  /** Clients whose requests wait for memory. */
  readonly #starved = new Set<NbdServerConnection>();
  #starvedTimer: HostTimer | undefined;
  #listener: HostListener | undefined;
  #isFrozen = false;
  #isClosed = false;

  private constructor(host: Host, options: NbdServerOptions) {
    this.#host = host;
    this.#pool = new BufferPool((lengthBytes) => host.files.buffer(lengthBytes));
    this.#options = options;
    this.#lost = options.lost ?? new LostChanges();
  }

  /** Errors: those of the host's listen. */
  static async listen(
    host: Host,
    address: SocketAddress,
    options: NbdServerOptions = {},
  ): Promise<NbdServer> {
    const server = new NbdServer(host, options);
    server.#listener = await host.net.listen(address, (socket) => server.#accept(socket));
    return server;
  }

  /** What was bound. */
  get address(): SocketAddress {
    if (!this.#listener) throw new BlockError('closed', 'NBD server not running');
    return this.#listener.address;
  }

  /** Clients being served. */
  get connectionCount(): number {
    return this.#connections.size;
  }

  /** Clients of one export. */
  connectionsOf(name: string): number {
    return this.#of(name).length;
  }

  /** Whether an export has a client that stays, or one whose requests are not done. */
  isUsed(name: string): boolean {
    return this.#of(name).some(({ isLeaving, inFlight }) => !isLeaving || inFlight > 0);
  }

  /** Requests of the clients of one export that its target is working on. */
  inFlightOf(name: string): number {
    return this.#of(name).reduce((sum, { inFlight }) => sum + inFlight, 0);
  }

  find(name: string): NbdExport | undefined {
    return this.#exports.get(name);
  }

  list(): Iterable<NbdExport> {
    return this.#exports.values();
  }

  /** Errors: kind exists; kind invalid for a name or description that is too long. */
  addExport(entry: NbdExport): void {
    this.checkNew(entry);
    this.#exports.set(entry.name, entry);
  }

  /** Errors: as addExport's. */
  checkNew({ name, description = '' }: Pick<NbdExport, 'name' | 'description'>): void {
    checkString('export name', name);
    checkString('description', description);
    if (this.#exports.has(name))
      throw new BlockError('exists', `NBD server already has export named '${name}'`);
  }

  /**
   * 'safe' refuses while a client uses it (kind busy); 'hard' disconnects its clients. Resolves when none of their
   * requests is in flight any more. Errors: kind not-found.
   */
  async removeExport(name: string, mode: 'safe' | 'hard'): Promise<void> {
    if (!this.#exports.has(name)) throw new BlockError('not-found', `Export '${name}' is not found`);
    const connections = this.#of(name);
    if (mode === 'safe' && this.isUsed(name)) throw new BlockError('busy', `export '${name}' still in use`);
    this.#exports.delete(name);
    for (const connection of connections) connection.close();
    await Promise.all(connections.map((connection) => connection.idle()));
  }

  /** Drops all connections at once, stops listening and waits until none of their requests is in flight. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#starvedTimer?.cancel();
    for (const socket of this.#waiting.splice(0)) socket.destroy();
    const connections = [...this.#connections];
    for (const connection of connections) connection.close();
    await this.#listener?.close();
    await Promise.all(connections.map((connection) => connection.idle()));
    this.#exports.clear();
  }

  /** Looks at nothing more of what clients send, until thaw(). */
  freeze(): void {
    this.#isFrozen = true;
    for (const connection of this.#connections) connection.freeze();
  }

  thaw(): void {
    this.#isFrozen = false;
    for (const connection of this.#connections) connection.thaw();
  }

  /** All that clients asked before freeze() is answered, and taken by them. Looked at again after a while. */
  get isQuiet(): boolean {
    return [...this.#connections].every(({ isQuiet }) => isQuiet);
  }

  /** Whom a process that takes over goes on with, and how many it does not (TLS). */
  countPassable(): { passable: number; cut: number } {
    const passable = [...this.#connections].filter(({ isPassable }) => isPassable).length;
    return { passable: passable + this.#waiting.length, cut: this.#connections.size - passable };
  }

  /** Clients for another process; those that wait for a place have said nothing. */
  passed(): Array<{ client: PassedClient | undefined; fd: number }> {
    const served = [...this.#connections].flatMap((connection) => connection.passed() ?? []);
    const waiting = this.#waiting.flatMap((socket) => {
      const fd = socket.descriptor?.();
      return fd === undefined ? [] : [{ client: undefined, fd }];
    });
    return [...served, ...waiting];
  }

  /** Goes on with a client of another process. */
  adopt(socket: HostSocket, client: PassedClient | undefined): void {
    if (client) this.#serve(socket, client);
    else this.#accept(socket);
  }

  #of(name: string): NbdServerConnection[] {
    const found = this.#exports.get(name);
    return [...this.#connections].filter((connection) => found && connection.export === found);
  }

  /** What all clients may have in flight is shared by them; each may have one request, however many they are. */
  readonly #shareBytes = (): number =>
    Math.min(MAX_CLIENT_IN_FLIGHT_BYTES, MAX_SERVER_IN_FLIGHT_BYTES / Math.max(1, this.#connections.size));

  #accept(socket: HostSocket): void {
    if (this.#isClosed) return socket.destroy();
    if (this.#connections.size < this.#mostConnections()) return this.#serve(socket);
    if (this.#waiting.length < MAX_WAITING) this.#waiting.push(socket);
    else socket.destroy();
  }

  #mostConnections(): number {
    const { maxConnections = 0 } = this.#options;
    return maxConnections === 0 ? MAX_NBD_CONNECTIONS : maxConnections;
  }

  #serve(socket: HostSocket, passed?: PassedClient): void {
    const { handshakeTimeoutMs, tls, onRefused } = this.#options;
    const connection = serveNbdConnection({
      socket,
      host: this.#host,
      mostInFlightBytes: this.#shareBytes,
      exports: this,
      pool: this.#pool,
      lost: this.#lost,
      hasMemory: this.#hasMemory,
      ...(handshakeTimeoutMs === undefined ? {} : { handshakeTimeoutMs }),
      ...(tls && { secure: (plain: HostSocket) => this.#host.net.secure(plain, tls()) }),
      ...(onRefused && { onRefused }),
      ...(passed && { passed }),
      onAgreed: (agreed) => this.#dropGone(agreed),
      onClose: (closed) => this.#left(closed),
    });
    this.#connections.add(connection);
    if (this.#isFrozen) connection.freeze();
  }

  /** A client that comes back finds nothing of what it sent on connections that it has left. */
  #dropGone(newcomer: NbdServerConnection): void {
    for (const connection of [...this.#connections])
      if (connection !== newcomer && connection.isPeerGone()) connection.letGo();
  }

  readonly #hasMemory = (
    connection: NbdServerConnection,
    lengthBytes: number,
    holdsSome: boolean,
  ): boolean => {
    if (lengthBytes === 0 || this.#pool.takenBytes < MAX_SERVER_BUFFER_BYTES) return true;
    if (!holdsSome && lengthBytes <= NBD_RESERVE_BYTES / Math.max(1, this.#connections.size)) return true;
    this.#starved.add(connection);
    this.#pool.onLess = this.#feed;
    this.#watchHoarders();
    return false;
  };

  readonly #feed = (): void => {
    if (this.#starved.size === 0 || this.#pool.takenBytes >= MAX_SERVER_BUFFER_BYTES) return;
    this.#pool.onLess = undefined;
    const starved = [...this.#starved];
    this.#starved.clear();
    this.#host.clock.defer(() => starved.forEach((connection) => connection.proceed()));
  };

  /** Looks again when the time of the one who has hoarded for longest is over; it may be by now. */
  #watchHoarders(): void {
    if (this.#starvedTimer) return;
    const longestMs = Math.max(0, ...[...this.#connections].map((connection) => connection.hoardingMs()));
    const leftMs = Math.max(0, HOARDING_MS - longestMs);
    this.#starvedTimer = this.#host.clock.setTimer(leftMs, () => {
      this.#starvedTimer = undefined;
      if (this.#starved.size === 0) return;
      for (const connection of [...this.#connections])
        if (connection.hoardingMs() >= HOARDING_MS) connection.close();
      if (this.#starved.size > 0) this.#watchHoarders();
    });
  }

  #left(connection: NbdServerConnection): void {
    this.#connections.delete(connection);
    this.#starved.delete(connection);
    if (this.#isClosed) return;
    const next = this.#waiting.shift();
    if (next) this.#serve(next);
    if (connection.export) this.#options.onLeft?.(this.#connections.size);
  }
}

function checkString(what: string, text: string): void {
  if (Buffer.byteLength(text) > MAX_NBD_STRING_BYTES)
    throw new BlockError('invalid', `${what} '${text}' too long`);
}
