import type { Graph } from '../../src/block/graph.js';
import { given } from '../../src/base/given.js';
import type { Node } from '../../src/block/node.js';
import type { Job } from '../../src/jobs/job.js';
import type { ErrorPolicy } from '../../src/jobs/error-policy.js';
import type { JobManager } from '../../src/jobs/manager.js';
import { planBackup } from '../../src/jobs/plans/backup.js';
import { planCommit } from '../../src/jobs/plans/commit.js';
import { type MirrorTarget, planMirror } from '../../src/jobs/plans/mirror.js';
import type { CommonRequest, JobPlan } from '../../src/jobs/plans/plan.js';
import { planStream } from '../../src/jobs/plans/stream.js';

/** What jobs live in: an engine, or a bench without programs around it. */
export interface Place {
  graph: Graph;
  jobs: JobManager;
}

export interface CommonArguments {
  jobId: string;
  speed?: number;
  autoFinalize?: boolean;
  autoDismiss?: boolean;
  filterNodeName?: string;
  onReadError?: ErrorPolicy;
  onWriteError?: ErrorPolicy;
}

export interface StreamArguments extends CommonArguments {
  node: Node;
  base?: Node;
  bottom?: Node;
  backingFile?: string;
}

export interface CommitArguments extends CommonArguments {
  device: Node;
  top: Node;
  base: Node;
  backingFile?: string;
}

export interface MirrorArguments extends CommonArguments {
  device: Node;
  target: Node;
  sync: 'full' | 'top' | 'none';
  granularity?: number;
  bufSize?: number;
  copyMode?: 'background' | 'write-blocking';
  replaces?: Node;
  targetIsNew?: boolean;
  targetBacking?: MirrorTarget['backing'];
  unmap?: boolean;
}

export interface BackupArguments extends CommonArguments {
  device: Node;
  target: Node;
  sync: 'full' | 'top' | 'none' | 'incremental' | 'bitmap';
  bitmap?: string;
  bitmapMode?: 'on-success' | 'never' | 'always';
}

function common(args: CommonArguments): CommonRequest {
  return given({
    'job-id': args.jobId,
    speed: args.speed,
    'auto-finalize': args.autoFinalize,
    'auto-dismiss': args.autoDismiss,
    'filter-node-name': args.filterNodeName,
  });
}

/** Every job starts from a plan that has been text. Error policies may be given apart for all kinds. */
function start({ jobs }: Place, plan: JobPlan, { onReadError, onWriteError }: CommonArguments): Promise<Job> {
  const whole = { ...plan, ...given({ onReadError, onWriteError }) };
  return jobs.start(JSON.parse(JSON.stringify(whole)) as JobPlan);
}

export async function startStream(place: Place, args: StreamArguments): Promise<Job> {
  const rest = given({
    'base-node': args.base?.name,
    bottom: args.bottom?.name,
    'backing-file': args.backingFile,
  });
  return start(place, planStream(place.graph, { ...common(args), device: args.node.name, ...rest }), args);
}

export async function startCommit(place: Place, args: CommitArguments): Promise<Job> {
  const { device, top, base } = args;
  const names = { device: device.name, 'top-node': top.name, 'base-node': base.name };
  const plan = planCommit(place.graph, {
    ...common(args),
    ...names,
    ...given({ 'backing-file': args.backingFile }),
  });
  return start(place, plan, args);
}

export async function startMirror(place: Place, args: MirrorArguments): Promise<Job> {
  const request = {
    ...common(args),
    device: args.device.name,
    target: args.target.name,
    sync: args.sync,
    ...given({
      granularity: args.granularity,
      'buf-size': args.bufSize,
      'copy-mode': args.copyMode,
      replaces: args.replaces?.name,
    }),
  };
  const how = given({ isNew: args.targetIsNew, backing: args.targetBacking, unmap: args.unmap });
  return start(place, planMirror(place.graph, request, how), args);
}

export async function startBackup(place: Place, args: BackupArguments): Promise<Job> {
  const request = {
    ...common(args),
    device: args.device.name,
    target: args.target.name,
    sync: args.sync,
    ...given({ bitmap: args.bitmap, 'bitmap-mode': args.bitmapMode }),
  };
  return start(place, planBackup(place.graph, request), args);
}
