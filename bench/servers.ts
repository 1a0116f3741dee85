import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Peer } from './peer.js';
import { createRealHost } from '../src/host/real.js';
import { QmpClient } from '../src/wire/qmp/client.js';
import type { JsonObject, JsonValue } from '../src/schema/types.js';

export const PROGRAM = resolve(import.meta.dirname, '../dist/livedisk.cjs');
const WAIT_MS = 15_000;

/** A program that serves until it is stopped. */
export class Server {
  readonly #process: ChildProcess;
  readonly #exited: Promise<void>;
  #output = '';

  constructor(cwd: string, argv: readonly string[]) {
    this.#process = spawn(argv[0] ?? '', argv.slice(1), { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [this.#process.stdout, this.#process.stderr])
      stream?.on('data', (chunk: Buffer) => (this.#output += chunk.toString()));
    this.#exited = new Promise((resolve) => this.#process.once('exit', () => resolve()));
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  async untilThere(path: string, waitMs = WAIT_MS): Promise<void> {
    for (let waited = 0; !existsSync(path); waited += 10) {
      if (this.#process.exitCode !== null || waited > waitMs) throw new Error(`no ${path}: ${this.#output}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  async stop(): Promise<void> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) this.#process.kill('SIGTERM');
    await this.#exited;
  }

  /** Until it has ended by itself. */
  ended(): Promise<void> {
    return this.#exited;
  }
}

export type Side = 'peer' | 'ours';

/** An NBD server of one image on a unix socket, its export named "disk". */
export async function serveNbd(
  peer: Peer,
  side: Side,
  folder: string,
  image: string,
  format: string,
  waitMs?: number,
): Promise<Server> {
  const socket = join(folder, `${side}.sock`);
  const argv =
    side === 'peer'
      ? [
          ...[...peer.argv('qemu-nbd'), '-t', '-e', '8', '-k', socket, '-x', 'disk'],
          ...['-f', format, '--cache=writeback', image],
        ]
      : [
          ...[process.execPath, PROGRAM, 'storage-daemon'],
          ...['--blockdev', `driver=${format},node-name=disk,file.driver=file,file.filename=${image}`],
          ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
          ...['--export', 'type=nbd,id=e,node-name=disk,writable=on'],
        ];
  const server = new Server(folder, argv);
  await server.untilThere(socket, waitMs);
  return server;
}

export function nbdUri(side: Side, folder: string): string {
  return `nbd+unix:///disk?socket=${join(folder, `${side}.sock`)}`;
}

/** Tried until it is taken: a socket's file is there before it listens. */
async function connect(path: string): Promise<QmpClient> {
  for (;;) {
    try {
      return await QmpClient.connect(createRealHost(), { type: 'unix', path });
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

/** qemu-storage-daemon or livedisk's, with a QMP client. */
export class StorageDaemon {
  /** Who that a second client connects to. */
  readonly #sockets: readonly string[];
  readonly #server: Server;
  readonly #qmp: QmpClient;
  readonly #events: Array<{ event: string; data: JsonObject }> = [];
  #wake: () => void = () => undefined;

  private constructor(server: Server, qmp: QmpClient, sockets: readonly string[]) {
    this.#server = server;
    this.#sockets = sockets;
    this.#qmp = qmp;
    qmp.onEvent((event) => {
      this.#events.push(event);
      this.#wake();
    });
  }

  /** It has two monitors. */
  static async start(
    peer: Peer,
    side: Side,
    folder: string,
    args: readonly string[],
  ): Promise<StorageDaemon> {
    const sockets = [join(folder, 'qmp.sock'), join(folder, 'second.sock')];
    const program =
      side === 'peer' ? peer.argv('qemu-storage-daemon') : [process.execPath, PROGRAM, 'storage-daemon'];
    const monitors = sockets.flatMap((socket, i) => [
      ...['--chardev', `socket,id=m${i},path=${socket},server=on,wait=off`],
      ...['--monitor', `chardev=m${i}`],
    ]);
    const server = new Server(folder, [...program, ...args, ...monitors]);
    for (const socket of sockets) await server.untilThere(socket);
    return new StorageDaemon(server, await connect(sockets[0] ?? ''), sockets);
  }

  get pid(): number {
    return this.#server.pid;
  }

  /** A client of the other monitor. */
  secondClient(): Promise<QmpClient> {
    return connect(this.#sockets[1] ?? '');
  }

  execute(command: string, args: JsonObject = {}): Promise<JsonValue> {
    return this.#qmp.execute(command, args);
  }

  /** The event of that name that comes next, or came already. */
  async event(name: string): Promise<JsonObject> {
    for (;;) {
      const index = this.#events.findIndex(({ event }) => event === name);
      if (index >= 0) return this.#events.splice(index, 1)[0]?.data ?? {};
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  async quit(): Promise<void> {
    await this.execute('quit').catch(() => undefined);
    await this.#server.ended();
  }
}
