import { closeSync, openSync, writeSync } from 'node:fs';
import { BlockError, errnoText } from '../base/error.js';
import type { TraceOutput } from '../base/trace.js';
import type { HostClock } from './host.js';

const STANDARD_ERROR = 2;

/** Written at once, so that nothing is missing when the program ends. */
export class RealTraceOutput implements TraceOutput {
  hasTimes = false;
  readonly #clock: HostClock;
  #fd = STANDARD_ERROR;

  constructor(clock: HostClock) {
    this.#clock = clock;
  }

  write(line: string): void {
    let rest = Buffer.from(this.hasTimes ? `${this.#stamp()}${line}` : line);
    try {
      while (rest.length > 0) rest = rest.subarray(writeSync(this.#fd, rest));
    } catch {
      // Nobody reads it, or there is no room: that is no trouble of the disks'.
    }
  }

  /** PID@SECONDS.MICROSECONDS: */
  #stamp(): string {
    const { seconds, microseconds } = this.#clock.wallClock();
    return `${process.pid}@${seconds}.${String(microseconds).padStart(6, '0')}:`;
  }

  toFile(path: string): void {
    const old = this.#fd;
    try {
      this.#fd = openSync(path, 'w');
    } catch (error) {
      const text = errnoText((error as NodeJS.ErrnoException).code ?? '');
      throw new BlockError('io', `Error opening logfile ${path}: ${text}`, { cause: error });
    }
    if (old !== STANDARD_ERROR) closeSync(old);
  }
}
