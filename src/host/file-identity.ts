import type { HostStat } from './host.js';

/** Which file it is, for what outlives it: a new file may get the identity of one that is gone, but not its time of birth. */
export function lastingIdentity({ identity, bornMs, isBlockDevice }: HostStat): string {
  // A device's name in /dev is made anew at each start.
  return isBlockDevice || bornMs === undefined ? identity : `${identity} ${bornMs}`;
}
