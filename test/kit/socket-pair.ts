import type { HostSocket, SocketHandler } from '../../src/host/host.js';

/** One end of a connection in memory. Chunks arrive in later macrotasks, in order, cut as `cut` says. */
export class PairedSocket implements HostSocket {
  #peer!: PairedSocket;
  #handler: SocketHandler | undefined;
  #inbox: Buffer[] = [];
  #paused = false;
  #isEnding = false;
  #isClosed = false;
  #isDestroyed = false;
  #isScheduled = false;
  #owesDrain = false;
  /** Bytes of a chunk that is delivered at once. */
  readonly #cut: (chunk: Buffer) => number;

  private constructor(cut: (chunk: Buffer) => number) {
    this.#cut = cut;
  }

  static pair(cut: (chunk: Buffer) => number = (chunk) => chunk.length): [PairedSocket, PairedSocket] {
    const [a, b] = [new PairedSocket(cut), new PairedSocket(cut)];
    a.#peer = b;
    b.#peer = a;
    return [a, b];
  }

  get isPaused(): boolean {
    return this.#paused;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  start(handler: SocketHandler): void {
    this.#handler = handler;
    this.#schedule();
  }

  write(buffer: Uint8Array): 'sent' | 'queued' {
    if (this.#isEnding || this.#isClosed) return 'sent';
    if (this.#peer.#isDestroyed) {
      // As the kernel's EPIPE: told also to who does not read.
      setImmediate(() => this.#close());
      return 'sent';
    }
    this.#peer.#inbox.push(Buffer.from(buffer));
    this.#peer.#schedule();
    if (!this.#peer.#paused) return 'sent';
    this.#owesDrain = true;
    return 'queued';
  }

  get queuedBytes(): number {
    return this.#peer.#paused ? this.#peer.#inbox.reduce((sum, chunk) => sum + chunk.length, 0) : 0;
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#schedule();
  }

  end(): void {
    this.#isEnding = true;
    this.#peer.#schedule();
    this.#schedule();
  }

  isPeerGone(): boolean {
    return false;
  }

  shutDown(): Promise<void> {
    throw new Error('not by this test');
  }

  destroy(): void {
    this.#isDestroyed = true;
    this.#inbox = [];
    this.end();
  }

  #schedule(): void {
    if (this.#isScheduled || this.#paused || this.#isClosed || !this.#handler) return;
    this.#isScheduled = true;
    setImmediate(() => {
      this.#isScheduled = false;
      this.#deliver();
    });
  }

  #deliver(): void {
    if (this.#paused || this.#isClosed) return;
    const chunk = this.#inbox.shift();
    if (chunk && !this.#isEnding) {
      const bytes = Math.max(1, this.#cut(chunk));
      if (bytes < chunk.length) this.#inbox.unshift(chunk.subarray(bytes));
      this.#handler?.onData(Buffer.from(chunk.subarray(0, bytes)));
      this.#schedule();
      return;
    }
    if (this.#peer.#owesDrain) {
      this.#peer.#owesDrain = false;
      this.#peer.#handler?.onDrain?.();
    }
    if (this.#isEnding || this.#peer.#isEnding || this.#peer.#isClosed) {
      this.#close();
    }
  }

  #close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#handler?.onClose();
    this.#peer.#schedule();
  }
}
