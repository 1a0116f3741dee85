import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { TestContext } from 'node:test';
import { untilTimed } from './processor-time.js';

/** The built program, as users start it. `npm run build` makes it. */
/** A machine with nothing that was not asked for. */
export const BARE_MACHINE = '-display none -no-user-config -M q35 -nodefaults -m 64 -monitor none'.split(' ');
export const PROGRAM = resolve(import.meta.dirname, '../../dist/livedisk.cjs');

type Json = { [key: string]: unknown };
interface Message extends Json {
  event?: string;
  data?: Json;
  return?: unknown;
  error?: { class: string; desc: string };
}

/** What a command is answered whose connection is gone. */
const CLOSED: Message = { error: { class: 'Closed', desc: 'the connection closed' } };

/** A storage daemon of QEMU's that has not answered for so long hangs; so many are started at most. */
const HANGS_AFTER_MS = 10_000;
const MOST_TRIES = 3;

/** Skips the test when a program is missing, saying which. */
export function skipWithout(context: TestContext, ...programs: string[]): boolean {
  const missing = programs.filter((program) => spawnSync(program, ['--version']).error !== undefined);
  if (!existsSync(PROGRAM)) missing.push('dist/livedisk.cjs (npm run build)');
  if (missing.length > 0) context.skip(`not installed: ${missing.join(', ')}`);
  return missing.length > 0;
}

/** A folder that goes when the test ends. */
export function scratch(context: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-peers-'));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export function run(cwd: string, program: string, ...args: string[]): string {
  const result = untilTimed(() => spawnSync(program, args, { cwd, encoding: 'utf8' }));
  if (result.status !== 0)
    throw new Error(`${program} ${args.join(' ')}: ${result.status}\n${result.stdout}${result.stderr}`);
  return result.stdout;
}

/**
 * A program with a QMP socket (livedisk or a real QEMU), spoken to by a client of our own that shares no code with
 * src/wire/qmp.
 */
export class Daemon {
  readonly process: ChildProcess;
  readonly #cwd: string;
  readonly events: Message[] = [];
  #output = '';
  #socket: Socket | undefined;
  #text = '';
  readonly #replies: Array<(message: Message) => void> = [];
  #wake: Array<() => void> = [];

