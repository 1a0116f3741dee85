import { deferred, type Deferred } from '../../src/base/async.js';
import type { CancelSignal } from '../../src/base/cancel-signal.js';
import { BlockError } from '../../src/base/error.js';
import type { IoRequest } from '../../src/base/io-request.js';
import type { BlockTarget } from '../../src/wire/vhost-user/target.js';

/** A disk in memory; while it holds, requests wait. */
export class MemoryTarget implements BlockTarget {
  readonly content: Buffer;
  writethrough = false;
  flushes = 0;
  /** In the order in which they began. */
  readonly began: string[] = [];
  fails = false;
  /** Of the request that began last. */
  signal: CancelSignal | undefined;
  #held: Deferred<void> | undefined;
  readonly #stopped = deferred();

  constructor(lengthBytes: number) {
    this.content = Buffer.alloc(lengthBytes);
  }

  get lengthBytes(): number {
    return this.content.length;
  }

  hold(): void {
    this.#held ??= deferred();
  }

  release(): void {
    this.#held?.resolve();
    this.#held = undefined;
  }

  /** As a failure does: what waits goes on later only. */
  stopGuest(): void {
    this.#stopped.resolve();
  }

  whenHeld(signal: CancelSignal): Promise<void> {
    return signal.during(this.#stopped.promise);
  }

  tryRun(request: IoRequest): boolean {
    if (this.#held || this.fails) return false;
    this.#do(request);
    return true;
  }

  async run(request: IoRequest): Promise<void> {
    this.signal = request.signal;
    this.began.push(`${request.kind} ${request.offset}`);
    await this.#held?.promise;
    if (this.fails) throw new BlockError('io', 'it fails', { errno: 'EIO' });
    this.#do(request);
  }

  #do(request: IoRequest): void {
    const { kind, offset, lengthBytes } = request;
    const place = this.content.subarray(offset, offset + lengthBytes);
    if (kind === 'read') request.copyFrom(place, 0);
    else if (kind === 'write') request.copyTo(place, 0, lengthBytes);
    else if (kind === 'flush') this.flushes++;
    else place.fill(0);
  }
}
