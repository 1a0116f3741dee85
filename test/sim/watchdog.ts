import { Worker } from 'node:worker_threads';

/** Watches from a thread of its own, since a seed that does not end may never let the main one look at the clock. */
const SOURCE = `
  const { parentPort, workerData } = require('node:worker_threads');
  const { writeSync } = require('node:fs');
  let timer;
  parentPort.on('message', (seed) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      writeSync(2, 'seed ' + seed + ' failed: it did not end within ' + workerData + ' s\\n');
      process.kill(process.pid, 'SIGKILL');
    }, workerData * 1000);
  });
`;

export class Watchdog {
  readonly #worker: Worker;

  constructor(seconds: number) {
    this.#worker = new Worker(SOURCE, { eval: true, workerData: seconds });
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
