import type { GuestProgram } from '../../attach/guest-program.js';
import { BlockError } from '../../base/error.js';
import type { Engine } from '../../monitor/engine.js';
import type { GuestProcess } from './guest-process.js';

/** What a machine that is told to end has for it. */
const END_MS = 10_000;
/** When its disk does not answer it any more, it cannot end well. */
const FAILED_END_MS = 1_000;

/** A machine whose guest runs elsewhere on this host. */
export interface RunningMachine {
  /** What it ended with that was no good end. */
  readonly failure: string | undefined;
  /** It ends, well if it can, before its disks do. */
  end(engine: Engine): Promise<void>;
}

/** Of a guest's program that cannot be asked yet. */
export const NOT_YET: Pick<GuestProgram, 'runHuman' | 'comeToRest' | 'goOn' | 'passed'> = {
  runHuman: () => Promise.reject(notYet()),
  comeToRest: () => notYet().message,
  goOn: () => undefined,
  passed: () => {
    throw notYet();
  },
};

function notYet(): BlockError {
  return new BlockError('busy', 'The machine has not started');
}

/** Has it end by `quit`, and after a while by force. False: it had ended. */
export async function endGuest(
  engine: Engine,
  guest: GuestProcess | undefined,
  quit: () => void,
): Promise<boolean> {
  if (!guest || guest.hasEnded) return false;
  quit();
  const patienceMs = engine.runState.status === 'io-error' ? FAILED_END_MS : END_MS;
  const timer = engine.host.clock.setTimer(patienceMs, () => guest.kill());
  await guest.ended;
  timer.cancel();
  return true;
}
