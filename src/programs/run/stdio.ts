import type { HostSocket, SocketHandler } from '../../host/host.js';
import { StreamWriter } from '../../host/stream-writer.js';

const CTRL_C = 3;

/** Standard input and output as a connection. Its end leaves both open: what else the program prints goes there too. */
export class StdioSocket implements HostSocket {
  #handler: SocketHandler | undefined;
  #isEnded = false;
  readonly #writer = new StreamWriter(process.stdout, () => {
    if (!this.#isEnded) this.#handler?.onDrain?.();
  });
  readonly #isEditor: boolean;
  readonly #hasSignals: boolean;

  /** `isEditor`: who reads it shows what is typed, so a terminal does not. `hasSignals`: Ctrl-C ends the program then, too. */
  constructor({ isEditor = false, hasSignals = true } = {}) {
    this.#isEditor = isEditor;
    this.#hasSignals = hasSignals;
  }

  start(handler: SocketHandler): void {
    this.#handler = handler;
    const isTerminal = this.#isEditor && process.stdin.isTTY;
    if (isTerminal) process.stdin.setRawMode(true);
    process.stdin.on('data', (chunk: Buffer) => {
      // The terminal makes no signal of it any more.
      if (isTerminal && this.#hasSignals && chunk.includes(CTRL_C)) process.kill(process.pid, 'SIGINT');
      else if (!this.#isEnded) handler.onData(chunk);
    });
  }

  write(buffer: Uint8Array): 'sent' | 'queued' {
    return this.#isEnded ? 'sent' : this.#writer.write(buffer);
  }

  get queuedBytes(): number {
    return this.#writer.queuedBytes;
  }

  pause(): void {
    process.stdin.pause();
  }

  resume(): void {
    process.stdin.resume();
  }

  end(): void {
    this.#isEnded = true;
  }

  destroy(): void {
    this.#isEnded = true;
  }

  isPeerGone(): boolean {
    return process.stdin.destroyed;
  }

  async shutDown(): Promise<void> {
    this.#isEnded = true;
  }
}
