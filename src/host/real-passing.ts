import fs from 'node:fs';
import type net from 'node:net';
import type { HostSocket } from './host.js';
import type { HostPassing, PassedFile, PassedListener, PassedMemory } from './passing.js';
import { descriptorOf } from './real-socket.js';

interface Listening {
  readonly names: readonly string[];
  readonly onConnection: (socket: HostSocket) => void;
  readonly receiveFds: boolean;
}

/** See HostPassing. Who listens tells it. */
export class RealPassing implements HostPassing {
  isTaking = false;
  readonly files = new Map<string, PassedFile>();
  readonly memories = new Map<string, PassedMemory>();
  readonly #accepted: (socket: net.Socket, receiveFds: boolean) => HostSocket;
  readonly #listening = new Map<net.Server, Listening>();
  /** Taken over, and not listened on yet; by each of its names. */
  readonly #waiting = new Map<string, number>();
  #postponed: Array<() => void> = [];
  #hasBegun = false;
  #onHeld: ((connection: PassedListener) => void) | undefined;
  #held: Array<{ listening: Listening; socket: net.Socket }> = [];

  /** `accepted` makes what handlers get of a connection. */
  constructor(accepted: (socket: net.Socket, receiveFds: boolean) => HostSocket) {
    this.#accepted = accepted;
  }

  listensOn(server: net.Server, listening: Listening): void {
    this.#listening.set(server, listening);
  }

  forget(server: net.Server): void {
    this.#listening.delete(server);
  }

  listeners(): PassedListener[] {
    return [...this.#listening].flatMap(([server, { names }]) => {
      const fd = descriptorOf(server);
      return fd === undefined ? [] : [{ names, fd }];
    });
  }

  /** True: the connection waits. */
  isHeld(server: net.Server, socket: net.Socket): boolean {
    const listening = this.#listening.get(server);
    if (!this.#onHeld || !listening) return false;
    // Whatever becomes of it meanwhile its taker sees.
    socket.on('error', () => undefined);
    this.#held.push({ listening, socket });
    const fd = descriptorOf(socket);
    if (fd !== undefined) this.#onHeld({ names: listening.names, fd });
    return true;
  }

  hold(onConnection: (connection: PassedListener) => void): void {
    this.#onHeld = onConnection;
  }

  release(): void {
    this.#onHeld = undefined;
    for (const { listening, socket } of this.#held.splice(0)) this.#serve(listening, socket);
  }

  #serve({ onConnection, receiveFds }: Listening, socket: net.Socket): void {
    if (!socket.destroyed) onConnection(this.#accepted(socket, receiveFds));
  }

  addListener({ names, fd }: PassedListener): void {
    for (const name of names) this.#waiting.set(name, fd);
  }

  hasListener(name: string): boolean {
    return this.#waiting.has(name);
  }

  begin(): void {
    this.#hasBegun = true;
    for (const listen of this.#postponed.splice(0)) listen();
  }

  /** Whoever connects before this process may serve is the other one's. */
  whenBegun(listen: () => void): void {
    if (this.#hasBegun) listen();
    else this.#postponed.push(listen);
  }

  takeListener(name: string): number | undefined {
    const fd = this.#waiting.get(name);
    for (const [other, its] of this.#waiting) if (its === fd) this.#waiting.delete(other);
    return fd;
  }

  deliver({ names, fd }: PassedListener): boolean {
    const found = [...this.#listening.values()].find((one) => one.names.some((name) => names.includes(name)));
    if (!found) {
      fs.closeSync(fd);
      return false;
    }
    const { Socket } = process.getBuiltinModule('node:net');
    this.#serve(
      found,
      new Socket({ fd, readable: true, writable: true, pauseOnCreate: true } as net.SocketConstructorOpts),
    );
    return true;
  }
}
