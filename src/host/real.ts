import type { Host } from './host.js';
import { RealClock, RealRandom } from './real-clock.js';
import { RealFiles } from './real-files.js';
import { RealNet } from './real-net.js';
import { Syscalls } from './syscalls.js';

/** This machine. Cheap: nothing is opened, and koffi loads with the first file. */
export function createRealHost(): Host {
  return {
    files: new RealFiles(new Syscalls()),
    net: new RealNet(),
    clock: new RealClock(),
    random: new RealRandom(),
  };
}
