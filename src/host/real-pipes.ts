import type { ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { BlockError, toBlockError } from '../base/error.js';
import type { HostPipe, HostPipes, HostProgram, ProgramHandler } from './host.js';
import { RealProgram } from './real-program.js';

/** Pipes of this machine: to and from commands, and descriptors that are there already. */
export class RealPipes implements HostPipes {
  run(argv: readonly string[], direction: 'to' | 'from'): HostPipe {
    const { spawn } = process.getBuiltinModule('node:child_process');
    const [program = '', ...args] = argv;
    const stdio = direction === 'to' ? 'pipe' : 'inherit';
    const child = spawn(program, args, {
      stdio: [stdio, direction === 'from' ? 'pipe' : 'inherit', 'inherit'],
    });
    const stream = direction === 'to' ? child.stdin : child.stdout;
    if (!stream) throw new BlockError('io', `Failed to start '${program}'`);
    return new RealPipe(stream, exitOf(child));
  }

  talk(argv: readonly string[], handler: ProgramHandler): HostProgram {
    return new RealProgram(argv, handler);
  }

  open(fd: number, direction: 'to' | 'from'): HostPipe {
    const stream = direction === 'to' ? fs.createWriteStream('', { fd }) : fs.createReadStream('', { fd });
    return new RealPipe(stream, Promise.resolve(undefined));
  }

  kindOf(fd: number): 'socket' | 'other' | undefined {
    try {
      return fs.fstatSync(fd).isSocket() ? 'socket' : 'other';
    } catch {
      return undefined;
    }
  }
}

/** What went wrong with a command, or undefined; when it has ended. */
function exitOf(child: ChildProcess): Promise<BlockError | undefined> {
  return new Promise((resolve) => {
    child.once('error', (error) => resolve(toBlockError(error)));
    child.once('close', (code, signal) => {
      const how = signal === null ? `status ${code}` : `signal ${signal}`;
      resolve(code === 0 ? undefined : new BlockError('io', `The command has ended with ${how}`));
    });
  });
}

class RealPipe implements HostPipe {
  readonly #stream: Readable | Writable;
  readonly #exit: Promise<BlockError | undefined>;
  #chunks: AsyncIterator<Buffer> | undefined;
  #error: Error | undefined;

  constructor(stream: Readable | Writable, exit: Promise<BlockError | undefined>) {
    this.#stream = stream;
    this.#exit = exit;
    stream.on('error', (error) => (this.#error ??= error));
  }

  async read(): Promise<Buffer | undefined> {
    if (!('read' in this.#stream)) throw new BlockError('invalid', 'A pipe to write to');
    this.#chunks ??= this.#stream[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
    const next = await this.#chunks.next().catch((error: unknown) => {
      throw toBlockError(error);
    });
    return next.done === true ? undefined : next.value;
  }

  async write(bytes: Uint8Array): Promise<void> {
    const stream = this.#stream;
    if (!('write' in stream)) throw new BlockError('invalid', 'A pipe to read from');
    await new Promise<void>((resolve, reject) => {
      if (this.#error) return reject(toBlockError(this.#error));
      stream.write(bytes, (error) => {
        if (error) reject(toBlockError(error));
        else resolve();
      });
    });
  }

  async finish(): Promise<void> {
    const stream = this.#stream;
    if ('write' in stream)
      await new Promise<void>((resolve, reject) => {
        stream.once('error', (error) => reject(toBlockError(error)));
        stream.end(() => resolve());
      });
    const failure = await this.#exit;
    if (failure) throw failure;
  }

  destroy(): void {
    this.#stream.destroy();
  }
}
