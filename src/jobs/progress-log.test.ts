import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MiB } from '../base/limits.js';
import { ProgressLog, type Sight } from './progress-log.js';

const START: Sight = {
  phase: 'copying',
  ...{ doneBytes: 0, dataBytes: 0, zeroBytes: 0, skippedBytes: 0, remainingBytes: 100 * MiB },
  following: 'copies',
  isHeld: false,
};

/** One look a second; each is what the job shows by then. */
function told(sights: readonly Sight[]): ReturnType<ProgressLog['tell']> {
  const log = new ProgressLog(0);
  log.look(START, 0);
  sights.forEach((sight, second) => log.look(sight, (second + 1) * 1000));
  return log.tell(sights.at(-1) ?? START, sights.length * 1000);
}

/** Copied `done` MiB, of which `left` are left: data. */
function sight(done: number, left: number, more: Partial<Sight> = {}): Sight {
  return { ...START, doneBytes: done * MiB, dataBytes: done * MiB, remainingBytes: left * MiB, ...more };
}

test('a mirror that copies faster than the guest writes says when it is in step', () => {
  // 20 MiB a second are copied, and 4 of them the guest makes dirty again.
  const { outlook, secondsLeft, dirtyBytesPerSecond } = told([sight(20, 84), sight(40, 68)]);
  assert.equal(outlook, 'converges');
  assert.equal(Math.round(dirtyBytesPerSecond / MiB), 4);
  assert.equal(Math.round((secondsLeft ?? 0) * 100), 425);
});

test('one that the guest outruns says how it will be in step', () => {
  const { outlook, secondsLeft } = told([sight(10, 110), sight(20, 120)]);
  assert.equal(outlook, 'by-writing-to-both');
  assert.equal(secondsLeft, 12);
});

test('one that copies nothing is stalled, and has no time left; one that rests is held', () => {
  const still = [sight(0, 100), sight(0, 100)];
  assert.equal(told(still).outlook, 'stalled');
  assert.equal(told(still).secondsLeft, undefined);
  assert.equal(told([sight(0, 100, { isHeld: true })]).outlook, 'held');
  assert.equal(told([sight(100, 0)]).outlook, 'in-step');
});

test('what is told as done goes back neither when a piece fails nor when the guest writes', () => {
  const log = new ProgressLog(0);
  const seen: number[][] = [];
  for (const [second, one] of [sight(50, 50), sight(40, 60), sight(45, 400), sight(60, 385)].entries()) {
    log.look(one, second * 1000);
    const { doneBytes, percent, stages } = log.tell(one, second * 1000);
    seen.push([doneBytes / MiB, percent, (stages[2]?.doneBytes ?? 0) / MiB]);
  }
  assert.deepEqual(seen, [
    [50, 50, 50],
    [50, 50, 50],
    [50, 50, 50],
    [60, 50, 60],
  ]);
});

test('nothing to copy is all of it as soon as guests are followed, and not before', () => {
  const log = new ProgressLog(0);
  for (const [phase, percent] of [
    ['copying', 0],
    ['following', 100],
  ] as const) {
    log.look(sight(0, 0, { phase }), 1000);
    assert.equal(log.tell(sight(0, 0, { phase }), 1000).percent, percent);
  }
});

test('each stage tells what was done in it, and the ones ahead what is left for them', () => {
  const log = new ProgressLog(0);
  const zeroing = { doneBytes: 30 * MiB, leftBytes: 70 * MiB };
  log.look(sight(0, 0, { phase: 'zeroing', zeroing }), 1000);
  const early = log.tell(sight(0, 10, { phase: 'zeroing', zeroing }), 1000);
  assert.equal(early.stage, 'zero');
  assert.deepEqual(
    early.stages.map(({ stage, leftBytes }) => [stage, leftBytes / MiB]),
    [
      ['prepare', 0],
      ['zero', 70],
      ['copy', 10],
      ['follow', 0],
      ['pivot', 0],
    ],
  );
  const done = { doneBytes: 100 * MiB, leftBytes: 0 };
  log.look(sight(80, 20, { zeroing: done, zeroBytes: 10 * MiB }), 2000);
  log.look(sight(100, 0, { zeroing: done, zeroBytes: 10 * MiB }), 3000);
  log.look(sight(130, 5, { zeroing: done, zeroBytes: 10 * MiB, phase: 'following' }), 4000);
  const late = log.tell(sight(130, 5, { zeroing: done, phase: 'following' }), 4000);
  assert.deepEqual(
    late.stages.map(({ doneBytes, zeroBytes, leftBytes }) =>
      [doneBytes, zeroBytes, leftBytes].map((n) => n / MiB),
    ),
    [
      [0, 0, 0],
      [100, 100, 0],
      [100, 10, 0],
      [30, 0, 5],
      [0, 0, 0],
    ],
  );
});
