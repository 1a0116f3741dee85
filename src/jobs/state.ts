import { BlockError } from '../base/error.js';

/** JobStatus of QMP. */
export type JobStatus =
  | 'undefined'
  | 'created'
  | 'running'
  | 'paused'
  | 'ready'
  | 'standby'
  | 'waiting'
  | 'pending'
  | 'aborting'
  | 'concluded'
  | 'null';

/** JobVerb of QMP: what a user may ask of a job. */
export type JobVerb =
  'cancel' | 'pause' | 'resume' | 'set-speed' | 'complete' | 'finalize' | 'dismiss' | 'change';

/** Where a job may go from each status. */
export const TRANSITIONS: Readonly<Record<JobStatus, readonly JobStatus[]>> = {
  undefined: ['created'],
  created: ['running', 'aborting', 'null'],
  running: ['paused', 'ready', 'waiting', 'aborting'],
  paused: ['running'],
  ready: ['standby', 'waiting', 'aborting'],
  standby: ['ready'],
  waiting: ['pending', 'aborting'],
  pending: ['aborting', 'concluded'],
  aborting: ['concluded'],
  concluded: ['null'],
  null: [],
};

const AT_WORK: readonly JobStatus[] = ['created', 'running', 'paused', 'ready', 'standby'];

/** In which statuses each verb is taken. */
export const VERBS: Readonly<Record<JobVerb, readonly JobStatus[]>> = {
  cancel: [...AT_WORK, 'waiting', 'pending'],
  pause: AT_WORK,
  resume: AT_WORK,
  'set-speed': AT_WORK,
  complete: ['ready', 'standby'],
  finalize: ['pending'],
  dismiss: ['concluded'],
  change: ['running', 'paused', 'ready', 'standby'],
};

export function mayFollow(from: JobStatus, to: JobStatus): boolean {
  return TRANSITIONS[from].includes(to);
}

/** It copies, or waits to go on with that. */
export function goesOn(status: JobStatus): boolean {
  return status === 'running' || status === 'paused' || status === 'ready' || status === 'standby';
}

/** Throws kind 'invalid' in QEMU's words when the verb does not fit the status. */
export function checkVerb(id: string, status: JobStatus, verb: JobVerb): void {
  if (VERBS[verb].includes(status)) return;
  throw new BlockError('invalid', `Job '${id}' in state '${status}' cannot accept command verb '${verb}'`);
}

/** Throws kind 'invalid' in QEMU's words: a letter, then letters, digits, '-', '.', '_'. */
export function checkJobId(id: string): void {
  if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) throw new BlockError('invalid', `Invalid job ID '${id}'`);
}
