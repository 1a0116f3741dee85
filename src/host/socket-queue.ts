import type { Writable } from 'node:stream';
import { assert } from '../base/assert.js';
import { KiB } from '../base/limits.js';
import type { FileSending } from './file-sending.js';
import type { SocketCalls } from './socket-calls.js';
import { StreamWriter } from './stream-writer.js';

/**
 * Node tells when a socket has room again only to who has bytes waiting in its stream: so of a stretch that the kernel does
 * not take, so much goes there.
 */
const WAITING_BYTES = 4 * KiB;

/** What sendfile(2) answers of files that it does not send. */
const NOT_SENT: ReadonlySet<string> = new Set(['EINVAL', 'ENOSYS', 'EOVERFLOW']);

/** A stretch of a file that waits to be sent. */
class Stretch {
  readonly file: FileSending;
  position: number;
  lengthBytes: number;
  readonly #giveBack: () => void;
  readonly #left: () => void;

  /** `left`: told at the end. */
  constructor(
    file: FileSending,
    { position, lengthBytes }: { position: number; lengthBytes: number },
    recall: (stretch: Stretch) => void,
    left: () => void,
  ) {
    this.file = file;
    this.position = position;
    this.lengthBytes = lengthBytes;
    this.#left = left;
    this.#giveBack = file.lend(() => recall(this));
  }

  /** A first part is gone. */
  skip(lengthBytes: number): void {
    this.position += lengthBytes;
    this.lengthBytes -= lengthBytes;
  }

  /** Undefined: it cannot be read any more. */
  copy(lengthBytes: number): Buffer | undefined {
    return this.file.copyNow(this.position, lengthBytes);
  }

  /** Its file is not needed any more. */
  end(): void {
    this.#giveBack();
    this.#left();
  }
}

/** What is written to a socket, in order: bytes, and stretches of files that go from the page cache. */
export class SocketQueue {
  readonly #stream: Writable;
  readonly #writer: StreamWriter;
  readonly #sockets: SocketCalls;
  readonly #descriptor: () => number | undefined;
  readonly #drained: () => void;
  /** What waits behind what the stream has. */
  #items: Array<Uint8Array | Stretch> = [];
  #itemsBytes = 0;
  #owesDrain = false;
  #isPumping = false;
  #onInStream: (() => void) | undefined;

  /** `descriptor`: of the socket, while it has one. `drained` as with StreamWriter. */
  constructor(
    stream: Writable,
    sockets: SocketCalls,
    descriptor: () => number | undefined,
    drained: () => void,
  ) {
    this.#stream = stream;
    this.#sockets = sockets;
    this.#descriptor = descriptor;
    this.#drained = drained;
    this.#writer = new StreamWriter(stream, () => this.#pump());
    stream.on('close', () => this.#drop());
  }

  get queuedBytes(): number {
    return this.#itemsBytes + this.#writer.queuedBytes;
  }

  /** What a dead peer does not get is not an error of the writer. */
  write(buffer: Uint8Array): 'sent' | 'queued' {
    if (this.#items.length > 0) this.#push(buffer, buffer.length);
    else if (this.#writer.write(buffer) === 'sent') return 'sent';
    this.#owesDrain = true;
    return 'queued';
  }

  /** Sends `head`, which is the caller's again at once, and after it a stretch of a file; `left` as with HostSocket. */
  sendFile(
    head: Uint8Array,
    file: FileSending,
    position: number,
    lengthBytes: number,
    left: () => void = () => undefined,
  ): void {
    const fd = this.#descriptor();
    if (fd === undefined) return left();
    const isFirst = this.queuedBytes === 0;
    const sent = isFirst ? Math.max(0, this.#sockets.sendNow(fd, head).value) : 0;
    if (sent < head.length) this.#push(Uint8Array.from(head.subarray(sent)), head.length - sent);
    const stretch = new Stretch(file, { position, lengthBytes }, (recalled) => this.#recall(recalled), left);
    this.#push(stretch, lengthBytes);
    if (isFirst) this.#pump();
    if (this.queuedBytes > 0) this.#owesDrain = true;
  }

  /** Calls back once all is in the stream. */
  whenInStream(tell: () => void): void {
    if (this.#items.length === 0) tell();
    else this.#onInStream = tell;
  }

  #push(item: Uint8Array | Stretch, lengthBytes: number): void {
    this.#items.push(item);
    this.#itemsBytes += lengthBytes;
  }

  /** Sends on until the kernel takes no more. */
  #pump(): void {
    if (this.#isPumping) return;
    this.#isPumping = true;
    while (this.#writer.queuedBytes === 0) {
      const [first] = this.#items;
      if (!first) break;
      if (first instanceof Stretch) this.#sendStretch(first);
      else {
        this.#shift(first.length);
        this.#writer.write(first);
      }
    }
    this.#isPumping = false;
    if (this.#items.length > 0 || this.#stream.destroyed) return;
    this.#onInStream?.();
    this.#onInStream = undefined;
    if (!this.#owesDrain || this.#writer.queuedBytes > 0) return;
    this.#owesDrain = false;
    this.#drained();
  }

  #shift(lengthBytes: number): void {
    this.#items.shift();
    this.#itemsBytes -= lengthBytes;
  }

  /** Sends what the kernel takes, and puts a little of what it does not take into the stream. */
  #sendStretch(stretch: Stretch): void {
    const fd = this.#descriptor();
    if (fd === undefined) return this.#drop();
    const { value, errno } = stretch.file.send(fd, stretch.position, stretch.lengthBytes);
    if (value > 0) this.#sentOf(stretch, value);
    if (value > 0 || stretch.lengthBytes === 0) return;
    // The file has become shorter, or is of a kind that is not sent this way: then all of it is copied.
    const isForGood = value === 0 || NOT_SENT.has(errno);
    const part = stretch.copy(isForGood ? stretch.lengthBytes : Math.min(WAITING_BYTES, stretch.lengthBytes));
    if (!part) return this.#cut();
    // First: who is told that the stretch has left may send on.
    this.#writer.write(part);
    this.#sentOf(stretch, part.length);
  }

  #sentOf(stretch: Stretch, lengthBytes: number): void {
    assert(stretch === this.#items[0], 'a stretch is sent in its turn');
    this.#itemsBytes -= lengthBytes;
    stretch.skip(lengthBytes);
    if (stretch.lengthBytes > 0) return;
    this.#items.shift();
    stretch.end();
  }

  /** Its file closes: what is left of it is copied. */
  #recall(stretch: Stretch): void {
    const at = this.#items.indexOf(stretch);
    assert(at >= 0, 'a stretch that is lent waits');
    const copy = stretch.copy(stretch.lengthBytes);
    if (!copy) return this.#cut();
    this.#items[at] = copy;
    stretch.end();
  }

  /** What has been promised cannot be sent: who waits for it must not take anything else for it. */
  #cut(): void {
    this.#stream.destroy();
    this.#drop();
  }

  /** The connection is gone. */
  #drop(): void {
    const dropped = this.#items;
    this.#items = [];
    this.#itemsBytes = 0;
    for (const item of dropped) if (item instanceof Stretch) item.end();
  }
}
