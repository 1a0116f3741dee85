export function humanBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** power;
  return `${value >= 100 || power === 0 ? value.toFixed(0) : value.toFixed(1)} ${units[power]}`;
}

/** A smoothed rate. */
export class Throughput {
  #lastMs: number | undefined;
  #lastBytes = 0;
  #bytesPerMs = 0;

  /** So much is done by now, in all. */
  add(doneBytes: number, nowMs: number): void {
    if (this.#lastMs !== undefined && nowMs > this.#lastMs) {
      const rate = Math.max(0, doneBytes - this.#lastBytes) / (nowMs - this.#lastMs);
      this.#bytesPerMs = this.#bytesPerMs === 0 ? rate : 0.7 * this.#bytesPerMs + 0.3 * rate;
    }
    this.#lastMs = nowMs;
    this.#lastBytes = doneBytes;
  }

  /** 0: not known yet. */
  get bytesPerSecond(): number {
    return this.#bytesPerMs * 1000;
  }
}

/** Smoothed rate and time left of one job; `total` may grow while the guest writes. */
export class ProgressMeter {
  readonly #throughput = new Throughput();
  /** What was shown is not taken back when the total grows. */
  #percent = 0;

  /** A line such as `mirror  62%  24.1 MiB of 39 MiB  310 MiB/s  0.1 s left`. */
  line(what: string, doneBytes: number, totalBytes: number, nowMs: number): string {
    this.#throughput.add(doneBytes, nowMs);
    const { bytesPerSecond } = this.#throughput;
    const percent = totalBytes === 0 ? 100 : Math.floor((100 * doneBytes) / totalBytes);
    this.#percent = Math.max(this.#percent, percent);
    const rate = bytesPerSecond > 0 ? `${humanBytes(bytesPerSecond)}/s` : '';
    const leftSeconds = bytesPerSecond > 0 ? (totalBytes - doneBytes) / bytesPerSecond : undefined;
    const left = leftSeconds === undefined ? '' : `${durationText(leftSeconds)} left`;
    const amount = `${humanBytes(doneBytes)} of ${humanBytes(totalBytes)}`;
    return [what.padEnd(8), `${this.#percent}%`.padStart(4), amount, rate, left]
      .filter((part) => part !== '')
      .join('  ');
  }
}

/** "0.1 s", "2:05" (minutes and seconds), "1:02:05". */
export function durationText(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.ceil(seconds);
  const two = (n: number): string => String(n).padStart(2, '0');
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours > 0 ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}
