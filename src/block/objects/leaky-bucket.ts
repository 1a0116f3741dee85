/** How much of a second's worth may come at once where no burst is allowed. */
const BURST_SECONDS = 0.1;

/**
 * A leaky bucket (QEMU's docs/throttle.txt): requests fill it, it leaks at the average rate, and what comes when it is
 * over its size waits. With a burst rate it holds `burstSeconds` of that, and a second bucket keeps bursts at that rate.
 */
export class LeakyBucket {
  /** Units (bytes or requests) a second; 0: no limit. */
  readonly #average: number;
  readonly #burst: number;
  readonly #burstSeconds: number;
  #level = 0;
  #burstLevel = 0;

  constructor(average: number, burst: number, burstSeconds: number) {
    this.#average = average;
    this.#burst = burst;
    this.#burstSeconds = burstSeconds;
  }

  leak(seconds: number): void {
    this.#level = Math.max(0, this.#level - this.#average * seconds);
    this.#burstLevel = Math.max(0, this.#burstLevel - this.#burst * seconds);
  }

  get levels(): [level: number, burstLevel: number] {
    return [this.#level, this.#burstLevel];
  }

  set levels([level, burstLevel]: readonly [number, number]) {
    this.#level = level;
    this.#burstLevel = burstLevel;
  }

  fill(units: number): void {
    if (this.#average === 0) return;
    this.#level += units;
    if (this.#burstSeconds > 1) this.#burstLevel += units;
  }

  /** Until the next request may come. */
  waitSeconds(): number {
    if (this.#average === 0) return 0;
    const size = this.#burst > 0 ? this.#burst * this.#burstSeconds : this.#average * BURST_SECONDS;
    if (this.#level > size) return (this.#level - size) / this.#average;
    if (this.#burstSeconds <= 1) return 0;
    const burstSize = this.#burst * BURST_SECONDS;
    return this.#burstLevel > burstSize ? (this.#burstLevel - burstSize) / this.#burst : 0;
  }
}
