import type {
  DetailedProgress,
  JobPhase,
  Outlook,
  Stage,
  StageProgress,
  WorkProgress,
} from './job-progress.js';
import { Throughput } from './throughput.js';

/** How often it is looked how far a job is, at most: as finely as rates are kept. */
const LOOK_MS = 250;

const STAGES: readonly Stage[] = ['prepare', 'zero', 'copy', 'follow', 'pivot'];

const STAGE_OF: Readonly<Record<JobPhase, Stage>> = {
  starting: 'prepare',
  scanning: 'prepare',
  zeroing: 'zero',
  copying: 'copy',
  following: 'follow',
  finishing: 'follow',
  flushing: 'pivot',
  verifying: 'pivot',
  ending: 'pivot',
  over: 'pivot',
};

type Counts = { doneBytes: number; dataBytes: number; zeroBytes: number; skippedBytes: number };

const NOTHING: Counts = { doneBytes: 0, dataBytes: 0, zeroBytes: 0, skippedBytes: 0 };

/** What a log knows, but for its rates. A type alias: it is JSON. */
export type PassedLog = { stages: Array<[Stage, Counts]>; most: Counts; zeroed: number; percent: number };

/** What a job looks like from outside, at one moment. */
export interface Sight extends Counts {
  readonly phase: JobPhase;
  readonly remainingBytes: number;
  readonly zeroing?: WorkProgress['zeroing'];
  /** Guests may make more to do: their changes are copied again. Absent: they cannot. */
  readonly following?: 'copies' | 'writes-to-both';
  /** It rests, or waits for the user. */
  readonly isHeld: boolean;
}

/** What a job did in each stage of its life, how fast, and what that says of its end. Nothing that it tells goes back. */
export class ProgressLog {
  readonly #stages = new Map<Stage, Counts>();
  readonly #done: Throughput;
  readonly #dirtied: Throughput;
  /** All that was done, as far as it was ever seen: a piece that fails is done again. */
  #most: Counts = NOTHING;
  #zeroed = 0;
  #totalBytes: number | undefined;
  #lookedMs: number;
  #percent = 0;

  constructor(nowMs: number) {
    this.#done = new Throughput(nowMs);
    this.#dirtied = new Throughput(nowMs);
    this.#lookedMs = nowMs;
  }

