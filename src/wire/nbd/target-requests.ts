import { CancelSignal } from '../../base/cancel-signal.js';
import {
  type FileTaker,
  type IoRequest,
  RequestPool,
  type RequestKind,
  type RequestWatch,
} from '../../base/io-request.js';
import type { NbdTarget } from './target.js';

/** What one client asks of the disk. When the client is gone, what waits for its turn does not begin. */
export class TargetRequests {
  readonly #target: NbdTarget;
  readonly #requests: RequestPool;
  readonly #signal = new CancelSignal();

  constructor(target: NbdTarget, watch: RequestWatch | undefined) {
    this.#target = target;
    this.#requests = new RequestPool(watch);
  }

  /** A read or write at once, of memory that begins at `start`; false: run() is to be used. */
  tryRun(
    kind: 'read' | 'write',
    offset: number,
    lengthBytes: number,
    flags: number,
    buffer: Uint8Array,
    start: number,
    taker?: FileTaker,
  ): boolean {
    const request = this.#requests.take().ask(kind, offset, lengthBytes, flags);
    request.setBuffer(buffer, start);
    request.taker = taker;
    try {
      return this.#target.tryRun(request);
    } finally {
      this.#requests.give(request);
    }
  }

  async run(
    kind: RequestKind,
    offset: number,
    lengthBytes: number,
    flags = 0,
    buffer?: Uint8Array,
    start = 0,
  ): Promise<void> {
    const request: IoRequest = this.#requests.take().ask(kind, offset, lengthBytes, flags);
    if (buffer) request.setBuffer(buffer, start);
    request.signal = this.#signal;
    try {
      await this.#target.run(request);
    } finally {
      this.#requests.give(request);
    }
  }

  /** The client is gone. */
  cancel(): void {
    this.#signal.cancel();
  }
}
