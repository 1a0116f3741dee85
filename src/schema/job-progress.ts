import { arrayOf, enumOf, int, optional, required, struct } from './types.js';

const PHASE = enumOf('XJobPhase', ['prepare', 'zero', 'copy', 'follow', 'pivot']);

/** Bytes of the disk. */
const COUNTS = {
  done: required(int),
  left: required(int),
  data: required(int),
  zero: required(int),
  skipped: required(int),
} as const;

/** What queries say beyond QEMU of how far a job is; see docs/JOBS-THAT-SURVIVE.md. */
export const JobProgressInfo = struct('XJobProgress', {
  phase: required(PHASE),
  percent: required(int),
  ...COUNTS,
  rate: required(int),
  'dirty-rate': required(int),
  'time-left': optional(int),
  outlook: optional(enumOf('XJobOutlook', ['in-step', 'converges', 'by-writing-to-both', 'held', 'stalled'])),
  phases: required(arrayOf(struct('XJobPhaseProgress', { phase: required(PHASE), ...COUNTS }))),
});
