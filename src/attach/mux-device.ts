import { BlockError } from '../base/error.js';
import type { HostSocket, SocketHandler } from '../host/host.js';
import { CharacterDevice, type Frontend } from './character-device.js';

const ESCAPE = 1;
/** As in QEMU. */
const MOST_FRONTENDS = 4;

export const MUX_HELP = `
\rC-a h    print this help
\rC-a x    exit emulator
\rC-a s    save disk data back to file (if -snapshot)
\rC-a t    toggle console timestamps
\rC-a b    send break (magic sysrq)
\rC-a c    switch between console and monitor
\rC-a C-a  sends C-a
\r`;

/** Several monitors on one device: all of them write to it, and C-a c says which one is typed to. */
export class MuxDevice extends CharacterDevice {
  readonly filename = 'mux';
  readonly #base: CharacterDevice;
  readonly #frontends: Frontend[] = [];
  readonly #connections = new Set<SharedConnection>();

  /** `quit`: what C-a x asks for. Errors: busy when something is on the device already. */
  constructor(id: string, base: CharacterDevice, quit: () => void) {
    super(id);
    this.#base = base;
    base.attach({
      isEditor: true,
      isOpen: () => this.isOpen,
      serve: (connection) => {
        const shared = new SharedConnection(connection, quit, () => this.#connections.delete(shared));
        this.#connections.add(shared);
        for (const frontend of this.#frontends) shared.add(frontend);
      },
    });
  }

  /** It stays once it is there, as in QEMU. */
  override get isBusy(): boolean {
    return true;
  }

  override get isOpen(): boolean {
    return this.#frontends.length > 0;
  }

  /** Errors: busy when there are too many. */
  override attach(frontend: Frontend): void {
    if (this.#frontends.length === MOST_FRONTENDS)
      throw new BlockError('busy', `Device '${this.id}' is in use`);
    this.#frontends.push(frontend);
    for (const shared of this.#connections) shared.add(frontend);
  }

  override async close(): Promise<void> {
    this.#base.detach();
    await super.close();
  }
}

/** What a monitor on a shared connection hears besides what is typed. */
export interface FocusHandler {
  onFocus(): void;
  onFocusLost(): void;
}

/** One connection with several ends. The last one that came is typed to first. */
class SharedConnection {
  readonly connection: HostSocket;
  readonly #quit: () => void;
  readonly #gone: () => void;
  readonly #ends: MuxEnd[] = [];
  #focus = 0;
  #isEscaped = false;

  constructor(connection: HostSocket, quit: () => void, gone: () => void) {
    this.connection = connection;
    this.#quit = quit;
    this.#gone = gone;
  }

  add(frontend: Frontend): void {
    const end = new MuxEnd(this.connection);
    this.#ends.push(end);
    this.#focus = this.#ends.length - 1;
    frontend.serve(end);
    if (this.#ends.length > 1) return;
    this.connection.start({
      onData: (chunk) => this.#typed(chunk),
      onClose: (error) => {
        this.#gone();
        for (const { handler } of this.#ends) handler?.onClose(error);
      },
      onDrain: () => {
        for (const { handler } of this.#ends) handler?.onDrain?.();
      },
    });
  }

  #typed(chunk: Buffer): void {
    let from = 0;
    for (const [at, byte] of chunk.entries()) {
      if (this.#isEscaped) {
        this.#isEscaped = false;
        from = byte === ESCAPE ? at : at + 1;
        if (byte !== ESCAPE) this.#command(String.fromCharCode(byte));
      } else if (byte === ESCAPE) {
        this.#pass(chunk.subarray(from, at));
        this.#isEscaped = true;
        from = at + 1;
      }
    }
    if (!this.#isEscaped) this.#pass(chunk.subarray(from));
  }

  #pass(bytes: Buffer): void {
    if (bytes.length > 0) this.#ends[this.#focus]?.handler?.onData(bytes);
  }

  #command(letter: string): void {
    if (letter === 'c') {
      this.#ends[this.#focus]?.focus?.onFocusLost();
      this.#focus = (this.#focus + 1) % this.#ends.length;
      this.connection.resume();
      this.#ends[this.#focus]?.focus?.onFocus();
    } else if (letter === 'h') this.connection.write(Buffer.from(MUX_HELP));
    else if (letter === 'x') {
      this.connection.write(Buffer.from('QEMU: Terminated\n\r'));
      this.#quit();
    }
  }
}

/** A monitor's end of a shared connection. */
export class MuxEnd implements HostSocket {
  readonly #connection: HostSocket;
  handler: SocketHandler | undefined;
  focus: FocusHandler | undefined;

  constructor(connection: HostSocket) {
    this.#connection = connection;
  }

  start(handler: SocketHandler): void {
    this.handler = handler;
  }

  write(buffer: Uint8Array): 'sent' | 'queued' {
    return this.#connection.write(buffer);
  }

  get queuedBytes(): number {
    return this.#connection.queuedBytes;
  }

  pause(): void {
    this.#connection.pause();
  }

  resume(): void {
    this.#connection.resume();
  }

  end(): void {
    this.#connection.end();
  }

  destroy(): void {
    this.#connection.destroy();
  }

  isPeerGone(): boolean {
    return this.#connection.isPeerGone();
  }

  shutDown(): Promise<void> {
    return this.#connection.shutDown();
  }

  takeFds(): number[] {
    return this.#connection.takeFds?.() ?? [];
  }
}