  private constructor(cwd: string, argv: string[]) {
    this.#cwd = cwd;
    this.process = spawn(argv[0] ?? '', argv.slice(1), { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
    this.process.stdout?.on('data', (chunk: Buffer) => (this.#output += chunk.toString()));
    this.process.stderr?.on('data', (chunk: Buffer) => (this.#output += chunk.toString()));
  }

  /** Starts `argv` in `cwd` and connects to its QMP socket there. */
  static async start(
    context: TestContext,
    cwd: string,
    argv: string[],
    socket = 'qmp.sock',
    enable: readonly string[] = [],
  ): Promise<Daemon> {
    for (let tries = 1; ; tries++) {
      const daemon = new Daemon(cwd, argv);
      context.after(() => daemon.kill());
      await daemon.#connect(join(cwd, socket));
      const begun = daemon.execute('qmp_capabilities', enable.length > 0 ? { enable } : {});
      if (await daemon.#isAnswered(begun, tries)) return daemon;
      await daemon.kill();
    }
  }

  /**
   * Whether a first command is answered. QEMU's storage daemon may hang when somebody connects while it starts: its
   * monitor's thread waits in accept() for one whom the main thread has accepted. Then it is started anew.
   */
  async #isAnswered(answer: Promise<unknown>, tries: number): Promise<boolean> {
    if (!/(^|\/)qemu-storage-daemon$/.test(this.process.spawnfile) || tries === MOST_TRIES)
      return answer.then(() => true);
    answer.catch(() => undefined);
    const late = new Promise<false>((resolve) => setTimeout(resolve, HANGS_AFTER_MS, false).unref());
    return Promise.race([answer.then(() => true), late]);
  }

  /** `livedisk run` with a QMP socket qmp.sock. */
  static livedisk(context: TestContext, cwd: string, ...args: string[]): Promise<Daemon> {
    const qmp = ['-qmp', 'unix:qmp.sock,server=on,wait=off'];
    return Daemon.start(context, cwd, [process.execPath, PROGRAM, 'run', ...args, ...qmp]);
  }

  get output(): string {
    return this.#output;
  }

  /** The command's return value. Throws its error's description. */
  async execute(execute: string, args: Json = {}): Promise<unknown> {
    const reply = await this.raw(execute, args);
    if (reply.error) throw new Error(`${execute}: ${reply.error.desc}`);
    return reply.return;
  }

  raw(execute: string, args: Json = {}): Promise<Message> {
    if (this.#socket?.closed === true) return Promise.resolve(CLOSED);
    return new Promise((resolve) => {
      this.#replies.push(resolve);
      this.#socket?.write(JSON.stringify({ execute, arguments: args }) + '\n');
    });
  }

  /** The next event of that name (and with that data) that was not taken yet. */
  async event(name: string, match: Json = {}, timeoutMs = 60_000): Promise<Json> {
    const end = Date.now() + timeoutMs;
    for (;;) {
      const index = this.events.findIndex(
        ({ event, data }) =>
          event === name && Object.entries(match).every(([key, value]) => data?.[key] === value),
      );
      if (index >= 0) return this.events.splice(index, 1)[0]?.data ?? {};
      if (Date.now() > end) {
        throw new Error(`no ${name}; had ${this.events.map(({ event }) => event).join()}\n${this.#output}`);
      }
      await Promise.race([
        new Promise<void>((resolve) => this.#wake.push(resolve)),
        new Promise((resolve) => setTimeout(resolve, 500).unref()),
      ]);
    }
  }

  /** Leaves the monitor to others. */
  hangUp(): Promise<void> {
    return new Promise((resolve) => {
      this.#socket?.once('close', () => resolve());
      this.#socket?.destroy();
    });
  }

  async quit(): Promise<number | null> {
    const ended = this.#ended();
    await this.raw('quit');
    return ended;
  }

  async kill(): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const ended = this.#ended();
    this.process.kill('SIGKILL');
    await ended;
  }

  #ended(): Promise<number | null> {
    return new Promise((resolve) => this.process.once('exit', (code) => resolve(code)));
  }

  async #connect(path: string): Promise<void> {
    const end = Date.now() + 20_000;
    for (;;) {
      if (this.process.exitCode !== null)
        throw new Error(`ended with ${this.process.exitCode}: ${this.#output}`);
      try {
        this.#socket = await connectUnix(path);
        break;
      } catch (error) {
        if (Date.now() > end) throw new Error(`no QMP socket at ${path}: ${this.#output}`, { cause: error });
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
    this.#socket.on('data', (chunk: Buffer) => this.#receive(chunk.toString()));
    this.#socket.on('error', () => undefined);
    this.#socket.on('close', () => {
      for (const reply of this.#replies.splice(0)) reply(CLOSED);
    });
  }

  #receive(text: string): void {
    this.#text += text;
    for (let end = this.#text.indexOf('\n'); end >= 0; end = this.#text.indexOf('\n')) {
      const line = this.#text.slice(0, end);
      this.#text = this.#text.slice(end + 1);
      if (line.trim() === '') continue;
      const message = JSON.parse(line) as Message;
      if ('QMP' in message) continue;
      if (message.event !== undefined) this.events.push(message);
      else this.#replies.shift()?.(message);
    }
    for (const wake of this.#wake.splice(0)) wake();
  }

  /** Relative paths of QMP commands are the daemon's; this makes one the test's. */
  path(name: string): string {
    return join(this.#cwd, name);
  }
}

export function connectUnix(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path);
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
    socket.once('error', reject);
  });
}
