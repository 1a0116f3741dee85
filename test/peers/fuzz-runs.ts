import assert from 'node:assert/strict';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { SeededRandom } from '../../src/host/simulated-random.js';
import { scratch } from './daemon.js';
import type { Json, Pair } from './fuzz-pair.js';

/** FUZZ_SECONDS: how long to go on; FUZZ_FIRST: from which seed on; FUZZ_SEED: only this one, with a trace. */
const SECONDS = Number(process.env['FUZZ_SECONDS'] ?? 20);
const FIRST_SEED = Number(process.env['FUZZ_FIRST'] ?? 1);
const ONLY_SEED = process.env['FUZZ_SEED'];

/** Commands that a pair of servers is given, and what differed. */
export interface FuzzRun {
  readonly trace: string;
  /** In the wording of refusals. */
  readonly differences: readonly string[];
  readonly steps: number;
  /** Answers false when it ended early. */
  all(): Promise<unknown>;
}

export interface Begun {
  readonly pair: Pair;
  readonly run: FuzzRun;
  /** What the servers began with, where the seed decides that. */
  readonly of?: string;
}

/**
 * Runs one seed after the other, each in a folder of its own. `knownSeeds`: so many hold; only who asks for more time looks
 * for new differences.
 */
export async function runSeeds(
  context: TestContext,
  knownSeeds: number,
  makeImages: (folder: string) => void,
  begin: (seed: number, images: string, folder: string) => Promise<Begun>,
): Promise<void> {
  const folder = scratch(context);
  const images = join(folder, 'images');
  makeImages(images);
  const end = Date.now() + SECONDS * 1000;
  const mostRuns = process.env['FUZZ_SECONDS'] === undefined ? knownSeeds : Infinity;
  const differences: string[] = [];
  let seed = Number(ONLY_SEED ?? FIRST_SEED);
  let steps = 0;
  do {
    const run = await runSeed(context, seed, await begin(seed, images, join(folder, `seed${seed}`)));
    differences.push(...run.differences.map((difference) => `FUZZ_SEED=${seed} ${difference}`));
    steps += run.steps;
    seed++;
  } while (ONLY_SEED === undefined && Date.now() < end && seed < FIRST_SEED + mostRuns);
  assert.equal(differences.join('\n'), '');
  context.diagnostic(`seeds ${ONLY_SEED ?? FIRST_SEED} to ${seed - 1}, ${steps} commands`);
}

async function runSeed(context: TestContext, seed: number, { pair, run, of }: Begun): Promise<FuzzRun> {
  try {
    const isWhole = await run.all();
    if (ONLY_SEED !== undefined)
      context.diagnostic(`${run.trace}${isWhole === false ? '\nended early' : ''}`);
    return run;
  } catch (error) {
    const what = error instanceof Error ? error.message : String(error);
    const seedText = `FUZZ_SEED=${seed}${of === undefined ? '' : ` of ${of}`}`;
    throw new Error(`${what}\n${seedText}\n${run.trace}\n${pair.output}`, { cause: error });
  } finally {
    await pair.kill();
  }
}

/** What is drawn from one seed. */
export class Draws {
  protected readonly random: SeededRandom;

  constructor(seed: number) {
    this.random = new SeededRandom(seed);
  }

  /** True once in `n` times. */
  chance(n: number): boolean {
    return this.random.below(n) === 0;
  }

  pick<T>(items: readonly T[], otherwise: T): T {
    return items[this.random.below(Math.max(1, items.length))] ?? otherwise;
  }

  /** Some of the members. */
  protected some(members: Json, n = 3): Json {
    return Object.fromEntries(Object.entries(members).filter(() => this.chance(n)));
  }

  /** One of these, each as often as its weight says. */
  protected weighted<T>(makers: ReadonlyArray<readonly [weight: number, make: () => T]>): T {
    let at = this.random.below(makers.reduce((sum, [weight]) => sum + weight, 0));
    for (const [weight, make] of makers) {
      if (at < weight) return make();
      at -= weight;
    }
    throw new Error('no command');
  }
}
