/** Gathers a message of known length from chunks that split it anywhere. */
export class ByteCollector {
  #buffer = Buffer.alloc(0);
  #need = 0;
  #got = 0;

  /** Begins a message of `lengthBytes`. */
  expect(lengthBytes: number): void {
    if (this.#buffer.length < lengthBytes) this.#buffer = Buffer.allocUnsafe(Math.max(lengthBytes, 64));
    this.#need = lengthBytes;
    this.#got = 0;
  }

  get gotBytes(): number {
    return this.#got;
  }

  get isComplete(): boolean {
    return this.#got === this.#need;
  }

  get isEmpty(): boolean {
    return this.#got === 0;
  }

  /** What it has so far; valid until take(). */
  get part(): Buffer {
    return this.#buffer.subarray(0, this.#got);
  }

  /** Takes what it needs from chunk at `at`; answers how many bytes. */
  take(chunk: Buffer, at: number): number {
    const bytes = Math.min(this.#need - this.#got, chunk.length - at);
    chunk.copy(this.#buffer, this.#got, at, at + bytes);
    this.#got += bytes;
    return bytes;
  }

  /** The complete message; valid until expect(). */
  get bytes(): Buffer {
    return this.#buffer.subarray(0, this.#need);
  }
}
