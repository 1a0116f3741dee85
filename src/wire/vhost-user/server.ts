import { BlockError } from '../../base/error.js';
import type { Host, HostListener, HostSocket, SocketAddress } from '../../host/host.js';
import { VhostConnection } from './connection.js';
import type { PassedFrontEnd } from './passing.js';
import type { BlockExportProperties } from './target.js';

/** Front-ends that wait until the one that is served leaves; as a listen backlog. */
const MAX_WAITING = 16;

export interface VhostServerOptions {
  readonly disk: BlockExportProperties;
  /** A peer broke the protocol, in words. */
  readonly onBroken: (text: string) => void;
}

/** A vhost-user block device behind a unix socket: serves one front-end after the other. */
export class VhostServer {
  readonly #host: Host;
  readonly #options: VhostServerOptions;
  readonly #waiting: HostSocket[] = [];
  /** Those that have left while requests of theirs are in flight, and the one that is served. */
  readonly #connections = new Set<VhostConnection>();
  #current: VhostConnection | undefined;
  #listener: HostListener | undefined;
  #isFrozen = false;
  #isClosed = false;

  private constructor(host: Host, options: VhostServerOptions) {
    this.#host = host;
    this.#options = options;
  }

  /** Errors: those of the host's listen; unsupported where processes cannot share memory. */
  static async listen(host: Host, address: SocketAddress, options: VhostServerOptions): Promise<VhostServer> {
    const server = new VhostServer(host, options);
    if (!host.sharing) throw new BlockError('unsupported', 'vhost-user needs memory that processes share');
    server.#listener = await host.net.listen(address, (socket) => server.#accept(socket), {
      receiveFds: true,
    });
    return server;
  }

  get isConnected(): boolean {
    return this.#current !== undefined;
  }

  get inFlight(): number {
    return [...this.#connections].reduce((sum, { inFlight }) => sum + inFlight, 0);
  }

  /** The disk has another size. */
  configChanged(): void {
    this.#current?.configChanged();
  }

  /** Drops whoever is connected, and stops listening. Resolves when none of their requests is in flight. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const socket of this.#waiting.splice(0)) socket.destroy();
    this.#current?.close();
    await this.#listener?.close();
    await Promise.all([...this.#connections].map((connection) => connection.idle()));
  }

  /** Nothing more of what front-ends and their guests ask is looked at, until thaw(). */
  freeze(): void {
    this.#isFrozen = true;
    for (const connection of this.#connections) connection.freeze();
  }

  thaw(): void {
    this.#isFrozen = false;
    for (const connection of this.#connections) connection.thaw();
  }

  /** All that was asked before freeze() is answered. Looked at again after a while. */
  get isQuiet(): boolean {
    return [...this.#connections].every(({ isQuiet }) => isQuiet);
  }

  /** Front-ends for another process; those that wait for their turn were not heard. */
  passed(): Array<{ frontEnd: PassedFrontEnd | undefined; fd: number }> {
    const served = this.#current?.passed();
    const waiting = this.#waiting.flatMap((socket) => {
      const fd = socket.descriptor?.();
      return fd === undefined ? [] : [{ frontEnd: undefined, fd }];
    });
    return served ? [served, ...waiting] : waiting;
  }

  /** Goes on with a front-end of another process. */
  adopt(socket: HostSocket, frontEnd: PassedFrontEnd | undefined): void {
    if (frontEnd) this.#serve(socket, frontEnd);
    else this.#accept(socket);
  }

  #accept(socket: HostSocket): void {
    if (this.#isClosed) return socket.destroy();
    // One that comes back need not wait until it is told that it had left.
    if (this.#current?.isPeerGone() === true) this.#current.close();
    if (!this.#current) return this.#serve(socket);
    if (this.#waiting.length < MAX_WAITING) this.#waiting.push(socket);
    else socket.destroy();
  }

  #serve(socket: HostSocket, passed?: PassedFrontEnd): void {
    const { sharing } = this.#host;
    if (!sharing) return socket.destroy();
    const connection: VhostConnection = new VhostConnection({
      ...{ host: this.#host, sharing, socket },
      ...this.#options,
      onClose: () => this.#left(connection),
    });
    this.#current = connection;
    this.#connections.add(connection);
    if (this.#isFrozen) connection.freeze();
    if (passed) connection.goOnWith(passed);
  }

  #left(connection: VhostConnection): void {
    if (this.#current === connection) this.#current = undefined;
    void connection.idle().then(() => this.#connections.delete(connection));
    const next = this.#isClosed ? undefined : this.#waiting.shift();
    if (next) this.#serve(next);
  }
}
