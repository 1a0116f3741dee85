/** Who hears from a peer again within this is in a conversation with it. */
const CONVERSATION_MS = 0.2;
/** How long the event loop then looks for more before it sleeps. */
const POLL_MS = 0.06;
/** So often in a row nothing came while it looked: it stops looking, */
const MISSES = 8;
/** until so much has come otherwise. */
const REST = 256;

export interface PollingLoop {
  nowMs(): number;
  /** In the loop's next round, which does not sleep before it. */
  nextRound(callback: () => void): void;
}

const EVENT_LOOP: PollingLoop = {
  nowMs: () => performance.now(),
  nextRound: (callback) => void setImmediate(callback),
};

/** What is done while it looks. */
export interface PollingUser {
  /** In each round: what came in no other way is found by came() again. */
  look(): void;
  /** It looks no more; who must be woken says so now. */
  sleep(): void;
}

/**
 * Keeps the event loop awake for a moment after something came from a socket, while requests come one by one: to be woken
 * takes longer than to answer one. An idle program sleeps, and so does one whose peers let it wait, or cannot run meanwhile.
 */
export class BusyPolling {
  readonly #loop: PollingLoop;
  readonly #user: PollingUser | undefined;
  #cameMs = -Infinity;
  #untilMs = 0;
  #isLooking = false;
  #misses = 0;
  #rest = 0;

  constructor(loop = EVENT_LOOP, user?: PollingUser) {
    this.#loop = loop;
    this.#user = user;
  }

  /** Something has come. Answers whether it looks for more. */
  came(): boolean {
    const nowMs = this.#loop.nowMs();
    const isConversation = nowMs - this.#cameMs < CONVERSATION_MS;
    this.#cameMs = nowMs;
    if (this.#isLooking) this.#misses = 0;
    else if (!isConversation || this.#isResting()) return false;
    this.#untilMs = nowMs + POLL_MS;
    if (this.#isLooking) return true;
    this.#isLooking = true;
    this.#loop.nextRound(this.#look);
    return true;
  }

  #isResting(): boolean {
    if (this.#rest === 0) return false;
    this.#rest--;
    return true;
  }

  readonly #look = (): void => {
    this.#user?.look();
    if (this.#loop.nowMs() < this.#untilMs) return this.#loop.nextRound(this.#look);
    this.#isLooking = false;
    if (++this.#misses >= MISSES) {
      this.#misses = 0;
      this.#rest = REST;
    }
    this.#user?.sleep();
  };
}
