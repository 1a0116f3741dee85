import assert from 'node:assert/strict';
import { checkQcow2 } from '../../src/drivers/qcow2/check/check.js';
import { qcow2Driver } from '../../src/drivers/qcow2/driver.js';
import { type CrashState, crashStates, drawnCrashStates, seededBelow } from './crash-states.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from './recorded-disk.js';

/** One run of a workload on 'top' (over 'base', if it has one), with flush number `drop` left out. */
export interface Run {
  top: RecordedDisk;
  base: Buffer | undefined;
  /** Why a crash state is wrong. */
  problem(content: Buffer, marks: readonly string[]): Promise<string | undefined>;
}

export type Workload = (drop: number | undefined) => Promise<Run>;

export async function firstProblem(
  run: Run,
  seed: number,
  states = drawnCrashStates,
): Promise<string | undefined> {
  for (const state of states(run.top, seededBelow(seed))) {
    const problem = await run.problem(state.content, state.marks).catch((error: unknown) => describe(error));
    if (problem !== undefined) return `${describeState(state)}: ${problem}`;
  }
  return undefined;
}

function describe(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}

export function describeState(state: CrashState): string {
  return `after [${state.marks.join(' ')}], survived ${state.survived}`;
}

/** Flushes of a run, up to its first mark with `untilMark`, before which something had been written. */
export function flushesThatMatter(disk: RecordedDisk, untilMark = false): number[] {
  const found: number[] = [];
  let wrote = false;
  let index = 0;
  for (const event of disk.log) {
    if (untilMark && event.kind === 'mark') break;
    if (event.kind === 'write') wrote = true;
    if (event.kind !== 'flush') continue;
    if (wrote) found.push(index);
    wrote = false;
    index++;
  }
  return found;
}

/** No crash breaks the workload, and each of its flushes is needed for that. */
export async function everyFlushIsNeeded(workload: Workload, flushesAtLeast: number): Promise<void> {
  const { needed, spare } = await judgeFlushes(workload);
  assert.ok(needed.length + spare.length >= flushesAtLeast, `${needed.length + spare.length} flushes`);
  for (const drop of spare) assert.fail(`without flush ${drop} no crash shows a difference`);
}

/** No crash breaks the workload; which of its flushes are needed for that, and which this workload does not miss. */
export async function judgeFlushes(workload: Workload): Promise<{ needed: number[]; spare: number[] }> {
  const whole = await workload(undefined);
  assert.equal(await firstProblem(whole, 1), undefined);
  const [needed, spare]: [number[], number[]] = [[], []];
  for (const drop of flushesThatMatter(whole.top)) {
    const problem = await firstProblem(await workload(drop), 1, crashStates);
    (problem === undefined ? spare : needed).push(drop);
  }
  return { needed, spare };
}

/** The image as a crash left it, for reading. */
export async function reopened(content: Buffer, base: Buffer | undefined): Promise<OpenDisk> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('top', content);
  if (base) shelf.put('base', base);
  return shelf.open('top', { readOnly: true });
}

/** What a check says of it. */
export async function corruption(content: Buffer): Promise<string | undefined> {
  const found = await checkQcow2(childOf(new RecordedDisk(content)));
  return found.corruptions + found.checkErrors > 0 ? found.messages.join('; ') : undefined;
}
