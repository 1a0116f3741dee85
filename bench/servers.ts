import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
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

  async untilThere(path: string): Promise<void> {
    for (let waited = 0; !existsSync(path); waited += 10) {
      if (this.#process.exitCode !== null || waited > WAIT_MS) throw new Error(`no ${path}: ${this.#output}`);
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
export async function serveNbd(side: Side, folder: string, image: string, format: string): Promise<Server> {
  const socket = join(folder, `${side}.sock`);
  const argv =
    side === 'peer'
      ? ['qemu-nbd', '-t', '-e', '8', '-k', socket, '-x', 'disk', '-f', format, '--cache=writeback', image]
      : [
          ...[process.execPath, PROGRAM, 'storage-daemon'],
          ...['--blockdev', `driver=${format},node-name=disk,file.driver=file,file.filename=${image}`],
          ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
          ...['--export', 'type=nbd,id=e,node-name=disk,writable=on'],
        ];
  const server = new Server(folder, argv);
  await server.untilThere(socket);
  return server;
}

export function nbdUri(side: Side, folder: string): string {
  return `nbd+unix:///disk?socket=${join(folder, `${side}.sock`)}`;
}

/** qemu-storage-daemon or livedisk's, with a QMP client. */
export class StorageDaemon {
  readonly #server: Server;
  readonly #qmp: QmpClient;
  readonly #events: Array<{ event: string; data: JsonObject }> = [];
  #wake: () => void = () => undefined;

  private constructor(server: Server, qmp: QmpClient) {
    this.#server = server;
    this.#qmp = qmp;
    qmp.onEvent((event) => {
      this.#events.push(event);
      this.#wake();
    });
  }

  static async start(side: Side, folder: string, args: readonly string[]): Promise<StorageDaemon> {
    const socket = join(folder, 'qmp.sock');
    const program = side === 'peer' ? ['qemu-storage-daemon'] : [process.execPath, PROGRAM, 'storage-daemon'];
    const monitor = ['--chardev', `socket,id=m,path=${socket},server=on,wait=off`, '--monitor', 'chardev=m'];
    const server = new Server(folder, [...program, ...args, ...monitor]);
    await server.untilThere(socket);
    for (;;) {
      try {
        return new StorageDaemon(
          server,
          await QmpClient.connect(createRealHost(), { type: 'unix', path: socket }),
        );
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    }
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
