import type { HostClock } from '../../host/host.js';

/** A peer that keeps others waiting moves one of so many parts of what it keeps, each time that is looked at. */
const PARTS = 16;

/** For how long a peer has kept memory waiting for itself. */
export class KeptMemory {
  readonly #clock: HostClock;
  #sinceMs: number;
  /** What it had moved by then, either way. */
  #sinceBytes = 0;

  constructor(clock: HostClock) {
    this.#clock = clock;
    this.#sinceMs = clock.nowMs();
  }

  /** It has kept none until now, or nothing that was its to move. */
  begin(movedBytes: number): void {
    this.#sinceMs = this.#clock.nowMs();
    this.#sinceBytes = movedBytes;
  }

  /** Without moving what is due of it. */
  waitingMs(keptBytes: number, movedBytes: number): number {
    if (movedBytes - this.#sinceBytes >= keptBytes / PARTS) this.begin(movedBytes);
    return this.#clock.nowMs() - this.#sinceMs;
  }
}
