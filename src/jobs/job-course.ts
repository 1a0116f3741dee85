import type { HostClock } from '../host/host.js';
import type { DetailedProgress, JobPhase, JobProgress, WorkPhase, WorkProgress } from './job-progress.js';
import { type PassedLog, ProgressLog, type Sight } from './progress-log.js';
import type { JobStatus } from './state.js';
import { Throughput } from './throughput.js';

/** What a job is at where its status says it all. */
const PHASES: Readonly<Partial<Record<JobStatus, JobPhase>>> = {
  undefined: 'starting',
  created: 'starting',
  waiting: 'ending',
  pending: 'ending',
  aborting: 'ending',
  concluded: 'over',
  null: 'over',
};

/** For another process that goes on with it. A type alias: it is JSON. */
export type PassedCourse = { phase: WorkPhase; log: PassedLog };

/** What is seen of a job at a moment. */
export interface JobLook {
  readonly work: WorkProgress;
  readonly status: JobStatus;
  /** Somebody has it rest. */
  readonly isHeld: boolean;
  /** What it skips counts neither as done nor as left. */
  readonly isBackup: boolean;
}

/** How far a job is, what it is at, and how fast it has been. */
export class JobCourse {
  readonly #clock: HostClock;
  readonly #job: () => JobLook;
  /** From its start on. */
  #throughput: Throughput | undefined;
  #log: ProgressLog | undefined;
  /** While its status does not say it all. */
  #phase: WorkPhase = 'copying';

  constructor(clock: HostClock, job: () => JobLook) {
    this.#clock = clock;
    this.#job = job;
  }

  begin(): void {
    const nowMs = this.#clock.nowMs();
    this.#throughput = new Throughput(nowMs);
    this.#log = new ProgressLog(nowMs);
  }

  /** Undefined: it has not begun. */
  passed(): PassedCourse | undefined {
    this.look();
    return this.#log && { phase: this.#phase, log: this.#log.passed() };
  }

  /** Goes on from there. */
  restore({ phase, log }: PassedCourse): void {
    this.begin();
    this.#phase = phase;
    this.#log?.restore(log);
  }

  /** How far it is, now. */
  progress(): JobProgress {
    const { phase, doneBytes, dataBytes, zeroBytes, skippedBytes, remainingBytes } = this.#sight();
    return {
      ...{ phase, doneBytes, dataBytes, zeroBytes, skippedBytes, remainingBytes },
      bytesPerSecond: this.#throughput?.bytesPerSecond(this.#clock.nowMs()) ?? 0,
    };
  }

  detailed(): DetailedProgress {
    const nowMs = this.#clock.nowMs();
    const sight = this.#sight();
    const log = this.#log ?? new ProgressLog(nowMs);
    log.look(sight, nowMs);
    const { phase, bytesPerSecond } = this.progress();
    return { phase, bytesPerSecond, ...log.tell(sight, nowMs) };
  }

  #sight(): Sight {
    const { work, status, isHeld, isBackup } = this.#job();
    const { doneBytes, zeroBytes, skippedBytes } = work;
    const counted = isBackup ? zeroBytes : zeroBytes + skippedBytes;
    return { ...work, phase: PHASES[status] ?? this.#phase, dataBytes: doneBytes - counted, isHeld };
  }

  enter(phase: WorkPhase): void {
    this.look();
    this.#phase = phase;
  }

  look(): void {
    this.#log?.look(this.#sight(), this.#clock.nowMs());
  }

  /** So much data is being copied. */
  copied(bytes: number): void {
    const nowMs = this.#clock.nowMs();
    this.#throughput?.add(bytes, nowMs);
    if (this.#log?.isDue(nowMs) === true) this.#log.look(this.#sight(), nowMs);
  }
}
