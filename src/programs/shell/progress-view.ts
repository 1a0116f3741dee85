import type { HostClock } from '../../host/host.js';
import { ProgressMeter } from '../../view/progress-meter.js';
import { printable } from '../../view/words.js';
import type { JobState } from './wait-job.js';

/** Jobs that do not count bytes. */
const COUNTLESS = /^(create|amend|snapshot-)/;

export type Screen = NodeJS.WritableStream & { isTTY?: boolean };

/** One job's progress: a line that is written anew on a terminal, else a line for each tenth and each new status. */
export class ProgressView {
  readonly #screen: Screen;
  readonly #clock: HostClock;
  readonly #id: string;
  readonly #meter = new ProgressMeter();
  #isDrawn = false;
  #last = '';

  constructor(screen: Screen, clock: HostClock, id: string) {
    this.#screen = screen;
    this.#clock = clock;
    this.#id = id;
  }

  show({ type, status, done, total }: JobState): void {
    const what = printable(`${this.#id} (${type}) ${status}`);
    const line = COUNTLESS.test(type) ? what : this.#meter.line(what, done, total, this.#clock.nowMs());
    if (this.#screen.isTTY === true) {
      this.#screen.write(`\r\x1b[K${line}`);
      this.#isDrawn = true;
      return;
    }
    const step = `${status} ${total === 0 ? 0 : Math.floor((10 * done) / total)}`;
    if (step !== this.#last) this.#screen.write(`${line}\n`);
    this.#last = step;
  }

  /** Something else is to be shown. */
  clear(): void {
    if (this.#isDrawn) this.#screen.write('\r\x1b[K');
    this.#isDrawn = false;
  }

  end(text: string): void {
    if (this.#isDrawn) this.#screen.write('\n');
    this.#isDrawn = false;
    this.#screen.write(`${printable(`${this.#id} ${text}`)}\n`);
  }
}
