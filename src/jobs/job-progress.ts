/** What a job is at. */
export type JobPhase =
  /** Not begun, or held back before its first request. */
  | 'starting'
  /** Looks for what is to be copied. */
  | 'scanning'
  /** Makes the target read as zeroes, where what it holds is not known. */
  | 'zeroing'
  | 'copying'
  /** READY: copies what guests write. */
  | 'following'
  /** Copies the rest of the point in time at which it is to end. */
  | 'finishing'
  /** What was copied is made durable. */
  | 'flushing'
  /** The copy is read back. */
  | 'verifying'
  /** Done but for its end in the graph, which may wait for the user. */
  | 'ending'
  | 'over';

/** How far a job is; bytes of the disk (of a `create` job: 1). A value: it does not change. */
export interface JobProgress {
  readonly phase: JobPhase;
  /** All that is done: data, zeroes, and what was skipped on the way. QMP's offset. */
  readonly doneBytes: number;
  /** Copied. */
  readonly dataBytes: number;
  /** Known to be zeroes, which were no data to copy. */
  readonly zeroBytes: number;
  /** Needed nothing: the target has it from elsewhere. A backup leaves it out of doneBytes. */
  readonly skippedBytes: number;
  /** Still to be done, as known now. QMP's len is this and doneBytes. */
  readonly remainingBytes: number;
  /** Data copied per second, over the last four seconds. */
  readonly bytesPerSecond: number;
}

/** The parts of a job's life that progress is told by. */
export type Stage = 'prepare' | 'zero' | 'copy' | 'follow' | 'pivot';

/** What was done in one of them, and what is left there as known now. */
export interface StageProgress {
  readonly stage: Stage;
  readonly doneBytes: number;
  readonly dataBytes: number;
  readonly zeroBytes: number;
  readonly skippedBytes: number;
  readonly leftBytes: number;
}

/** Whether a copy that guests write to meanwhile will be in step with its source. */
export type Outlook =
  | 'in-step'
  /** It copies faster than guests write. */
  | 'converges'
  /** Guests write faster than it copies: it will, since what they write goes to both sides, at the target's pace. */
  | 'by-writing-to-both'
  /** The user, or a drained section, has it rest. */
  | 'held'
  /** Nothing was copied for some seconds. */
  | 'stalled';

/** All that can be told. Its numbers do not go back, but for what is left, which guests may make more. */
export interface DetailedProgress extends JobProgress {
  /** 0 to 100, whole. */
  readonly percent: number;
  readonly stage: Stage;
  readonly stages: readonly StageProgress[];
  /** What guests add to what is to be copied, over the last four seconds. */
  readonly dirtyBytesPerSecond: number;
  /** At the pace of the last four seconds; absent: not known. */
  readonly secondsLeft?: number;
  /** Of mirrors, and commits of the active layer. */
  readonly outlook?: Outlook;
}

/** What a driver knows of it. */
export interface WorkProgress {
  readonly doneBytes: number;
  readonly zeroBytes: number;
  readonly skippedBytes: number;
  readonly remainingBytes: number;
  /** Of a target whose content was unknown: how much of it was made zeroes. */
  readonly zeroing?: { readonly doneBytes: number; readonly leftBytes: number };
  /** How it follows what guests change: those changes are copied, or go to both sides. Absent: it does not. */
  readonly following?: 'copies' | 'writes-to-both';
}

/** What a job is at while its driver works. */
export type WorkPhase = Exclude<JobPhase, 'starting' | 'ending' | 'over'>;

/** What was done without copying data. */
export type Tally = { zeroBytes: number; skippedBytes: number };