  passed(): PassedLog {
    return { stages: [...this.#stages], most: this.#most, zeroed: this.#zeroed, percent: this.#percent };
  }

  restore({ stages, most: reached, zeroed, percent }: PassedLog): void {
    for (const [stage, counts] of stages) this.#stages.set(stage, counts);
    this.#most = reached;
    this.#zeroed = zeroed;
    this.#percent = percent;
  }

  /** Whether look() is worth its while. */
  isDue(nowMs: number): boolean {
    return nowMs - this.#lookedMs >= LOOK_MS;
  }

  /** What was done since the last look was done in the phase that the job is seen in: to be called as it ends, too. */
  look(sight: Sight, nowMs: number): void {
    this.#lookedMs = nowMs;
    const stage = STAGE_OF[sight.phase];
    const zeroed = sight.zeroing?.doneBytes ?? this.#zeroed;
    const reached = most(this.#most, sight);
    const news = minus(reached, this.#most);
    this.#most = reached;
    this.#done.add(news.doneBytes + Math.max(0, zeroed - this.#zeroed), nowMs);
    this.#add(stage, news);
    if (zeroed > this.#zeroed)
      this.#add('zero', { ...NOTHING, doneBytes: zeroed - this.#zeroed, zeroBytes: zeroed - this.#zeroed });
    this.#zeroed = Math.max(this.#zeroed, zeroed);
    this.#lookAtGuests(sight, nowMs);
  }

  /** While what is to be copied is still being looked for, it gets more by itself. */
  #lookAtGuests({ phase, doneBytes, remainingBytes, following }: Sight, nowMs: number): void {
    const isMarked = phase === 'copying' || phase === 'following' || phase === 'finishing';
    const total = isMarked && following === 'copies' ? doneBytes + remainingBytes : undefined;
    if (total !== undefined && this.#totalBytes !== undefined && total > this.#totalBytes)
      this.#dirtied.add(total - this.#totalBytes, nowMs);
    this.#totalBytes = total;
  }

  #add(stage: Stage, news: Counts): void {
    const old = this.#stages.get(stage) ?? NOTHING;
    this.#stages.set(stage, {
      doneBytes: old.doneBytes + news.doneBytes,
      dataBytes: old.dataBytes + news.dataBytes,
      zeroBytes: old.zeroBytes + news.zeroBytes,
      skippedBytes: old.skippedBytes + news.skippedBytes,
    });
  }

  /** After a look. */
  tell(sight: Sight, nowMs: number): Omit<DetailedProgress, 'phase' | 'bytesPerSecond'> {
    const now = STAGE_OF[sight.phase];
    const { doneBytes } = this.#most;
    const { remainingBytes } = sight;
    const total = doneBytes + remainingBytes;
    const isCopied = now === 'follow' || now === 'pivot';
    const percent = total > 0 ? Math.floor((100 * doneBytes) / total) : isCopied ? 100 : 0;
    this.#percent = Math.max(this.#percent, percent);
    return {
      ...this.#most,
      remainingBytes,
      percent: this.#percent,
      stage: now,
      stages: STAGES.map((stage) => this.#stage(stage, now, sight)),
      dirtyBytesPerSecond: this.#dirtied.bytesPerSecond(nowMs),
      ...this.#outlook(sight, nowMs),
    };
  }

  #stage(stage: Stage, now: Stage, { remainingBytes, zeroing }: Sight): StageProgress {
    const counts = this.#stages.get(stage) ?? NOTHING;
    const isZero = stage === 'zero' ? (zeroing?.leftBytes ?? 0) : 0;
    // What guests write while a mirror follows is what it has to do there.
    const isNow = stage === now || (stage === 'copy' && (now === 'prepare' || now === 'zero'));
    return { stage, ...counts, leftBytes: stage === 'zero' ? isZero : isNow ? remainingBytes : 0 };
  }

  /** When it will be done, at the pace of the last seconds. */
  #outlook(sight: Sight, nowMs: number): Partial<Pick<DetailedProgress, 'secondsLeft' | 'outlook'>> {
    const left = sight.remainingBytes + (sight.zeroing?.leftBytes ?? 0);
    const pace = this.#done.bytesPerSecond(nowMs);
    const dirtied = this.#dirtied.bytesPerSecond(nowMs);
    const seconds = (rate: number): { secondsLeft: number } | object =>
      left === 0 ? { secondsLeft: 0 } : rate > 0 ? { secondsLeft: left / rate } : {};
    if (sight.following === undefined) return sight.isHeld && left > 0 ? {} : seconds(pace);
    const outlook = outlookOf(sight, left, pace, dirtied);
    if (outlook === 'held' || outlook === 'stalled') return { outlook };
    return { outlook, ...seconds(outlook === 'converges' ? pace - dirtied : pace) };
  }
}

function outlookOf(sight: Sight, left: number, pace: number, dirtied: number): Outlook {
  if (left === 0) return 'in-step';
  if (sight.isHeld) return 'held';
  if (pace === 0) return 'stalled';
  return sight.following === 'copies' && dirtied < pace ? 'converges' : 'by-writing-to-both';
}

function minus(a: Counts, b: Counts): Counts {
  return {
    doneBytes: a.doneBytes - b.doneBytes,
    dataBytes: a.dataBytes - b.dataBytes,
    zeroBytes: a.zeroBytes - b.zeroBytes,
    skippedBytes: a.skippedBytes - b.skippedBytes,
  };
}

function most(a: Counts, b: Counts): Counts {
  return {
    doneBytes: Math.max(a.doneBytes, b.doneBytes),
    dataBytes: Math.max(a.dataBytes, b.dataBytes),
    zeroBytes: Math.max(a.zeroBytes, b.zeroBytes),
    skippedBytes: Math.max(a.skippedBytes, b.skippedBytes),
  };
}
