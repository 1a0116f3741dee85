import { arrayOf, bool, enumOf, int, int64, optional, required, str, struct } from './types.js';

/** Jobs that are gone on with after they were cut off: docs/JOBS-THAT-SURVIVE.md. */
export const PERSISTED_JOB_COMMANDS = {
  'x-job-resume': struct('x-job-resume-arg', {
    journal: required(str),
    'job-id': optional(str),
    'if-changed': optional(enumOf('XIfChanged', ['refuse', 'compare', 'ignore'])),
  }),
  'x-job-history': struct('x-job-history-arg', { journal: optional(str) }),
} as const;

export const PERSISTED_JOB_RETURNS = {
  'x-job-resume': struct('XResumedJob', { id: required(str), left: required(int) }),
  'x-job-history': arrayOf(
    struct('XJobEnd', {
      id: required(str),
      type: required(str),
      state: required(enumOf('XJobEndState', ['completed', 'failed', 'unfinished'])),
      error: optional(str),
      left: optional(int),
    }),
  ),
} as const;

const REFERENCE = struct('XNodeReference', {
  name: required(str),
  driver: required(str),
  storage: optional(str),
});

const ON_ERROR = enumOf('XErrorPolicy', ['report', 'ignore', 'enospc', 'stop', 'auto']);

/** The plan of a mirror, as a journal has it. */
export const JournalledMirror = struct('XJournalledMirror', {
  kind: required(enumOf('XJournalledKind', ['mirror', 'active-commit'])),
  jobId: required(str),
  speed: required(int64),
  autoFinalize: required(bool),
  autoDismiss: required(bool),
  onReadError: required(ON_ERROR),
  onWriteError: required(ON_ERROR),
  filterNodeName: optional(str),
  compares: optional(bool),
  verifies: optional(bool),
  manifest: optional(str),
  source: required(REFERENCE),
  target: required(REFERENCE),
  lowest: optional(REFERENCE),
  replaces: optional(REFERENCE),
  sync: required(enumOf('XJournalledSync', ['full', 'top', 'none'])),
  targetIsNew: required(bool),
  granularityBytes: required(int),
  windowBytes: optional(int),
  persist: required(str),
  copyMode: required(enumOf('XCopyMode', ['background', 'write-blocking'])),
  unmap: required(bool),
  targetBacking: required(enumOf('XTargetBacking', ['leave', 'source-chain', 'open', 'later'])),
});
