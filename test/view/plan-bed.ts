import { createHash } from 'node:crypto';
import { Bench } from '../../src/programs/demo/session.js';
import { readAnswers } from '../../src/view/answers.js';
import { buildView } from '../../src/view/build.js';
import { imageOf, type View } from '../../src/view/model.js';
import { planAction } from '../../src/view/plan/plan.js';
import type { Action, Plan } from '../../src/view/plan/types.js';
import type { EngineBed } from '../engine/engine-bed.js';

export async function viewOf({ engine }: EngineBed): Promise<View> {
  return buildView(
    await readAnswers((command, args = {}) => engine.hub.execute(command, args) as Promise<never>),
  );
}

interface Done {
  plan: Plan;
  before: View;
  after: View;
}

/** Plans an action, does what the plan says, and waits for its job. */
export async function perform(bed: EngineBed, action: Action): Promise<Done> {
  const before = await viewOf(bed);
  const plan = planAction(before, action);
  for (const { execute, arguments: args, afterReady, mayBeGone } of plan.commands) {
    if (afterReady === true) await bed.event('BLOCK_JOB_READY', plan.jobId ?? '');
    const done = bed.execute(execute, args);
    await (mayBeGone === true ? done.catch(() => undefined) : done);
  }
  if (plan.jobId !== undefined) await bed.event('BLOCK_JOB_COMPLETED', plan.jobId);
  return { plan, before, after: await viewOf(bed) };
}

/** The chain that the device uses, base first, filters left out. */
export function deviceChain(view: View): string[] {
  const top = view.users.find(({ kind }) => kind === 'device')?.imageId;
  const chain = view.chains.find(({ images }) => images.at(-1) === top);
  return chain?.images.filter((id) => imageOf(view, id)?.kind === 'image') ?? [];
}

/** What each image shows, opened by itself. */
export async function contents(bed: EngineBed, names: readonly string[]): Promise<Map<string, string>> {
  const bench = new Bench(bed.engine.host);
  const found = new Map<string, string>();
  for (const name of names) {
    const file = { driver: 'file', filename: bed.path(`${name}.qcow2`) };
    const { disk, close } = await bench.open({ driver: 'qcow2', file, 'force-share': true }, true);
    const bytes = Buffer.alloc(disk.lengthBytes);
    await disk.read(0, bytes);
    await close();
    found.set(name, createHash('sha256').update(bytes).digest('hex'));
  }
  return found;
}
