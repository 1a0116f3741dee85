import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { BlockError } from '../../src/base/error.js';
import { SeededRandom, Simulation } from '../../src/host/simulated.js';
import type { JsonObject } from '../../src/schema/types.js';
import type { View } from '../../src/view/model.js';
import { readLiveMap } from '../../src/view/live-map.js';
import { withMap } from '../../src/view/plan/expected.js';
import { planAction } from '../../src/view/plan/plan.js';
import type { Action, Plan } from '../../src/view/plan/types.js';
import { EngineBed } from '../engine/engine-bed.js';
import { contents, deviceChain, viewOf } from './plan-bed.js';

const CLUSTER = 64 * 1024;
const CLUSTERS = 128;
const FOLDER = '/images';

/** What was drawn, and what came of it. */
export interface PlanOutcome {
  readonly chain: string;
  readonly action: Action;
  /** Why the plan was refused. */
  readonly refused?: string;
  readonly bytesAtMost?: number;
  /** As the disk's map said. */
  readonly bytes?: number;
  readonly copiedBytes?: number;
}

/**
 * A random chain, a random action on it, and whether what then happens is what the plan said: the chain afterwards; the
 * bytes copied, no more than said at most, and within a tenth of what was said of the disk's map; and the images that show
 * something else, which are those that it named. All in a simulated machine, which the seed decides too.
 */
export function checkPlan(t: TestContext, seed: number): Promise<PlanOutcome> {
  const simulation = new Simulation({ seed, directories: [FOLDER], latencyMs: 0.1, stuckAfterMs: 60_000 });
  return simulation.run(async () => {
    const bed = new EngineBed(t, { host: simulation.host, folder: FOLDER });
    try {
      return await check(bed, new SeededRandom(seed));
    } finally {
      await bed.engine.close();
    }
  });
}

async function check(bed: EngineBed, random: SeededRandom): Promise<PlanOutcome> {
  const names = [...'ABCDEF'].slice(0, 2 + random.below(5));
  await makeChain(bed, names, random);
  const action = drawAction(bed, names, random);
  const view = await viewOf(bed);
  const chain = names.join(' <-- ');
  let plan: Plan;
  try {
    plan = planAction(view, action);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    return { chain, action, refused: error.message };
  }
  const bytes = await plannedBytes(bed, view, plan);
  const before = await contents(bed, names);
  const copiedBytes = await runPlan(bed, plan);
  const after = await viewOf(bed);
  assert.deepEqual(deviceChain(after), deviceChain(plan.after), 'the chain');
  const { bytesAtMost } = plan;
  assert.ok(copiedBytes <= bytesAtMost, `${copiedBytes} copied, ${bytesAtMost} at most were said`);
  assert.ok(Math.abs(copiedBytes - bytes) <= bytes / 10, `${copiedBytes} copied, ${bytes} were said`);
  // The guest goes on, over all of its disk.
  await bed.guest(`write -P 0x77 0 ${CLUSTERS * CLUSTER}`);
  await bed.guest('flush');
  const shown = await contents(bed, names);
  const own = [deviceChain(plan.after).at(-1), intoWhich(plan)];
  const changed = names.filter((name) => !own.includes(name) && before.get(name) !== shown.get(name));
  assert.deepEqual(plan.invalid.map(({ id }) => id).sort(), changed, 'images that show something else');
  return { chain, action, bytesAtMost, bytes, copiedBytes };
}

/** As the page's server asks for it. */
async function plannedBytes(bed: EngineBed, view: View, plan: Plan): Promise<number> {
  assert.ok(plan.copies);
  const map = await readLiveMap((command, args) => bed.execute(command, args), view, plan.copies.image);
  assert.ok(map);
  const { bytes } = withMap(plan, map);
  assert.ok(bytes !== undefined);
  return bytes;
}

/** Each layer has a cluster that no other has, and random ones. */
async function makeChain(bed: EngineBed, names: readonly string[], random: SeededRandom): Promise<void> {
  for (const [i, name] of names.entries()) {
    if (i === 0) {
      await bed.image(name);
      await bed.device(name);
    } else await bed.snapshot(names[i - 1] ?? '', name);
    const count = random.below(60);
    const start = names.length + random.below(CLUSTERS - names.length - count);
    await bed.guest(`write -P ${0x10 + i} ${i * CLUSTER} ${CLUSTER}`);
    if (count > 0) await bed.guest(`write -P ${0x10 + i} ${start * CLUSTER} ${count * CLUSTER}`);
    const zeroed = Math.min(random.below(8), CLUSTERS - start);
    if (zeroed > 0) await bed.guest(`write -z ${start * CLUSTER} ${zeroed * CLUSTER}`);
  }
  await bed.guest('flush');
}

function drawAction(bed: EngineBed, names: readonly string[], random: SeededRandom): Action {
  const draw = (): string => names[random.below(names.length)] ?? '';
  const top = names.at(-1) ?? '';
  switch (random.below(5)) {
    case 0:
      return { kind: 'stream', image: draw(), ...(random.below(2) === 0 && { base: draw() }) };
    case 1:
      return { kind: 'commit', image: draw(), base: draw() };
    case 2:
      return { kind: 'delete', image: draw() };
    case 3:
      return { kind: 'mirror', image: top, file: bed.path('M.qcow2'), node: 'M' };
    default:
      return { kind: 'backup', image: top, file: bed.path('K.qcow2') };
  }
}

/** Runs all commands of a plan, waits for its job, and answers how many bytes it copied. */
async function runPlan(bed: EngineBed, { commands, jobId = '' }: Plan): Promise<number> {
  for (const { execute, arguments: args, afterReady } of commands) {
    if (afterReady === true) await bed.event('BLOCK_JOB_READY', jobId);
    await bed.execute(execute, afterReady === true ? args : { ...args, 'auto-dismiss': false });
  }
  await bed.event('BLOCK_JOB_COMPLETED', jobId);
  const jobs = (await bed.execute('query-jobs')) as JsonObject[];
  const progress = jobs.find(({ id }) => id === jobId)?.['x-progress'] as JsonObject;
  const phases = progress['phases'] as Array<{ data: number }>;
  await bed.execute('job-dismiss', { id: jobId });
  return phases.reduce((sum, { data }) => sum + data, 0);
}

/** That its content changes is the point. */
function intoWhich({ commands }: Plan): string | undefined {
  const base = commands[0]?.arguments['base-node'];
  return commands[0]?.execute === 'block-commit' && typeof base === 'string' ? base : undefined;
}
