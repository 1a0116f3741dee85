import type { Host } from '../../host/host.js';
import type { JsonObject } from '../../schema/types.js';
import { readAnswers } from '../../view/answers.js';
import { buildView } from '../../view/build.js';
import { ProgressMeter } from '../../view/progress-meter.js';
import { drawChains } from '../../view/text.js';
import type { DemoDaemon } from './session.js';

const PROGRESS_EVERY_MS = 100;
/** Where lines cannot be rewritten, fewer of them. */
const LOG_EVERY_MS = 500;

/** What the demo prints. */
export class Show {
  readonly #isTerminal = process.stdout.isTTY;
  #lastLineMs = -Infinity;

  line(text = ''): void {
    process.stdout.write(`${text}\n`);
  }

  title(text: string): void {
    this.line(`\n== ${text}`);
  }

  #progress(text: string, nowMs: number, isLast: boolean): void {
    if (this.#isTerminal) process.stdout.write(`\r\x1b[K    ${text}${isLast ? '\n' : ''}`);
    else if (isLast || nowMs - this.#lastLineMs >= LOG_EVERY_MS) {
      this.#lastLineMs = nowMs;
      this.line(`    ${text}`);
    }
  }

  /** Draws the progress of a job until `isOver`. */
  async job(host: Host, daemon: DemoDaemon, jobId: string, isOver: () => boolean): Promise<void> {
    const meter = new ProgressMeter();
    let last = { type: '', done: 0, total: 0 };
    this.#lastLineMs = -Infinity;
    while (!isOver()) {
      const jobs = (await daemon.execute('query-block-jobs')) as JsonObject[];
      const job = jobs.find(({ device }) => device === jobId);
      if (job) {
        last = { type: job['type'] as string, done: Number(job['offset']), total: Number(job['len']) };
        const now = host.clock.nowMs();
        this.#progress(meter.line(last.type, last.done, last.total, now), now, false);
      }
      await daemon.nextEvent(host, PROGRESS_EVERY_MS);
    }
    if (last.type === '') return;
    const now = host.clock.nowMs();
    this.#progress(meter.line(last.type, last.total, last.total, now), now, true);
  }

  /** The chain as the daemon tells it. */
  async chain(daemon: DemoDaemon): Promise<void> {
    const answers = await readAnswers((command, args) => daemon.execute(command, args));
    this.line(drawChains(buildView(answers)));
  }
}
