import { fixed } from '../io/numbers.js';
import type { ToolOutput } from './tool.js';

/** The line of -p: "    (42.00/100%)" written over itself. */
export class Progress {
  readonly #out: ToolOutput;
  readonly #shown: boolean;
  #last = -1;

  constructor(out: ToolOutput, shown: boolean) {
    this.#out = out;
    this.#shown = shown;
    this.#print(0);
  }

  update(done: number, total: number): void {
    const percent = total === 0 ? 100 : (done / total) * 100;
    // A hundred lines are enough for any image.
    if (percent < 100 && percent - this.#last < 1) return;
    if (percent !== this.#last) this.#print(percent);
  }

  /** Ends the line. */
  finish(): void {
    if (this.#shown) this.#out.print('\n');
  }

  #print(percent: number): void {
    this.#last = percent;
    if (this.#shown) this.#out.print(`    (${fixed(percent, 2)}/100%)\r`);
  }
}
