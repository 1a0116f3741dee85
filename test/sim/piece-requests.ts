import type { IoVector } from '../../src/base/io-vector.js';
import type { BlockBackend } from '../../src/block/backend.js';
import type { IoRequest } from '../../src/block/request.js';
import type { HostClock } from '../../src/host/host.js';
import type { SeededRandom } from '../../src/host/simulated.js';
import { cutMemory, isTidy } from '../kit/memory-pieces.js';
import { SECTOR_BYTES } from './guest-disk.js';

/** What is put into memory that is the guest's again: whoever looks at it now writes what no sector may hold. */
const GARBAGE = 0xee;
/** Longest time until memory changes that is being written. */
const CHANGES_WITHIN_MS = 3;

/** A guest's requests of memory in pieces, which are its own again with the answer, and which it may change before. */
export class PieceRequests {
  readonly #backend: BlockBackend;
  readonly #random: SeededRandom;
  readonly #clock: HostClock;

  constructor(backend: BlockBackend, random: SeededRandom, clock: HostClock) {
    this.#backend = backend;
    this.#random = random;
    this.#clock = clock;
  }

  async read(offset: number, bytes: Buffer): Promise<void> {
    const memory = this.#memory(bytes.length);
    const request = this.#take(memory).ask('read', offset, bytes.length);
    await this.#run(request);
    memory.copyTo(bytes, 0, bytes.length);
    if (!isTidy(memory)) throw new Error('a read wrote beside its memory');
    scribble(memory, bytes.length);
  }

  /** `later`: what some of the sectors of the memory become meanwhile. */
  async write(offset: number, bytes: Buffer, later: Buffer | undefined, flags: number): Promise<void> {
    const memory = this.#memory(bytes.length);
    memory.copyFrom(bytes, 0);
    const request = this.#take(memory).ask('write', offset, bytes.length, flags);
    request.isStable = later === undefined;
    const timer = later && this.#changeSoon(memory, later);
    try {
      await this.#run(request);
    } finally {
      timer?.cancel();
      scribble(memory, bytes.length);
    }
  }

  #memory(lengthBytes: number): IoVector {
    const random = this.#random;
    const cuts = Array.from({ length: random.below(4) }, () => random.below(3) * random.below(5000));
    return cutMemory(lengthBytes, cuts, random.below(2) * random.below(600));
  }

  #take(memory: IoVector): IoRequest {
    const request = this.#backend.requests.take();
    request.setBuffers(memory.buffers, memory.start);
    return request;
  }

  async #run(request: IoRequest): Promise<void> {
    const { requests } = this.#backend;
    try {
      if (!this.#backend.tryRun(request)) await this.#backend.run(request);
    } finally {
      requests.give(request);
    }
  }

  /** Sector by sector, each at a moment of its own. */
  #changeSoon(memory: IoVector, later: Buffer): { cancel(): void } {
    const timers = Array.from({ length: later.length / SECTOR_BYTES }, (_, sector) => {
      const at = sector * SECTOR_BYTES;
      const change = (): void => memory.copyFrom(later.subarray(at, at + SECTOR_BYTES), at);
      return this.#clock.setTimer(this.#random.below(1000 * CHANGES_WITHIN_MS) / 1000, change);
    });
    return { cancel: () => timers.forEach((timer) => timer.cancel()) };
  }
}

function scribble(memory: IoVector, lengthBytes: number): void {
  for (const piece of memory.pieces(0, lengthBytes)) piece.fill(GARBAGE);
}
