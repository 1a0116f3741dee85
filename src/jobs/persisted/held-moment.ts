import type { ChangeGate } from '../../block/change-gate.js';
import type { Stretch } from '../../block/dirty-bitmap.js';
import type { CopyBeforeWrite } from '../../drivers/copy-before-write/point-in-time.js';
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

  /** `inner` copies what is not in the target yet; it is to know of a change only once that may be made. */
  gate(inner: CopyBeforeWrite): ChangeGate {
    const { journal } = this.#options;
    const isOpen = (offset: number, lengthBytes: number): boolean =>
      (this.#isGiven ? this.#isTold : journal.isSecured({ offset, lengthBytes })) &&
      inner.isOpen(offset, lengthBytes);
    return {
      isOpen,
      run: async (change, forward) => {
        // What the target loses before it is durable there is due again.
        while (!isOpen(change.offset, change.lengthBytes)) {
          await inner.copyFor(change);
          await this.#secure(change, inner);
          await this.#telling;
        }
        await forward();
      },
    };
  }

  async #secure(change: Stretch, inner: CopyBeforeWrite): Promise<void> {
    const { journal, breaks, failed } = this.#options;
    try {
      await journal.secure(change, () => this.#isGiven || inner.isDue(change));
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
