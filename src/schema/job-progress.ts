import { arrayOf, bool, enumOf, int, optional, required, struct } from './types.js';

const PHASE = enumOf('XJobPhase', ['prepare', 'zero', 'copy', 'follow', 'pivot']);

/** Bytes of the disk. */
const COUNTS = {
  done: required(int),
  left: required(int),
  data: required(int),
  zero: required(int),
  skipped: required(int),
} as const;

const COST = struct('XFinishCost', { seconds: required(int), copied: required(int) });

/** What each way to the end would cost from here; one that has none does not end. */
const FINISH = struct('XFinish', {
  way: required(enumOf('XFinishWay', ['cold-first', 'both-sides'])),
  'seconds-left': required(int),
  /** Of the rate that guests had, what they keep where their writes go to both sides. */
  'guest-percent': required(int),
  'in-time': required(bool),
  background: optional(COST),
  'both-sides': optional(COST),
  'both-sides-paced': optional(COST),
});

/** What queries say beyond QEMU of how far a job is; see docs/JOBS-THAT-SURVIVE.md. */
export const JobProgressInfo = struct('XJobProgress', {
  phase: required(PHASE),
  percent: required(int),
  ...COUNTS,
  rate: required(int),
  'dirty-rate': required(int),
  'time-left': optional(int),
  outlook: optional(enumOf('XJobOutlook', ['in-step', 'converges', 'by-writing-to-both', 'held', 'stalled'])),
  /** Of a backup with x-fleecing: bytes of its buffer that are in use, the most that were, and how many it may have. */
  buffer: optional(struct('XJobBuffer', { used: required(int), peak: required(int), max: required(int) })),
  /** Of a mirror with x-finish-by. */
  finish: optional(FINISH),
  phases: required(arrayOf(struct('XJobPhaseProgress', { phase: required(PHASE), ...COUNTS }))),
});
