import type { ChildProcess } from 'node:child_process';
import { BlockError, errnoText, toBlockError } from '../base/error.js';
import type { HostProgram, ProgramHandler } from './host.js';

/** How long the rest of what a program says may take to come, once it has ended. */
const LAST_WORDS_MS = 1000;

/** A program of this machine, in a session of its own. */
export class RealProgram implements HostProgram {
  /** Without streams where there was no descriptor for them. */
  readonly #child: ChildProcess;
  readonly #handler: ProgramHandler;
  #lastWords: NodeJS.Timeout | undefined;
  #hasEnded = false;

  constructor(argv: readonly string[], handler: ProgramHandler) {
    const { spawn } = process.getBuiltinModule('node:child_process');
    const [program = '', ...args] = argv;
    this.#handler = handler;
    this.#child = spawn(program, args, { stdio: 'pipe', detached: true });
    const { stdin, stdout, stderr } = this.#child;
    // Told by its end.
    stdin?.on('error', () => undefined);
    stdout?.on('data', (chunk: Buffer) => handler.onData(chunk));
    stderr?.on('data', (chunk: Buffer) => handler.onErrorText(chunk));
    stdout?.once('end', () => this.#endSoon());
    this.#child.once('exit', () => this.#endSoon());
    this.#child.once('close', () => this.#end(this.#how()));
    this.#child.once('error', (error) => this.#end(notStarted(program, error)));
  }

  write(bytes: Uint8Array): void {
    if (!this.#hasEnded) this.#child.stdin?.write(bytes);
  }

  destroy(): void {
    this.#child.stdin?.end();
    this.#child.kill('SIGTERM');
  }

  /** Whoever has inherited its output may hold that open. */
  #endSoon(): void {
    this.#lastWords ??= setTimeout(() => this.#end(this.#how()), LAST_WORDS_MS);
  }

  #how(): BlockError {
    const { exitCode, signalCode } = this.#child;
    if (signalCode !== null) return new BlockError('closed', `ended by ${signalCode}`);
    return new BlockError(
      'closed',
      exitCode === null ? 'closed its output' : `ended with status ${exitCode}`,
    );
  }

  #end(how: BlockError): void {
    clearTimeout(this.#lastWords);
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    this.#child.stdout?.removeAllListeners('data').resume();
    this.#child.stderr?.removeAllListeners('data').resume();
    this.#handler.onEnd(how);
  }
}

function notStarted(program: string, error: Error): BlockError {
  const { kind, errno } = toBlockError(error);
  const text = `Failed to start '${program}': ${errno === undefined ? error.message : errnoText(errno)}`;
  return new BlockError(kind, text, { cause: error });
}
