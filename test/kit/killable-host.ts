import { errnoError } from '../../src/base/error.js';
import type { Host, HostFile, HostListener, HostSocket, HostTimer } from '../../src/host/host.js';
import { WrappedFiles } from './wrapped-files.js';

/**
 * The part of a machine that one process has. When it is killed its files close (and their locks go), its connections
 * break, and nothing that its code waits for or asks comes any more. What it has written stays, as with a real process.
 */
export class KillableHost {
  readonly host: Host;
  readonly #files = new Set<HostFile>();
  readonly #sockets = new Set<HostSocket>();
  readonly #listeners = new Set<HostListener>();
  readonly #timers = new Set<HostTimer>();
  #isDead = false;

  constructor(host: Host) {
    const { files, net, clock } = host;
    const wrapped = new WrappedFiles(files);
    this.host = {
      ...host,
      files: {
        descriptorSets: files.descriptorSets,
        open: async (path, options) => {
          this.#assertAlive();
          const file = await wrapped.open(path, options);
          if (this.#isDead) await file.close();
          this.#assertAlive();
          this.#files.add(file);
          return wrapped.wrap(file, (method) => {
            if (this.#isDead) return { answer: deadAnswer(method) };
            if (method === 'close') this.#files.delete(file);
            return undefined;
          });
        },
        stat: (path) => this.#alive(() => files.stat(path)),
        unlink: (path) => this.#alive(() => files.unlink(path)),
        room: (path) => this.#alive(() => files.room(path)),
        link: (path, newPath) => this.#alive(() => files.link(path, newPath)),
        syncDirectory: (path) => this.#alive(() => files.syncDirectory(path)),
        list: (path) => this.#alive(() => files.list(path)),
        mkdir: (path, options) => this.#alive(() => files.mkdir(path, options)),
        rename: (from, to) => this.#alive(() => files.rename(from, to)),
        buffer: (lengthBytes) => files.buffer(lengthBytes),
      },
      net: {
        secure: (socket, end) => net.secure(socket, end),
        connect: async (address, options) => {
          this.#assertAlive();
          const socket = await net.connect(address, options);
          this.#sockets.add(socket);
          if (this.#isDead) socket.destroy();
          this.#assertAlive();
          return socket;
        },
        listen: async (address, onConnection, options) => {
          this.#assertAlive();
          const take = (socket: HostSocket): void => {
            this.#sockets.add(socket);
            if (this.#isDead) socket.destroy();
            else onConnection(socket);
          };
          const listener = await net.listen(address, take, options);
          this.#listeners.add(listener);
          return listener;
        },
      },
      clock: {
        nowMs: () => clock.nowMs(),
        wallClock: () => clock.wallClock(),
        setTimer: (delayMs, callback) => {
          const timer = clock.setTimer(delayMs, () => {
            if (!this.#isDead) callback();
          });
          this.#timers.add(timer);
          return timer;
        },
        sleep: (delayMs) => this.#unlessDead(clock.sleep(delayMs)),
        macrotask: () => this.#unlessDead(clock.macrotask()),
        defer: (callback) =>
          clock.defer(() => {
            if (!this.#isDead) callback();
          }),
      },
    };
  }

  get isDead(): boolean {
    return this.#isDead;
  }

  async kill(): Promise<void> {
    if (this.#isDead) return;
    this.#isDead = true;
    for (const timer of this.#timers) timer.cancel();
    for (const socket of this.#sockets) socket.destroy();
    await Promise.all([...this.#listeners].map((listener) => listener.close()));
    await Promise.all([...this.#files].map((file) => file.close().catch(() => undefined)));
  }

  #assertAlive(): void {
    if (this.#isDead) throw dead();
  }

  async #alive<T>(body: () => Promise<T>): Promise<T> {
    this.#assertAlive();
    return body();
  }

  #unlessDead(wait: Promise<void>): Promise<void> {
    return new Promise((resolve) => {
      void wait.then(() => {
        if (!this.#isDead) resolve();
      });
    });
  }
}

function dead(): Error {
  return errnoError('EBADF', 'The process was killed');
}

/** What code of a dead process may still call at once must answer something. */
function deadAnswer(method: string): unknown {
  if (method === 'tryCopyFrom') return -1;
  if (/^(try|lockByte|isByte)/.test(method)) return false;
  if (/^(unlockByte|abandon|startWriteback)$/.test(method)) return undefined;
  if (/Bytes$/.test(method)) return 0;
  return method === 'close' ? Promise.resolve() : Promise.reject(dead());
}
