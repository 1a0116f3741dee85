import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { BlockError } from '../../src/base/error.js';
import { SeededRandom } from '../../src/host/simulated-random.js';
import type { JsonObject } from '../../src/schema/types.js';
import { planAction } from '../../src/view/plan/plan.js';
import type { Action, Plan } from '../../src/view/plan/types.js';
import { EngineBed } from '../engine/engine-bed.js';
import { contents, deviceChain, viewOf } from './plan-bed.js';

const CLUSTER = 64 * 1024;
const CLUSTERS = 128;
/** Header, tables and their like, of each image that flows. */
const METADATA_BYTES = 256 * 1024;

/** What was drawn, and what came of it. */
export interface PlanOutcome {
  readonly chain: string;
  readonly action: Action;
  /** Why the plan was refused. */
  readonly refused?: string;
  readonly bytesAtMost?: number;
  readonly copiedBytes?: number;
}

/**
 * A random chain, a random action on it, and whether what then happens is what the plan said: the chain afterwards; the
 * bytes copied, no more than said, and within a tenth where nothing is hidden by another layer; and the images that show
 * something else, which are those that it named.
 */
export async function checkPlan(t: TestContext, seed: number): Promise<PlanOutcome> {
  const random = new SeededRandom(seed);
  const names = [...'ABCDEF'].slice(0, 2 + random.below(5));
  const bed = new EngineBed(t);
  const owned = await makeChain(bed, names, random);
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
  const before = await contents(bed, names);
  const copiedBytes = await runPlan(bed, plan);
  const after = await viewOf(bed);
  assert.deepEqual(deviceChain(after), deviceChain(plan.after), 'the chain');
  const { bytesAtMost } = plan;
  assert.ok(copiedBytes <= bytesAtMost, `${copiedBytes} copied, ${bytesAtMost} at most were said`);
  const layers = flowingLayers(action, names, owned);
  const clusters = layers.flatMap((one) => [...one]);
  // Where no layer hides what another one holds, all that they hold is copied.
  if (new Set(clusters).size === clusters.length)
    assert.ok(
      copiedBytes >= 0.9 * (bytesAtMost - layers.length * METADATA_BYTES),
      `${copiedBytes} copied, ${bytesAtMost} were said`,
    );
  // The guest goes on, over all of its disk.
  await bed.guest(`write -P 0x77 0 ${CLUSTERS * CLUSTER}`);
  await bed.guest('flush');
  const shown = await contents(bed, names);
  const own = [deviceChain(plan.after).at(-1), intoWhich(plan)];
  const changed = names.filter((name) => !own.includes(name) && before.get(name) !== shown.get(name));
  assert.deepEqual(plan.invalid.map(({ id }) => id).sort(), changed, 'images that show something else');
  return { chain, action, bytesAtMost, copiedBytes };
}

/** Each layer has a cluster that no other has, and random ones. Answers which, by layer. */
async function makeChain(
  bed: EngineBed,
  names: readonly string[],
  random: SeededRandom,
): Promise<ReadonlySet<number>[]> {
  const owned: Array<Set<number>> = [];
  for (const [i, name] of names.entries()) {
    if (i === 0) {
      await bed.image(name);
      await bed.device(name);
    } else await bed.snapshot(names[i - 1] ?? '', name);
    const clusters = new Set([i]);
    const count = random.below(60);
    const start = names.length + random.below(CLUSTERS - names.length - count);
    for (let cluster = start; cluster < start + count; cluster++) clusters.add(cluster);
    await bed.guest(`write -P ${0x10 + i} ${i * CLUSTER} ${CLUSTER}`);
    if (count > 0) await bed.guest(`write -P ${0x10 + i} ${start * CLUSTER} ${count * CLUSTER}`);
    owned.push(clusters);
  }
  await bed.guest('flush');
  return owned;
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

/** What the layers hold that take part; of a stream and a deletion the image that it ends in, too. */
function flowingLayers(
  action: Action,
  names: readonly string[],
  owned: ReadonlyArray<ReadonlySet<number>>,
): ReadonlyArray<ReadonlySet<number>> {
  const at = (name: string | undefined): number => names.indexOf(name ?? '');
  switch (action.kind) {
    case 'stream':
    case 'commit':
      return owned.slice(at(action.base) + 1, at(action.image) + 1);
    case 'delete':
      return owned.slice(at(action.image), at(action.image) + 2);
    default:
      return owned;
  }
}

/** That its content changes is the point. */
function intoWhich({ commands }: Plan): string | undefined {
  const base = commands[0]?.arguments['base-node'];
  return commands[0]?.execute === 'block-commit' && typeof base === 'string' ? base : undefined;
}
