import type { AlignedData } from 'uplot';
import type { LogEntry, ServerState } from '../messages.js';

const KEPT_POINTS = 600;
/** What changes a graph. */
const MARKED = /^(?:BLOCK_JOB_(?:READY|COMPLETED|CANCELLED|ERROR)|BLOCK_IO_ERROR|STOP|RESUME)$/;
const MARKED_COMMANDS = /snapshot|block-stream|block-commit|mirror|backup/;

type Point = Readonly<Record<string, number | null>>;

/** What the disks and jobs of one server did over the last minutes. */
export class History {
  readonly #seconds: number[] = [];
  readonly #points: Point[] = [];
  marks: Array<{ seconds: number }> = [];

  add({ disks, view, timeMs, error }: ServerState): void {
    const rates = Object.values(disks);
    const isKnown = error === undefined && rates.length > 0;
    const sum = (of: (one: (typeof rates)[number]) => number): number | null =>
      isKnown ? rates.reduce((all, one) => all + of(one), 0) : null;
    const slowest = (of: (one: (typeof rates)[number]) => number | undefined): number | null => {
      const known = rates.flatMap((one) => of(one) ?? []);
      return known.length > 0 ? Math.max(...known) : null;
    };
    this.#seconds.push(timeMs / 1000);
    this.#points.push({
      reads: sum(({ readOperations }) => readOperations),
      writes: sum(({ writeOperations }) => writeOperations),
      readBytes: sum(({ readBytes }) => readBytes),
      writeBytes: sum(({ writeBytes }) => writeBytes),
      readMs: slowest(({ readLatencyMs }) => readLatencyMs),
      writeMs: slowest(({ writeLatencyMs }) => writeLatencyMs),
      readHalf: slowest(({ readPercentiles }) => readPercentiles?.halfMs),
      read99: slowest(({ readPercentiles }) => readPercentiles?.most99Ms),
      writeHalf: slowest(({ writePercentiles }) => writePercentiles?.halfMs),
      write99: slowest(({ writePercentiles }) => writePercentiles?.most99Ms),
      jobBytes: view?.jobs.reduce((all, { rate = 0 }) => all + rate, 0) ?? null,
    });
    if (this.#points.length > KEPT_POINTS) {
      this.#points.shift();
      this.#seconds.shift();
    }
  }

  mark(log: readonly LogEntry[], server: string): void {
    this.marks = log
      .filter((entry) => entry.server === server)
      .filter(({ kind, name }) =>
        kind === 'event' ? MARKED.test(name) : kind === 'command' && MARKED_COMMANDS.test(name),
      )
      .map(({ timeMs }) => ({ seconds: timeMs / 1000 }));
  }

  has(name: string): boolean {
    return this.#points.some((point) => point[name] !== null && point[name] !== undefined);
  }

  data(series: readonly string[]): AlignedData {
    return [
      [...this.#seconds],
      ...series.map((name) => this.#points.map((point) => point[name] ?? null)),
    ] as AlignedData;
  }
}
