/** How many requests took how long. Bin 0 counts those below the first boundary, the last those from the last one on. */
export class LatencyHistogram {
  readonly boundariesNs: ReadonlyArray<number | bigint>;
  readonly bins: number[];

  /** `boundariesNs` go up from more than 0: see areBoundaries. */
  constructor(boundariesNs: ReadonlyArray<number | bigint>) {
    this.boundariesNs = boundariesNs;
    this.bins = new Array<number>(boundariesNs.length + 1).fill(0);
  }

  static areBoundaries(boundariesNs: ReadonlyArray<number | bigint>): boolean {
    return boundariesNs.every((value, i) => value > (boundariesNs[i - 1] ?? 0));
  }

  add(latencyMs: number): void {
    const latencyNs = latencyMs * 1e6;
    const above = this.boundariesNs.findIndex((boundary) => latencyNs < boundary);
    const bin = above < 0 ? this.boundariesNs.length : above;
    this.bins[bin] = (this.bins[bin] ?? 0) + 1;
  }
}
