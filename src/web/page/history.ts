import type { AlignedData } from 'uplot';
import type { LogEntry, ServerState } from '../messages.js';

const KEPT_POINTS = 600;
/** Nothing is known of a longer time without a look. */
const GAP_SECONDS = 10;
/** What changes a graph. */
const MARKED = /^(?:BLOCK_JOB_(?:READY|COMPLETED|CANCELLED|ERROR)|BLOCK_IO_ERROR|STOP|RESUME)$/;
const MARKED_COMMANDS =
  /snapshot|block-stream|block-commit|mirror|backup|job-complete|x-point-(?:create|delete|revert)/;

type Point = Readonly<Record<string, number | null>>;

/** What the disks and jobs of one server did over the last minutes. */
export class History {
  readonly #seconds: number[] = [];
  readonly #points: Point[] = [];
  marks: Array<{ seconds: number; name: string }> = [];

  add({ disks, view, timeMs, error }: ServerState): void {
    const rates = Object.values(disks);
    const isKnown = error === undefined && rates.length > 0;
    const sum = (of: (one: (typeof rates)[number]) => number): number | null =>
      isKnown ? rates.reduce((all, one) => all + of(one), 0) : null;
    const slowest = (of: (one: (typeof rates)[number]) => number | undefined): number | null => {
      const known = rates.flatMap((one) => of(one) ?? []);
      return known.length > 0 ? Math.max(...known) : null;
    };
    const seconds = timeMs / 1000;
    const last = this.#seconds.at(-1) ?? seconds - 1;
    // A page that comes again is told the last state once more; a clock may be set back.
    if (seconds < last - GAP_SECONDS) this.#seconds.length = this.#points.length = 0;
    else if (seconds <= last) return;
    if (seconds - last > GAP_SECONDS) this.#keep(last + 1, {});
    this.#keep(seconds, {
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
      dirtyBytes: view?.jobs.some(({ dirtyRate }) => dirtyRate !== undefined)
        ? view.jobs.reduce((all, { dirtyRate = 0 }) => all + dirtyRate, 0)
        : null,
      jobBytes: view?.jobs.reduce((all, { rate = 0 }) => all + rate, 0) ?? null,
    });
  }

  #keep(seconds: number, point: Point): void {
    this.#seconds.push(seconds);
    this.#points.push(point);
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
      .map(({ timeMs, name, data }) => ({ seconds: timeMs / 1000, name: markText(name, data) }));
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

/** Few letters. */
function markText(name: string, data: LogEntry['data']): string {
  if (name === 'BLOCK_JOB_COMPLETED')
    return typeof data?.['error'] === 'string' ? 'failed' : data?.['type'] === 'mirror' ? 'pivot' : 'done';
  if (name.startsWith('x-point-')) return `point ${name.slice('x-point-'.length)}`;
  if (/snapshot/.test(name)) return 'snapshot';
  return name
    .replace(/^BLOCK_(?:JOB_)?|^block-|^drive-|^blockdev-|^job-/, '')
    .toLowerCase()
    .replaceAll('_', ' ');
}
