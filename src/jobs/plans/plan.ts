import { given, type Given } from '../../base/given.js';
import type { Node } from '../../block/node.js';
import type { ErrorPolicy } from '../error-policy.js';
import type { BackupPlan } from './backup.js';
import type { CommitPlan } from './commit.js';
import type { CreatePlan } from './create.js';
import type { MirrorPlan } from './mirror.js';
import type { StreamPlan } from './stream.js';

/**
 * What a job is to do, as data: nothing but JSON, nodes by name, options with their defaults. Whoever has one starts the
 * job from it, or keeps it.
 */
export type JobPlan = BlockJobPlan | CreatePlan;
export type BlockJobPlan = StreamPlan | CommitPlan | MirrorPlan | BackupPlan;

/** What every block job takes. */
export interface CommonPlan {
  jobId: string;
  /** Bytes per second; 0: no limit. A bigint from 2^53 on: clients that want none give the largest number there is. */
  speed: number | bigint;
  autoFinalize: boolean;
  autoDismiss: boolean;
  /** What follows an error of a request that reads the source, and of one that writes. */
  onReadError: ErrorPolicy;
  onWriteError: ErrorPolicy;
  /** Names the job's filter node, which is then no longer hidden. */
  filterNodeName?: string;
  /** The journal's path: the job can be gone on with when it was cut off. */
  persist?: string;
}

/** Of a job that makes a copy. */
export interface CheckedPlan {
  /** The target may be an older copy: only what differs is sent. */
  compares?: boolean;
  /** It is read back, and what is not as it was sent is copied again. */
  verifies?: boolean;
  /** Where the hashes of its chunks are written. */
  manifest?: string;
}

export function checkedPlan(request: {
  'x-compare'?: boolean;
  'x-verify'?: boolean;
  'x-manifest'?: string;
}): CheckedPlan {
  return given({
    compares: request['x-compare'],
    verifies: request['x-verify'],
    manifest: request['x-manifest'],
  });
}

/** The arguments that commands share. */
export interface CommonRequest {
  'job-id'?: string;
  speed?: number | bigint;
  'auto-finalize'?: boolean;
  'auto-dismiss'?: boolean;
  'filter-node-name'?: string;
  'on-error'?: ErrorPolicy;
  'on-source-error'?: ErrorPolicy;
  'on-target-error'?: ErrorPolicy;
  'x-persist'?: string;
}

/**
 * A job without an id has that of the drive that it is for. Ids and speeds are checked when the job is made, after
 * everything else, as QEMU does.
 */
export function commonPlan(request: CommonRequest, node: Node): Given<CommonPlan> {
  return given({
    jobId: request['job-id'] ?? node.driveName,
    speed: request.speed ?? 0,
    autoFinalize: request['auto-finalize'] ?? true,
    autoDismiss: request['auto-dismiss'] ?? true,
    onReadError: request['on-error'] ?? request['on-source-error'] ?? 'report',
    onWriteError: request['on-error'] ?? request['on-target-error'] ?? 'report',
    filterNodeName: request['filter-node-name'],
    persist: request['x-persist'],
  });
}
