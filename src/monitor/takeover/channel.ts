import { AsyncMutex, Notifier } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import type { HostClock, HostSocket } from '../../host/host.js';
import { isJsonObject, type JsonObject, type JsonValue } from '../../schema/types.js';
import { formatJson, type Writable } from '../../wire/qmp/json-format.js';
import { parseJson } from '../../wire/qmp/json-parser.js';

/** Linux passes at most 253 descriptors with one message. */
const MOST_FDS_AT_ONCE = 200;
/** Length of the text, count of descriptors: 4 bytes each. */
const HEADER_BYTES = 8;
const MAX_MESSAGE_BYTES = 512 * MiB;
const RETRY_MS = 1;

export interface ReceivedMessage {
  readonly value: JsonObject;
  /** Its descriptors, the receiver's from here on. */
  readonly fds: readonly number[];
}

/**
 * Messages of JSON with descriptors between two processes, over a unix socket: a header, to which the first descriptors
 * are attached, a byte for each further batch of them, and the text.
 */
export class TakeoverChannel {
  readonly #socket: HostSocket;
  readonly #clock: HostClock;
  readonly #news = new Notifier();
  /** One message after the other: descriptors do not wait for what is queued before them. */
  readonly #sending = new AsyncMutex();
  #bytes: Buffer[] = [];
  #length = 0;
  readonly #fds: number[] = [];
  #isClosed = false;
  /** Of a message that is on its way: the other end can make nothing of what would follow. */
  #isStuck = false;

  constructor(socket: HostSocket, clock: HostClock) {
    this.#socket = socket;
    this.#clock = clock;
    socket.start({
      onData: (chunk) => {
        this.#bytes.push(Buffer.from(chunk));
        this.#length += chunk.length;
        this.#fds.push(...(socket.takeFds?.() ?? []));
        this.#news.notify();
      },
      onClose: () => {
        this.#isClosed = true;
        this.#news.notify();
      },
      onDrain: () => this.#news.notify(),
    });
  }

  /** The other end is gone; what it sent before may wait. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** The same, and nothing of what it sent waits. */
  get isOver(): boolean {
    return this.#isClosed && this.#length < HEADER_BYTES;
  }

  /** Resolves when the kernel has all of it. Errors: closed; timeout, after which nothing more can be sent. */
  async send(
    value: { [key: string]: Writable },
    fds: readonly number[] = [],
    mostMs?: number,
  ): Promise<void> {
    const late = `The other process did not take a message within ${mostMs} ms`;
    const sent = this.#sending.run(() => this.#sendAlone(value, fds));
    if (mostMs === undefined) return sent;
    let isSent = false;
    void sent
      .catch(() => undefined)
      .then(() => {
        isSent = true;
        this.#news.notify();
      });
    try {
      await this.#until(() => isSent, { mostMs, late });
    } catch (error) {
      this.#isStuck = true;
      this.#news.notify();
      throw error;
    }
    return sent;
  }

  async #sendAlone(value: { [key: string]: Writable }, fds: readonly number[]): Promise<void> {
    if (this.#isOut()) throw gone();
    const text = Buffer.from(formatJson(value), 'latin1');
    const header = Buffer.alloc(HEADER_BYTES);
    header.writeUInt32LE(text.length, 0);
    header.writeUInt32LE(fds.length, 4);
    await this.#sendWith(header, fds.slice(0, MOST_FDS_AT_ONCE));
    for (let at = MOST_FDS_AT_ONCE; at < fds.length; at += MOST_FDS_AT_ONCE)
      await this.#sendWith(Buffer.alloc(1), fds.slice(at, at + MOST_FDS_AT_ONCE));
    this.#socket.write(text);
    await this.#news.until(() => this.#isOut() || this.#socket.queuedBytes === 0);
    if (this.#isOut()) throw gone();
  }

  #isOut(): boolean {
    return this.#isClosed || this.#isStuck;
  }

  async #sendWith(bytes: Buffer, fds: readonly number[]): Promise<void> {
    if (fds.length === 0) return void this.#socket.write(bytes);
    for (;;) {
      // Then the descriptors may be closed.
      if (this.#isOut() || !this.#socket.sendFds) throw gone();
      if (this.#socket.sendFds(bytes, fds)) return;
      await this.#clock.sleep(RETRY_MS);
    }
  }

  /** The next message; undefined: the other end is gone. Errors: timeout; corrupt. */
  async receive(mostMs?: number): Promise<ReceivedMessage | undefined> {
    const late = `The other process did not answer within ${mostMs} ms`;
    let message: ReceivedMessage | undefined;
    await this.#until(() => (message = this.#take()) !== undefined || this.#isClosed, { mostMs, late });
    return message;
  }

  /** Errors: timeout, in the words of `late`; those of `isDone`. */
  async #until(
    isDone: () => boolean,
    { mostMs, late }: { mostMs: number | undefined; late: string },
  ): Promise<void> {
    let isLate = false;
    const end = (): void => {
      isLate = true;
      this.#news.notify();
    };
    // A process that was stopped itself hears its timer before what came meanwhile.
    const look = (): void => void (timer = this.#clock.setTimer(RETRY_MS, end));
    let timer = mostMs === undefined ? undefined : this.#clock.setTimer(mostMs, look);
    try {
      while (!isDone()) {
        if (isLate) throw new BlockError('timeout', late);
        await this.#news.wait();
      }
    } finally {
      timer?.cancel();
    }
  }

  #take(): ReceivedMessage | undefined {
    if (this.#length < HEADER_BYTES) return undefined;
    const bytes = Buffer.concat(this.#bytes);
    this.#bytes = [bytes];
    const [textBytes, count] = [bytes.readUInt32LE(0), bytes.readUInt32LE(4)];
    if (textBytes > MAX_MESSAGE_BYTES)
      throw new BlockError('corrupt', 'The other process speaks no such protocol');
    const batches = Math.max(0, Math.ceil(count / MOST_FDS_AT_ONCE) - 1);
    const start = HEADER_BYTES + batches;
    const end = start + textBytes;
    if (this.#length < end) return undefined;
    this.#bytes = [bytes.subarray(end)];
    this.#length -= end;
    const value = parseJson(bytes.toString('latin1', start, end));
    if (!isJsonObject(value)) throw new BlockError('corrupt', 'The other process speaks no such protocol');
    if (this.#fds.length < count)
      throw new BlockError(
        'invalid',
        `Of ${count} descriptors that were passed ${this.#fds.length} have come: more files need to be allowed here (ulimit -n)`,
      );
    return { value, fds: this.#fds.splice(0, count) };
  }

  close(): void {
    this.#socket.destroy();
  }
}

function gone(): BlockError {
  return new BlockError('closed', 'The other process has ended');
}

/** A member of a message that is to be told. */
export function text(value: JsonValue | undefined): string {
  return typeof value === 'string' ? value : formatJson(value);
}
