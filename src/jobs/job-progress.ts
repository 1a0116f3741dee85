/** What a job is at. */
export type JobPhase =
  /** Not begun, or held back before its first request. */
  | 'starting'
  /** Looks for what is to be copied. */
  | 'scanning'
  | 'copying'
  /** READY: copies what guests write. */
  | 'following'
  /** Copies the rest of the point in time at which it is to end. */
  | 'finishing'
  /** What was copied is made durable. */
  | 'flushing'
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

/** What a driver knows of it. */
export interface WorkProgress {
  readonly phase: Exclude<JobPhase, 'starting' | 'ending' | 'over'>;
  readonly doneBytes: number;
  readonly zeroBytes: number;
  readonly skippedBytes: number;
  readonly remainingBytes: number;
}

/** What was done without copying data. */
export interface Tally {
  zeroBytes: number;
  skippedBytes: number;
}
