import { Worker } from 'node:worker_threads';

/** Where nothing is worked on, somebody waits for what will not come, or this machine does much else. */
const WAITS = 20;

/** Watches from a thread of its own, since a seed that does not end may never let the main one look at the clock. */
const SOURCE = `
  const { parentPort, workerData: limit } = require('node:worker_threads');
  const { writeSync } = require('node:fs');
  const worked = () => process.cpuUsage().user / 1e6;
  let timer;
  parentPort.on('message', (seed) => {
    clearInterval(timer);
    const [begun, before] = [performance.now(), worked()];
    timer = setInterval(() => {
      const isWaiting = performance.now() - begun > limit.seconds * limit.waits * 1000;
      if (worked() - before < limit.seconds && !isWaiting) return;
      writeSync(2, 'seed ' + seed + ' failed: it did not end within ' + limit.seconds + ' s of work\\n');
      process.kill(process.pid, 'SIGKILL');
    }, 500);
  });
`;

export class Watchdog {
  readonly #worker: Worker;

  /** `seconds` of the processor's time that a seed may take. */
  constructor(seconds: number) {
    this.#worker = new Worker(SOURCE, { eval: true, workerData: { seconds, waits: WAITS } });
    this.#worker.unref();
  }

  /** A seed begins; the one before has ended. */
  begin(seed: number): void {
    this.#worker.postMessage(seed);
  }

  async end(): Promise<void> {
    await this.#worker.terminate();
  }
}
