import { AsyncMutex } from '../../base/async.js';
import { KiB } from '../../base/limits.js';
import type { HostClock } from '../../host/host.js';

/** What a message costs at least: parsing, running and answering it. */
export const MESSAGE_COST = 4 * KiB;

/**
 * Work of all monitors together before guests, timers and other sockets get their turn. More than a message, and a
 * guest that has few requests in flight reads at a fraction of its rate beside somebody who floods a monitor.
 */
const TURN_COST = MESSAGE_COST;

/**
 * Shares the event loop between those who send messages and everybody else. Who enters goes on at once while the
 * turn has room, and after the next round of I/O when it has not, in the order of arrival.
 */
export class Turns {
  readonly #clock: HostClock;
  readonly #gate = new AsyncMutex();
  #spent = 0;
  #next: Promise<void> | undefined;

  constructor(clock: HostClock) {
    this.#clock = clock;
  }

  /** Waits for room for one message. */
  enter(): Promise<void> {
    return this.#gate.run(async () => {
      while (this.#spent >= TURN_COST) await this.#nextTurn();
      this.spend(MESSAGE_COST);
    });
  }

  /** Counts what a message turned out to cost beyond that, in bytes of its answer. */
  spend(bytes: number): void {
    this.#spent += bytes;
    void this.#nextTurn();
  }

  #nextTurn(): Promise<void> {
    this.#next ??= this.#clock.macrotask().then(() => {
      this.#spent = 0;
      this.#next = undefined;
    });
    return this.#next;
  }
}
