import { filesBelow } from '../block/find-node.js';
import type { Graph } from '../block/graph.js';
import { checkSharers, type CommitEnds } from '../block/shared-bases.js';
import { commitNodes, type CommitPlan, planCommit } from '../jobs/plans/commit.js';
import { mirrorNodes, type MirrorPlan } from '../jobs/plans/mirror.js';
import { planStream } from '../jobs/plans/stream.js';
import type { CommandArguments } from '../schema/commands.js';
import type { Parts } from './parts.js';

type Engine = Parts<'command' | 'graph' | 'jobs' | 'opener' | 'baseProtection' | 'warn'>;

export function registerStreamAndCommit(engine: Engine): void {
  const { graph, jobs } = engine;
  engine.command('block-stream', async (args) => {
    const files = await filesBelow(graph, args.device, [args.base]);
    await jobs.start(planStream(graph, args, files));
  });
  engine.command('block-commit', async (args) => {
    const files = await filesBelow(graph, args.device, [args.top, args.base]);
    const plan = planCommit(graph, args, files);
    await protectBases(engine, args, plan);
    await jobs.start(plan);
  });
}

/** Errors: busy, limit, where the bases are protected; else the job does not wait for what is only told. */
async function protectBases(
  engine: Engine,
  args: CommandArguments<'block-commit'>,
  plan: CommitPlan | MirrorPlan,
): Promise<void> {
  const { graph, opener, baseProtection, warn } = engine;
  const refuses = args['x-protect-shared-bases'] ?? baseProtection.refuses;
  const folders = [...baseProtection.folders, ...(args['x-shared-bases-folders'] ?? [])];
  const checked = checkSharers(opener, endsOf(graph, plan), { refuses, folders });
  if (refuses) await checked;
  else
    checked.then(
      (text) => text !== undefined && warn(`warning: block-commit: ${text}`),
      () => undefined,
    );
}

/** What a commit is of, whichever way it is done. */
export function endsOf(graph: Graph, plan: CommitPlan | MirrorPlan): CommitEnds {
  if (plan.kind === 'commit') return commitNodes(graph, plan);
  const { source, target } = mirrorNodes(graph, plan);
  return { device: source, top: source, base: target };
}
