import type { HostClock } from '../../host/host.js';
import type { HostPeer } from '../../host/passing.js';

/** A process that was stopped or killed does nothing more. */
const RESTS_WITHIN_MS = 5_000;
const LOOK_MS = 1;
/** What it has said is in a socket of this machine. */
const COMES_WITHIN_MS = 20;

/**
 * Whether a process that was waited for in vain has said by now what it was to say, as `expect` hears within a time; one that has not
 * is killed. It is stopped meanwhile: one that was killed first could have spoken just before, and nobody would be left.
 */
export async function hasSpoken(
  peer: HostPeer,
  clock: HostClock,
  expect: (mostMs: number) => Promise<void>,
): Promise<boolean> {
  peer.stop();
  for (let waitedMs = 0; waitedMs < RESTS_WITHIN_MS && !peer.isStopped; waitedMs += LOOK_MS)
    await clock.sleep(LOOK_MS);
  if (await isHeard(expect(COMES_WITHIN_MS))) {
    peer.goOn();
    return true;
  }
  peer.kill();
  return isHeard(expect(RESTS_WITHIN_MS));
}

function isHeard(word: Promise<void>): Promise<boolean> {
  return word.then(
    () => true,
    () => false,
  );
}
