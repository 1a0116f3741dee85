import { Trace } from '../base/trace.js';
import type { Host } from './host.js';
import { RealClock, RealRandom } from './real-clock.js';
import { RealCompute } from './real-compute.js';
import { RealFiles } from './real-files.js';
import { RealHttp } from './real-http.js';
import { RealNet } from './real-net.js';
import { RealPipes } from './real-pipes.js';
import { RealTerminal } from './real-terminal.js';
import { RealSharing } from './real-sharing.js';
import { RealTraceOutput } from './real-trace.js';
import { Syscalls } from './syscalls.js';

export interface RealHostOptions {
  /** Takes the files of every file system for remote ones. */
  everythingIsRemote?: boolean;
}

/** This machine. Cheap: nothing is opened, koffi loads with the first file, and threads start with the first task. */
export function createRealHost({ everythingIsRemote = false }: RealHostOptions = {}): Host {
  const system = new Syscalls();
  const clock = new RealClock();
  const net = new RealNet(system);
  const compute = new RealCompute();
  return {
    files: everythingIsRemote ? new RealFiles(system, () => true) : new RealFiles(system),
    net,
    passing: net.passing,
    http: new RealHttp(),
    clock,
    terminals: { open: (onConnection) => new RealTerminal(system, clock, onConnection) },
    pipes: new RealPipes(system),
    sharing: new RealSharing(system),
    random: new RealRandom(),
    compute,
    trace: new Trace(new RealTraceOutput(clock)),
    async loadWhole(programs) {
      for (const program of programs) compute.load(program);
      await net.loadTls();
    },
  };
}
