import fs from 'node:fs';
import type tty from 'node:tty';
import { errnoError } from '../base/error.js';
import type { HostClock, HostSocket, HostTerminal, HostTimer } from './host.js';
import { RealSocket } from './real-socket.js';
import type { Syscalls } from './syscalls.js';

/** How soon it is seen that somebody has opened the terminal. */
const LOOK_EVERY_MS = 100;

/** A pseudo terminal (pty(7)). Who opens its name is a connection; the kernel tells of no opening, so we look. */
export class RealTerminal implements HostTerminal {
  readonly path: string;
  readonly #system: Syscalls;
  readonly #clock: HostClock;
  readonly #fd: number;
  readonly #onConnection: (socket: HostSocket) => void;
  #timer: HostTimer | undefined;
  #socket: tty.ReadStream | undefined;
  #isClosed = false;

  /** Errors: kind by errno. */
  constructor(system: Syscalls, clock: HostClock, onConnection: (socket: HostSocket) => void) {
    this.#system = system;
    this.#clock = clock;
    this.#onConnection = onConnection;
    const { fd, path } = system.terminals.openTerminal();
    this.#fd = fd;
    this.path = path;
    this.#look();
  }

  #look(): void {
    if (this.#isClosed) return;
    if (this.#system.terminals.isTerminalOpen(this.#fd)) return this.#connect();
    this.#timer = this.#clock.setTimer(LOOK_EVERY_MS, () => this.#look());
  }

  #connect(): void {
    const { value: copy } = this.#system.sockets.duplicate(this.#fd);
    if (copy < 0) throw errnoError('EMFILE');
    const socket = new (process.getBuiltinModule('node:tty').ReadStream)(copy);
    this.#socket = socket;
    const connection = new RealSocket(this.#system);
    socket.on('data', (chunk: Buffer) => connection.deliver(chunk));
    socket.pause();
    connection.attach(socket);
    // Who closes the terminal is an input error of ours, and no failure.
    socket.once('close', () => this.#look());
    this.#onConnection(connection);
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#timer?.cancel();
    this.#socket?.destroy();
    fs.closeSync(this.#fd);
  }
}
