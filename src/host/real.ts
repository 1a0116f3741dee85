import type { Host } from './host.js';
import { RealClock, RealRandom } from './real-clock.js';
import { RealFiles } from './real-files.js';
import { RealNet } from './real-net.js';
import { Syscalls } from './syscalls.js';

export interface RealHostOptions {
  /** Takes the files of every file system for remote ones. */
  everythingIsRemote?: boolean;
}

/** This machine. Cheap: nothing is opened, and koffi loads with the first file. */
export function createRealHost({ everythingIsRemote = false }: RealHostOptions = {}): Host {
  const system = new Syscalls();
  return {
    files: everythingIsRemote ? new RealFiles(system, () => true) : new RealFiles(system),
    net: new RealNet(system),
    clock: new RealClock(),
    random: new RealRandom(),
  };
}
