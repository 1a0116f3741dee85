import { randomInt } from 'node:crypto';
import { test } from 'node:test';
import { checkPlan } from './random-plans.js';

/** PLAN_SEED=7 is one of them again; PLAN_SEEDS=1000 are more. */
const first = Number(process.env['PLAN_SEED'] ?? randomInt(1_000_000_000));
const count = Number(process.env['PLAN_SEEDS'] ?? (process.env['PLAN_SEED'] === undefined ? 8 : 1));

test(`what happens to random chains is what plans of it said, from seed ${first}`, async (t) => {
  let refused = 0;
  for (let seed = first; seed < first + count; seed++)
    await t.test(`seed ${seed}`, async (inner) => {
      const outcome = await checkPlan(inner, seed);
      if (outcome.refused !== undefined) refused++;
      inner.diagnostic(JSON.stringify(outcome));
    });
  t.diagnostic(`${count - refused} plans carried out, ${refused} refused`);
});
