import { deferred } from '../base/async.js';
import { BlockError } from '../base/error.js';
import type {
  Host,
  HostListener,
  HostSocket,
  HostTerminal,
  HostTimer,
  SocketAddress,
  TlsEnd,
} from '../host/host.js';
import type { PassedSession } from '../wire/qmp/session.js';
import { CharacterDevice, type Frontend } from './character-device.js';

export interface ServerDeviceProperties {
  address: SocketAddress;
  /** How many clients are served at once; the others wait (any number). */
  maxClients?: number;
  tls?: (() => TlsEnd) | undefined;
}

/** Clients connect. Several may be served at once, where QEMU has one after the other. */
export class SocketServerDevice extends CharacterDevice {
  readonly #host: Host;
  readonly #maxClients: number;
  readonly #tls: (() => TlsEnd) | undefined;
  readonly #waiting: HostSocket[] = [];
  readonly #connected = deferred();
  #listener: HostListener | undefined;
  readonly #clients = new Set<HostSocket>();

  constructor(
    id: string,
    host: Host,
    { maxClients = Infinity, tls }: Omit<ServerDeviceProperties, 'address'>,
  ) {
    super(id);
    this.#host = host;
    this.#maxClients = maxClients;
    this.#tls = tls;
  }

  /** Errors: those of listening. */
  static async listen(
    id: string,
    host: Host,
    properties: ServerDeviceProperties,
  ): Promise<SocketServerDevice> {
    const device = new SocketServerDevice(id, host, properties);
    const accept = (connection: HostSocket): void => void device.#accept(connection);
    device.#listener = await host.net.listen(properties.address, accept, { receiveFds: true });
    return device;
  }

  override get mustCloseFirst(): boolean {
    return true;
  }

  get filename(): string {
    const address = this.#listener?.address;
    const text = address ? addressName(address) : '';
    return `${this.#clients.size === 0 ? 'disconnected:' : ''}${text},server=on`;
  }

  /** Resolves when somebody has connected. */
  get connected(): Promise<void> {
    return this.#connected.promise;
  }

  async #accept(socket: HostSocket): Promise<void> {
    let connection = socket;
    if (this.#tls) {
      try {
        connection = await this.#host.net.secure(socket, this.#tls());
      } catch (error) {
        // Who does not come in is cut off already.
        if (error instanceof BlockError) return;
        throw error;
      }
    }
    if (this.#clients.size >= this.#maxClients) this.#waiting.push(connection);
    else this.#begin(connection);
  }

