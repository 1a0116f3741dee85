import { arrayOf, bool, enumOf, int, int64, optional, required, str, struct } from './types.js';

/** Jobs that are gone on with after they were cut off: docs/JOBS-THAT-SURVIVE.md. */
export const PERSISTED_JOB_COMMANDS = {
  'x-job-resume': struct('x-job-resume-arg', {
    journal: required(str),
    'job-id': optional(str),
    'if-changed': optional(enumOf('XIfChanged', ['refuse', 'compare', 'ignore'])),
    bitmap: optional(str),
  }),
  'x-job-history': struct('x-job-history-arg', { journal: optional(str) }),
} as const;

export const PERSISTED_JOB_RETURNS = {
  'x-job-resume': struct('XResumedJob', {
    id: required(str),
    left: required(int),
    point: optional(enumOf('XResumedPoint', ['kept', 'new'])),
  }),
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

const COMMON = {
  jobId: required(str),
  speed: required(int64),
  autoFinalize: required(bool),
  autoDismiss: required(bool),
  onReadError: required(ON_ERROR),
  onWriteError: required(ON_ERROR),
  filterNodeName: optional(str),
  persist: required(str),
} as const;

const CHECKED = { compares: optional(bool), verifies: optional(bool), manifest: optional(str) } as const;

const BACKING = struct('XBackingWishes', { filename: optional(str), masksProtocol: optional(bool) });

const JOURNALLED_MIRROR = struct('XJournalledMirror', {
  ...COMMON,
  ...CHECKED,
  kind: required(enumOf('XJournalledKind', ['mirror', 'active-commit'])),
  source: required(REFERENCE),
  target: required(REFERENCE),
  lowest: optional(REFERENCE),
  replaces: optional(REFERENCE),
  sync: required(enumOf('XJournalledSync', ['full', 'top', 'none'])),
  targetIsNew: required(bool),
  granularityBytes: required(int),
  windowBytes: optional(int),
  copyMode: required(enumOf('XCopyMode', ['background', 'write-blocking'])),
  unmap: required(bool),
  targetBacking: required(enumOf('XTargetBacking', ['leave', 'source-chain', 'open', 'later'])),
});

const JOURNALLED_BACKUP = struct('XJournalledBackup', {
  ...COMMON,
  ...CHECKED,
  kind: required(enumOf('XJournalledBackupKind', ['backup'])),
  device: required(REFERENCE),
  target: required(REFERENCE),
  sync: required(enumOf('XJournalledBackupSync', ['full', 'top', 'incremental', 'bitmap'])),
  compress: required(bool),
  onGuestCopyError: required(enumOf('XGuestCopyError', ['break-guest-write', 'break-snapshot'])),
  discardSource: required(bool),
  performance: required(
    struct('XBackupPerformance', {
      offloads: optional(bool),
      maxPieces: optional(int),
      maxPieceBytes: optional(int),
      minClusterBytes: optional(int),
    }),
  ),
  bitmap: optional(
    struct('XJournalledBitmap', {
      name: required(str),
      mode: required(enumOf('XJournalledBitmapMode', ['on-success', 'never', 'always'])),
    }),
  ),
});

const JOURNALLED_COMMIT = struct('XJournalledCommit', {
  ...COMMON,
  kind: required(enumOf('XJournalledCommitKind', ['commit'])),
  device: required(REFERENCE),
  top: required(REFERENCE),
  base: required(REFERENCE),
  backing: required(BACKING),
});

const JOURNALLED_STREAM = struct('XJournalledStream', {
  ...COMMON,
  kind: required(enumOf('XJournalledStreamKind', ['stream'])),
  node: required(REFERENCE),
  base: optional(REFERENCE),
  bottom: optional(REFERENCE),
  backing: required(BACKING),
});

/** The plans of jobs as their journals have them, by their kinds. */
export const JOURNALLED_PLANS = {
  mirror: JOURNALLED_MIRROR,
  'active-commit': JOURNALLED_MIRROR,
  backup: JOURNALLED_BACKUP,
  commit: JOURNALLED_COMMIT,
  stream: JOURNALLED_STREAM,
} as const;
