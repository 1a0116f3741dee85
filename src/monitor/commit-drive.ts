import { deferred } from '../base/async.js';
import { BlockError, toBlockError } from '../base/error.js';
import type { Node } from '../block/node.js';
import { checkSharers } from '../block/shared-bases.js';
import { JobManager } from '../jobs/manager.js';
import { planCommit } from '../jobs/plans/commit.js';
import { assertChainNotBlocked } from '../jobs/plans/nodes.js';
import type { Parts } from './parts.js';
import { listDisks } from './query.js';

export type CommittingDrives = Parts<
  'graph' | 'opener' | 'devices' | 'drives' | 'baseProtection' | 'warn' | 'moves'
>;

const JOB_ID = 'commit';

/** `commit` of the human monitor; answers in QEMU's words what went wrong, empty when nothing did. */
export async function commitDrives(engine: CommittingDrives, wanted: string): Promise<string> {
  const disks = listDisks(engine).map(({ backend }) => ({ name: backend.name, node: backend.root?.node }));
  try {
    if (wanted === 'all') {
      for (const { name, node } of disks)
        if (node?.backingNode()) await commitIntoBacking(engine, name || node.name, node);
      return '';
    }
    const disk = disks.find(({ name }) => name === wanted);
    if (!disk) return `Device '${wanted}' not found\n`;
    if (!disk.node) return `Device '${wanted}' has no medium\n`;
    await commitIntoBacking(engine, wanted, disk.node);
    return '';
  } catch (error) {
    return `'commit' error for '${wanted}': ${reasonOf(toBlockError(error))}\n`;
  }
}

/**
 * Brings what an image holds into its backing file, durably, and empties the image, which stays where it is. Guests go on
 * while most of it is copied, and wait for the last of it: what they write later is in the image.
 * Errors: unsupported without a backing file; those of a commit job.
 */
async function commitIntoBacking(engine: CommittingDrives, device: string, root: Node): Promise<void> {
  const { graph, opener, baseProtection, warn } = engine;
  engine.moves.assertOwner();
  const top = root.skipFilters();
  const base = top.backingNode();
  if (!base) throw new BlockError('unsupported', 'Operation not supported');
  assertChainNotBlocked(root, base.below?.node);
  const sharers = await checkSharers(opener, { device: top, top, base }, baseProtection);
  if (sharers !== undefined) warn(`warning: commit: ${sharers}`);
  const ready = deferred();
  // A job of which nobody hears but by what it does.
  const jobs = new JobManager(opener, (event) => void (event === 'BLOCK_JOB_READY' && ready.resolve()));
  const job = await jobs.start(
    planCommit(graph, { device, 'top-node': top.name, 'base-node': base.name, 'job-id': JOB_ID }),
  );
  await Promise.race([ready.promise, job.concluded]);
  const finish = async (): Promise<void> => {
    if (!job.isOver) await job.cancel({ force: false, softOnReady: true });
    await job.result();
    await top.instance.makeEmpty?.().finally(() => top.contentReplaced());
  };
  await graph.drained([top], finish, jobs.placeOf(job, top));
}

const REASONS: { readonly [kind: string]: string } = {
  busy: 'Device or resource busy',
  permission: 'Permission denied',
  'read-only': 'Permission denied',
};

function reasonOf({ kind, message }: BlockError): string {
  return REASONS[kind] ?? message;
}
