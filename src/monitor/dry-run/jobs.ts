import { filesBelow } from '../../block/find-node.js';
import type { Node } from '../../block/node.js';
import { type BaseProtection, type CommitEnds, findSharers } from '../../block/shared-bases.js';
import { backupNodes, planBackup } from '../../jobs/plans/backup.js';
import { planCommit } from '../../jobs/plans/commit.js';
import { mirrorNodes, planMirror } from '../../jobs/plans/mirror.js';
import type { BlockJobPlan } from '../../jobs/plans/plan.js';
import { planStream, streamNodes } from '../../jobs/plans/stream.js';
import { survey } from '../../jobs/plans/survey.js';
import type { CommandArguments } from '../../schema/commands.js';
import type { Parts } from '../parts.js';
import { endsOf } from '../stream-commit.js';
import { probeLink } from './link.js';
import { type DryRun, DryRunReport, fileOf } from './report.js';

type Engine = Parts<'graph' | 'jobs' | 'opener' | 'baseProtection'>;

/** What a command tells that was asked what it would do. */
export interface DryRunAnswer {
  'x-dry-run': DryRun;
}

export async function dryStream(
  engine: Engine,
  args: CommandArguments<'block-stream'>,
): Promise<DryRunAnswer> {
  const { graph } = engine;
  const report = new DryRunReport();
  const plan = await report.attempt(async () =>
    planStream(graph, args, await filesBelow(graph, args.device, [args.base])),
  );
  if (plan) {
    report.say(`Data of the layers below flow into [${plan.node.name}].`);
    await surveyJob(engine, plan, streamNodes(graph, plan).node.skipFilters(), report);
  }
  return { 'x-dry-run': report.result() };
}

export async function dryCommit(
  engine: Engine,
  args: CommandArguments<'block-commit'>,
): Promise<DryRunAnswer> {
  const { graph } = engine;
  const report = new DryRunReport();
  const plan = await report.attempt(async () =>
    planCommit(graph, args, await filesBelow(graph, args.device, [args.top, args.base])),
  );
  if (plan) {
    const ends = endsOf(graph, plan);
    const { top, base } = ends;
    report.say(`Data from [${top.name}] down to above [${base.name}] go into [${base.name}].`);
    if (plan.kind !== 'commit')
      report.say(`When the job is ready, completing it makes the guest go over to [${base.name}].`);
    await findSpoiled(engine, args, ends, report);
    await surveyJob(engine, plan, base, report);
  }
  return { 'x-dry-run': report.result() };
}

/** Who stands on what changes: told, and where the bases are protected, in the way. */
async function findSpoiled(
  { opener, baseProtection }: Engine,
  args: CommandArguments<'block-commit'>,
  nodes: CommitEnds,
  report: DryRunReport,
): Promise<void> {
  const { refuses, folders }: BaseProtection = {
    refuses: args['x-protect-shared-bases'] ?? baseProtection.refuses,
    folders: [...baseProtection.folders, ...(args['x-shared-bases-folders'] ?? [])],
  };
  const sharers = (await report.attempt(() => findSharers(opener, nodes, folders))) ?? [];
  for (const { image, base } of sharers) {
    report.spoils(image, `stands on '${base}', whose content changes`);
    if (refuses) report.refuse(`Shared bases are protected: '${image}' stands on '${base}'`);
  }
}

export async function dryMirror(
  engine: Engine,
  args: CommandArguments<'blockdev-mirror'>,
): Promise<DryRunAnswer> {
  const report = new DryRunReport();
  const plan = await report.attempt(() => planMirror(engine.graph, args));
  if (plan) {
    const { source, target } = mirrorNodes(engine.graph, plan);
    report.say(
      `The disk of [${source.name}] is copied into [${target.name}], with what guests write meanwhile.`,
    );
    report.say('When the job is ready, completing it makes the guest go over; cancelling it leaves a copy.');
    checkSizes(report, source, target);
    await surveyJob(engine, plan, target, report);
  }
  return { 'x-dry-run': report.result() };
}

export async function dryBackup(
  engine: Engine,
  args: CommandArguments<'blockdev-backup'>,
): Promise<DryRunAnswer> {
  const report = new DryRunReport();
  const plan = await report.attempt(() => planBackup(engine.graph, args));
  if (plan) {
    report.say(
      `What [${plan.device.name}] holds at the moment of the start goes into [${plan.target.name}].`,
    );
    report.say('Guests go on; what they overwrite is copied first.');
    const { folder, maxBytes = 0, spillFolder } = plan.fleecing ?? {};
    for (const [where, bytes] of [
      [folder, maxBytes],
      [spillFolder, 0],
    ] as const)
      if (where !== undefined) await report.checkFolder(engine.graph.host, where, bytes);
    await surveyJob(engine, plan, backupNodes(engine.graph, plan).target, report);
  }
  return { 'x-dry-run': report.result() };
}

function checkSizes(report: DryRunReport, source: Node, target: Node): void {
  if (source.lengthBytes === target.lengthBytes) return;
  const sizes = `${source.lengthBytes} and ${target.lengthBytes} bytes`;
  report.refuse(`Source and target image have different sizes: ${sizes}`);
}

/** Whether it could begin, what it copies, and whether that finds its room. */
async function surveyJob(
  engine: Engine,
  plan: BlockJobPlan,
  target: Node,
  report: DryRunReport,
): Promise<void> {
  const { graph, jobs } = engine;
  await report.attempt(() => jobs.rehearse(plan));
  const found = await report.attempt(() => survey(graph, plan));
  if (!found) return;
  report.surveyed(found);
  report.ended(found.ends);
  const path = fileOf(target);
  if (path !== undefined) await report.checkRoom(graph.host, path, found.newBytes);
  const { link, refused } = await probeLink(graph, target);
  report.linked(link);
  if (refused !== undefined) report.refuse(refused);
}
