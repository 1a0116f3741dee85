import assert from 'node:assert/strict';
import { test } from 'node:test';
import { checkJobId, checkVerb, type JobStatus, type JobVerb, VERBS } from './state.js';

/** What QEMU 7.2 takes in each status, and `change`, of QEMU 8.2. */
const TAKEN: ReadonlyArray<readonly [JobStatus, readonly JobVerb[]]> = [
  ['created', ['cancel', 'pause', 'resume', 'set-speed']],
  ['running', ['cancel', 'pause', 'resume', 'set-speed', 'change']],
  ['paused', ['cancel', 'pause', 'resume', 'set-speed', 'change']],
  ['ready', ['cancel', 'pause', 'resume', 'set-speed', 'complete', 'change']],
  ['standby', ['cancel', 'pause', 'resume', 'set-speed', 'complete', 'change']],
  ['waiting', ['cancel']],
  ['pending', ['cancel', 'finalize']],
  ['aborting', []],
  ['concluded', ['dismiss']],
];

test('each verb is taken in the statuses in which QEMU takes it, and refused by name in the others', () => {
  for (const [status, taken] of TAKEN) {
    for (const verb of Object.keys(VERBS) as JobVerb[]) {
      const check = (): void => checkVerb('j', status, verb);
      if (taken.includes(verb)) check();
      else
        assert.throws(check, {
          message: `Job 'j' in state '${status}' cannot accept command verb '${verb}'`,
        });
    }
  }
});

test("a job's id begins with a letter", () => {
  for (const id of ['a', 'Job-1.x_y']) checkJobId(id);
  for (const id of ['', '1', '-a', '.a', 'a b', 'a\n', 'ä'])
    assert.throws(() => checkJobId(id), { message: `Invalid job ID '${id}'` });
});
