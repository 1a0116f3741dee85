import { BlockError } from '../../base/error.js';
import type { HostClock } from '../../host/host.js';

/** What `work` answers, if it does so in time. Errors: timeout, in the words of `late`. */
export async function within<T>(
  clock: HostClock,
  work: Promise<T>,
  { timeoutMs, late }: { timeoutMs: number; late: string },
): Promise<T> {
  let cancel = (): void => undefined;
  const isLate = new Promise<never>((_, reject) => {
    const timer = clock.setTimer(timeoutMs, () => reject(new BlockError('timeout', late)));
    cancel = () => timer.cancel();
  });
  try {
    return await Promise.race([work, isLate]);
  } finally {
    cancel();
  }
}
