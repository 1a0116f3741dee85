import type { ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { BlockError, toBlockError } from '../base/error.js';
import type { HostPipe, HostPipes, HostProgram, HostSocket, ProgramHandler } from './host.js';
import { JoinedPipes } from './joined-pipes.js';
import { RealProgram } from './real-program.js';
import { RealSocket } from './real-socket.js';
import type { Syscalls } from './syscalls.js';

/** Pipes of this machine: to and from commands, and descriptors that are there already. */
export class RealPipes implements HostPipes {
  readonly #system: Syscalls;

  constructor(system: Syscalls) {
    this.#system = system;
  }

  openNamed(path: string): HostSocket {
    const input = openPipe(`${path}.in`);
    const output = input === undefined ? undefined : openPipe(`${path}.out`);
    if (input !== undefined && output !== undefined)
      return new JoinedPipes(this.#socket(input), this.#socket(output, false));
    if (input !== undefined) fs.closeSync(input);
    try {
      return this.#socket(fs.openSync(path, 'r+'));
    } catch (error) {
      throw toBlockError(error, `Could not open '${path}'`);
    }
  }

  #socket(fd: number, readable = true): HostSocket {
    const { Socket } = process.getBuiltinModule('node:net');
    const stream = new Socket({ fd, readable, writable: true, allowHalfOpen: true });
    const result = new RealSocket(this.#system);
    stream.on('data', (chunk: Buffer) => result.deliver(chunk));
    stream.pause();
    result.attach(stream);
    return result;
  }

  run(argv: readonly string[], direction: 'to' | 'from'): HostPipe {
    const { spawn } = process.getBuiltinModule('node:child_process');
    const [program = '', ...args] = argv;
    const stdio = direction === 'to' ? 'pipe' : 'inherit';
    const child = spawn(program, args, {
      stdio: [stdio, direction === 'from' ? 'pipe' : 'inherit', 'inherit'],
    });
    const exit = exitOf(child);
    const stream = direction === 'to' ? child.stdin : child.stdout;
    if (!stream) throw new BlockError('io', `Failed to start '${program}'`);
    return new RealPipe(stream, exit, 'Unable to write to command');
  }

  talk(argv: readonly string[], handler: ProgramHandler): HostProgram {
    return new RealProgram(argv, handler);
  }

  open(fd: number, direction: 'to' | 'from'): HostPipe {
    const stream = direction === 'to' ? fs.createWriteStream('', { fd }) : fs.createReadStream('', { fd });
    return new RealPipe(stream, Promise.resolve(undefined), 'Unable to write to file');
  }

  kindOf(fd: number): 'socket' | 'other' | undefined {
    try {
      return fs.fstatSync(fd).isSocket() ? 'socket' : 'other';
    } catch {
      return undefined;
    }
  }
}

/** Undefined when it cannot be opened. A pipe that is open for both directions waits for nobody and has no end. */
function openPipe(path: string): number | undefined {
  try {
    return fs.openSync(path, 'r+');
  } catch {
    return undefined;
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
  /** What is said where writing fails. */
  readonly #refusal: string;
  #chunks: AsyncIterator<Buffer> | undefined;
  #error: Error | undefined;

  constructor(stream: Readable | Writable, exit: Promise<BlockError | undefined>, refusal: string) {
    this.#stream = stream;
    this.#exit = exit;
    this.#refusal = refusal;
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
      stream.write(bytes, (error) => {
        if (error) reject(toBlockError(this.#error ?? systemError(error), this.#refusal));
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

/** Node closes what goes to a command that has ended, and what is written then fails with an error of its own. */
function systemError(error: Error): Error {
  const isClosed = 'code' in error && error.code === 'ERR_STREAM_DESTROYED';
  return isClosed ? Object.assign(new Error('Broken pipe', { cause: error }), { code: 'EPIPE' }) : error;
}
