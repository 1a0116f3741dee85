import type { Writable } from 'node:stream';

/** What is written to a stream of Node's, and when all of it is sent: the stream's own 'drain' stays away below its mark. */
export class StreamWriter {
  readonly #stream: Writable;
  readonly #drained: () => void;
  #owesDrain = false;

  /** `drained` is told when nothing is queued any more, after a write() that answered 'queued'. */
  constructor(stream: Writable, drained: () => void) {
    this.#stream = stream;
    this.#drained = drained;
  }

  /** What a dead peer does not get is not an error of the writer. */
  write(buffer: Uint8Array): 'sent' | 'queued' {
    if (this.#stream.destroyed || buffer.length === 0) return 'sent';
    this.#stream.write(buffer, this.#wrote);
    if (this.#stream.writableLength === 0) return 'sent';
    this.#owesDrain = true;
    return 'queued';
  }

  get queuedBytes(): number {
    return this.#stream.destroyed ? 0 : this.#stream.writableLength;
  }

  readonly #wrote = (): void => {
    if (!this.#owesDrain || this.#stream.writableLength > 0 || this.#stream.destroyed) return;
    this.#owesDrain = false;
    this.#drained();
  };
}