  /** Those that are served, and those that wait. */
  get connections(): { served: readonly HostSocket[]; waiting: readonly HostSocket[] } {
    return { served: [...this.#clients], waiting: [...this.#waiting] };
  }

  /** A client that another process has served so far. */
  adopt(connection: HostSocket, passed: PassedSession | undefined): void {
    if (passed) this.#begin(connection, passed);
    else void this.#accept(connection);
  }

  #begin(connection: HostSocket, passed?: PassedSession): void {
    this.#clients.add(connection);
    this.#connected.resolve();
    const client = watched(connection, () => {
      this.#clients.delete(connection);
      const next = this.#waiting.shift();
      if (next) this.#begin(next);
    });
    this.deliver(client, passed);
  }

  override async close(): Promise<void> {
    await this.#listener?.close();
    for (const connection of this.#waiting.splice(0)) connection.destroy();
    await super.close();
  }
}

export interface ClientDeviceProperties {
  address: SocketAddress;
  /** After so long a connection that has ended or failed is tried anew; undefined: never. */
  reconnectMs?: number | undefined;
  tls?: (() => TlsEnd) | undefined;
  onFailure: (error: BlockError) => void;
}

/** It connects to somebody. */
export class SocketClientDevice extends CharacterDevice {
  readonly #host: Host;
  readonly #properties: ClientDeviceProperties;
  #connection: HostSocket | undefined;
  #timer: HostTimer | undefined;
  #isClosed = false;
  #hasFailed = false;

  constructor(id: string, host: Host, properties: ClientDeviceProperties) {
    super(id);
    this.#host = host;
    this.#properties = properties;
  }

  /** Errors: those of connecting, where it is tried only once. */
  static async connect(
    id: string,
    host: Host,
    properties: ClientDeviceProperties,
  ): Promise<SocketClientDevice> {
    const device = new SocketClientDevice(id, host, properties);
    if (properties.reconnectMs === undefined) await device.#connect();
    else void device.#try();
    return device;
  }

  get filename(): string {
    return `${this.#connection ? '' : 'disconnected:'}${addressName(this.#properties.address)}`;
  }

  async #connect(): Promise<void> {
    const { address, tls } = this.#properties;
    const { net } = this.#host;
    const socket = await net.connect(address, { receiveFds: true });
    const connection = tls ? await net.secure(socket, tls()) : socket;
    if (this.#isClosed) return connection.destroy();
    this.#connection = connection;
    this.#hasFailed = false;
    this.deliver(
      watched(connection, () => {
        this.#connection = undefined;
        this.#later();
      }),
    );
  }

  /** The first failure in a row is told. */
  async #try(): Promise<void> {
    try {
      await this.#connect();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      if (!this.#hasFailed) this.#properties.onFailure(error);
      this.#hasFailed = true;
      this.#later();
    }
  }

  #later(): void {
    const { reconnectMs } = this.#properties;
    if (reconnectMs === undefined || this.#isClosed) return;
    this.#timer = this.#host.clock.setTimer(reconnectMs, () => void this.#try());
  }

  override async close(): Promise<void> {
    this.#isClosed = true;
    this.#timer?.cancel();
    await super.close();
  }
}

/** A pseudo terminal: who opens it is a client. */
export class TerminalDevice extends CharacterDevice {
  readonly #terminal: HostTerminal;

  /** Errors: unsupported in a machine without any; those of the system. */
  constructor(id: string, { terminals }: Host) {
    super(id);
    if (!terminals) throw new BlockError('unsupported', 'Failed to create PTY: Operation not supported');
    this.#terminal = terminals.open((connection) => this.deliver(connection));
  }

  get path(): string {
    return this.#terminal.path;
  }

  get filename(): string {
    return `pty:${this.path}`;
  }

  override async close(): Promise<void> {
    await this.#terminal.close();
    await super.close();
  }
}

/** Two named pipes, NAME.in and NAME.out, or one of that name. */
export class PipeDevice extends CharacterDevice {
  readonly filename = 'pipe';
  readonly #connection: HostSocket;

  /** Errors: unsupported in a machine without any; those of opening. */
  constructor(id: string, { pipes }: Host, path: string) {
    super(id);
    if (!pipes) throw new BlockError('unsupported', `Could not open '${path}': Operation not supported`);
    this.#connection = pipes.openNamed(path);
    this.deliver(this.#connection);
  }

  override async close(): Promise<void> {
    this.#connection.destroy();
    await super.close();
  }
}

/** Standard input and output. */
export class StandardDevice extends CharacterDevice {
  readonly filename = 'stdio';
  readonly #open: (isEditor: boolean) => HostSocket;

  constructor(id: string, open: (isEditor: boolean) => HostSocket) {
    super(id);
    this.#open = open;
  }

  override attach(frontend: Frontend): void {
    super.attach(frontend);
    this.deliver(this.#open(frontend.isEditor ?? false));
  }
}

/** The same connection; `onClose` is told of its end before whoever has started it. */
function watched(connection: HostSocket, onClose: () => void): HostSocket {
  const start = connection.start.bind(connection);
  connection.start = (handler) =>
    start({
      ...handler,
      onData: (chunk) => handler.onData(chunk),
      onClose: (error) => {
        onClose();
        handler.onClose(error);
      },
      onDrain: () => handler.onDrain?.(),
    });
  return connection;
}

/** As QEMU writes it. */
function addressName(address: SocketAddress): string {
  switch (address.type) {
    case 'unix':
      return address.path.startsWith('\0')
        ? `unix:${address.path.slice(1)},abstract=on,tight=on`
        : `unix:${address.path}`;
    case 'inet':
      return `tcp:${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`;
    case 'fd':
      return `fd:${address.fd}`;
  }
}
