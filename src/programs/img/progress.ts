import { fixed } from '../io/numbers.js';
import { durationText, humanBytes, Throughput } from '../../view/progress-meter.js';
import type { ToolOutput } from './tool.js';

/** How often the line on a terminal is written anew. */
const TERMINAL_MS = 100;

/**
 * The line of -p: "    (42.00/100%)" written over itself, and on a terminal rate and time left behind it. Where it is not
 * shown, a line is told to who asks (SIGUSR1).
 */
export class Progress {
  readonly #out: ToolOutput;
  readonly #shown: boolean;
  readonly #stopAsking: () => void;
  readonly #throughput = new Throughput();
  #shownAtMs = -Infinity;
  #percent = 0;
  #last = 0;
  #left = '';
  #isFinished = false;

  constructor(out: ToolOutput, shown: boolean) {
    this.#out = out;
    this.#shown = shown;
    const tell = (): void => out.error(`    (${fixed(this.#percent, 2)}/100%)\n`);
    this.#stopAsking = shown ? () => undefined : (out.onProgressAsked?.(tell) ?? (() => undefined));
  }

  /** Nothing is done yet. */
  begin(): this {
    this.#print();
    return this;
  }

  update(done: number, total: number): void {
    this.#percent = total === 0 ? 100 : (done / total) * 100;
    const { terminal } = this.#out;
    if (!this.#shown) return;
    if (terminal) {
      const nowMs = terminal.nowMs();
      if (nowMs - this.#shownAtMs < TERMINAL_MS) return;
      this.#shownAtMs = nowMs;
      this.#throughput.add(done, nowMs);
      const { bytesPerSecond } = this.#throughput;
      if (bytesPerSecond > 0)
        this.#left = `  ${humanBytes(bytesPerSecond)}/s  ${durationText((total - done) / bytesPerSecond)} left`;
      this.#print();
      return;
    }
    // A hundred lines are enough for any image.
    if (this.#percent < 100 && this.#percent - this.#last < 1) return;
    if (this.#percent !== this.#last) this.#print();
  }

  /** All is done. */
  complete(): void {
    this.#left = '';
    const wasShown = this.#percent === 100 && this.#last === 100;
    this.#percent = 100;
    if (!wasShown || this.#out.terminal) this.#print();
  }

  /** Ends the line, once. */
  finish(): void {
    if (this.#isFinished) return;
    this.#isFinished = true;
    this.#stopAsking();
    if (this.#shown) this.#out.print('\n');
  }

  #print(): void {
    this.#last = this.#percent;
    if (!this.#shown) return;
    const rest = this.#out.terminal ? `${this.#left}\x1b[K` : '';
    this.#out.print(`    (${fixed(this.#percent, 2)}/100%)${rest}\r`);
  }
}
