import { BlockError } from '../../base/error.js';
import type { HostClock } from '../../host/host.js';

/** A process that has ended lets go of what it has. */
const LETS_GO_WITHIN_MS = 5000;
const LOOK_MS = 20;

/**
 * Does what a process is in the way of that has ended: its end is seen before the kernel has let go of all its locks and
 * sockets. Errors: those of `attempt`; busy where somebody else is in the way.
 */
export async function onceLetGo<T>(clock: HostClock, attempt: () => Promise<T>): Promise<T> {
  const lastMs = clock.nowMs() + LETS_GO_WITHIN_MS;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      const isHeld = error instanceof BlockError && error.kind === 'busy';
      if (!isHeld || clock.nowMs() > lastMs) throw error;
      await clock.sleep(LOOK_MS);
    }
  }
}
