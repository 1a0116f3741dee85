import { assert } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import type { HostSocket } from '../host/host.js';
import type { ChardevBackend } from '../schema/chardev.js';
import type { PassedSession } from '../wire/qmp/session.js';

/** What is behind a character device: a monitor. */
export interface Frontend {
  /** Each client; where there are none, the device itself, once. */
  serve(connection: HostSocket, passed?: PassedSession): void;
  /** It shows what is typed itself: a terminal is not to. */
  isEditor?: boolean;
  /** Of one that stands for others: whether there are any; absent: yes. */
  isOpen?: () => boolean;
}

/** A device that a monitor may be behind, or nobody yet. */
export abstract class CharacterDevice {
  readonly id: string;
  /** How it was asked for. */
  origin: { backend: ChardevBackend; maxClients: number | undefined } | undefined;
  /** What is written to its clients is kept there, too. */
  log: CharacterLog | undefined;
  #frontend: Frontend | undefined;
  /** They came before anybody was behind the device. */
  readonly #early: HostSocket[] = [];

  constructor(id: string) {
    this.id = id;
  }

  /** As query-chardev tells it. */
  abstract get filename(): string;

  /** Another one that is to take its place cannot be opened before. */
  get mustCloseFirst(): boolean {
    return false;
  }

  get isBusy(): boolean {
    return this.#frontend !== undefined;
  }

  /** As query-chardev tells it. */
  get isOpen(): boolean {
    return this.isBusy && (this.#frontend?.isOpen?.() ?? true);
  }

  /** Errors: busy when another monitor has it. */
  attach(frontend: Frontend): void {
    if (this.#frontend) throw new BlockError('busy', `Device '${this.id}' is in use`);
    this.#frontend = frontend;
    for (const connection of this.#early.splice(0)) frontend.serve(connection);
  }

  /** Whoever is behind it goes. */
  detach(): void {
    this.#frontend = undefined;
  }

  protected deliver(connection: HostSocket, passed?: PassedSession): void {
    if (this.log) keepWhatIsWritten(connection, this.log);
    if (this.#frontend) this.#frontend.serve(connection, passed);
    else this.#early.push(connection);
  }

  async close(): Promise<void> {
    for (const connection of this.#early.splice(0)) connection.destroy();
    await this.log?.close();
  }
}

/** Where bytes are kept. */
export interface CharacterLog {
  write(bytes: Uint8Array): void;
  close(): Promise<void>;
}

function keepWhatIsWritten(connection: HostSocket, log: CharacterLog): void {
  const write = connection.write.bind(connection);
  connection.write = (bytes) => {
    log.write(bytes);
    return write(bytes);
  };
}

/** One that has no clients and reads nothing: what is written goes to write(). */
export abstract class SinkDevice extends CharacterDevice {
  abstract write(bytes: Uint8Array): void;

  override attach(frontend: Frontend): void {
    super.attach(frontend);
    this.deliver(new SinkConnection((bytes) => this.write(bytes)));
  }
}

/** What is written to it is taken at once; nothing comes. */
class SinkConnection implements HostSocket {
  readonly #write: (bytes: Uint8Array) => void;
  readonly queuedBytes = 0;

  constructor(write: (bytes: Uint8Array) => void) {
    this.#write = write;
  }

  start(): void {}

  write(buffer: Uint8Array): 'sent' {
    this.#write(buffer);
    return 'sent';
  }

  pause(): void {}
  resume(): void {}
  end(): void {}
  destroy(): void {}

  isPeerGone(): boolean {
    return false;
  }

  async shutDown(): Promise<void> {}
}

export class NullDevice extends SinkDevice {
  readonly filename = 'null';

  write(): void {}
}

const DEFAULT_BYTES = 65536;

/** Keeps the last bytes that were written, until they are read. */
export class RingBuffer extends SinkDevice {
  readonly filename: string;
  readonly #buffer: Buffer;
  #readAt = 0;
  #count = 0;

  /** Errors: invalid. */
  constructor(id: string, filename: 'ringbuf' | 'memory', sizeBytes = DEFAULT_BYTES) {
    super(id);
    const isPowerOfTwo = sizeBytes > 0 && Number.isInteger(Math.log2(sizeBytes));
    if (!isPowerOfTwo) throw new BlockError('invalid', 'size of ringbuf chardev must be power of two');
    this.filename = filename;
    this.#buffer = Buffer.alloc(sizeBytes);
  }

  write(bytes: Uint8Array): void {
    const { length } = this.#buffer;
    for (const byte of bytes.subarray(-length)) {
      this.#buffer[(this.#readAt + this.#count) % length] = byte;
      if (this.#count < length) this.#count++;
      else this.#readAt = (this.#readAt + 1) % length;
    }
  }

  /** All that read() would take, without taking it. */
  get content(): Buffer {
    const out = Buffer.alloc(this.#count);
    for (let i = 0; i < out.length; i++) out[i] = this.#buffer[(this.#readAt + i) % this.#buffer.length] ?? 0;
    return out;
  }

  /** Takes up to so many bytes out, the oldest first. */
  read(mostBytes: number): Buffer {
    const out = Buffer.alloc(Math.min(mostBytes, this.#count));
    for (let i = 0; i < out.length; i++) out[i] = this.#buffer[(this.#readAt + i) % this.#buffer.length] ?? 0;
    this.#readAt = (this.#readAt + out.length) % this.#buffer.length;
    this.#count -= out.length;
    assert(this.#count >= 0, 'a ring buffer has no less than nothing');
    return out;
  }
}
