import { given } from '../../base/given.js';
import { exitNow } from '../../host/exit.js';
import type { Engine } from '../../monitor/engine.js';

/** How long the end may take before it is told what it waits for, and before another signal cuts it short. */
const TOLD_AFTER_MS = 1_000;

/**
 * The end of a daemon: after `quit` or a signal everything is closed. The disks of guests are flushed however long that
 * takes, unless another signal says that it is not worth the wait: one that comes after it was told what is waited for.
 * Service managers send several in a row.
 */
export class Ending {
  readonly #engine: Engine;
  readonly #program: string;
  #isTold = false;
  #cutShort: () => void = () => undefined;

  /** Signals end the program from here on. */
  constructor(engine: Engine, program: string) {
    this.#engine = engine;
    this.#program = program;
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
      process.on(signal, (_name: string, number: number) => this.#hear(number));
    void engine.quitting.promise.then(() => (this.#hear = this.#hearAgain));
  }

  /** `cutShort` does what must be done even then, soon; the status is 1. */
  async close(cutShort: () => Promise<void>): Promise<void> {
    this.#hear = this.#hearAgain;
    this.#cutShort = () => void cutShort().finally(() => exitNow(1));
    const timer = this.#engine.host.clock.setTimer(TOLD_AFTER_MS, () => this.#tell());
    try {
      await this.#engine.close();
    } finally {
      timer.cancel();
    }
  }

  #hear = (number: number): void => {
    const { kind, quitting } = this.#engine;
    this.#hear = this.#hearAgain;
    if (kind === 'machine') {
      process.stderr.write(`${this.#program}: terminating on signal ${number}\n`);
      this.#engine.emit('SHUTDOWN', given({ guest: false, reason: 'host-signal' }));
    }
    quitting.resolve();
  };

  readonly #hearAgain = (): void => {
    if (this.#isTold) this.#cutShort();
  };

  #tell(): void {
    this.#isTold = true;
    const what = this.#engine.unfinished().join(', ');
    process.stderr.write(`livedisk: waiting for ${what}; another signal ends the program without that\n`);
  }
}
