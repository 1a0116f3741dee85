import type { SpawnSyncReturns } from 'node:child_process';

/** QEMU counts processor time by a clock that now and then says nothing happened, and fails then. */
const NO_TIME = 'accurate CPU usage';
const TRIES = 60;

/** What `run` of a program of QEMU's answers, tried again while that clock fails. */
export function untilTimed(run: () => SpawnSyncReturns<string>): SpawnSyncReturns<string> {
  for (let tries = 1; ; tries++) {
    const done = run();
    if (tries === TRIES || !`${done.stdout}${done.stderr}`.includes(NO_TIME)) return done;
  }
}
