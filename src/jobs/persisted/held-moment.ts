import type { ChangeGate } from '../../block/change-gate.js';
import type { JobJournal } from './job-journal.js';

export interface HeldMomentOptions {
  readonly journal: JobJournal;
  /** What the target breaks that cannot bring to disk what a guest's change waits for: the change, or the point in time. */
  readonly breaks: 'guest-write' | 'snapshot';
  /** The point in time is lost. */
  readonly failed: (error: unknown) => void;
}

/**
 * The point in time of a backup with a journal: what a guest changes is in the target before, durably, and the journal
 * knows. So whatever the journal says is left, the source still has, until this is given up.
 */
export class HeldMoment {
  readonly #options: HeldMomentOptions;
  #isGiven = false;
  /** The journal knows that the point in time is held no more. */
  #isTold = false;
  #telling: Promise<void> | undefined;

  constructor(options: HeldMomentOptions) {
    this.#options = options;
  }

  /** `inner` copies what is not in the target yet. */
  gate(inner: ChangeGate): ChangeGate {
    const { journal } = this.#options;
    return {
      isOpen: (offset, lengthBytes) =>
        inner.isOpen(offset, lengthBytes) &&
        (this.#isGiven ? this.#isTold : journal.isSecured({ offset, lengthBytes })),
      run: (change, forward) =>
        inner.run(change, async () => {
          await this.#secure(change);
          await this.#telling;
          await forward();
        }),
    };
  }

  async #secure(change: { offset: number; lengthBytes: number }): Promise<void> {
    const { journal, breaks, failed } = this.#options;
    try {
      await journal.secure(change, () => this.#isGiven);
    } catch (error) {
      if (breaks === 'guest-write') throw error;
      this.giveUp();
      failed(error);
    }
  }

  /** Guests' changes pass, once the journal says so. */
  giveUp(): void {
    if (this.#isGiven) return;
    this.#isGiven = true;
    const { journal } = this.#options;
    this.#telling = journal.abandon().then(() => void (this.#isTold = true));
    journal.wake();
  }
}
