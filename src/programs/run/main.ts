import { setFlagsFromString } from 'node:v8';
import { given } from '../../base/given.js';
import { probedWarning } from '../../block/format-guard.js';
import { allDrivers } from '../../drivers/index.js';
import { exitNow } from '../../host/exit.js';
import { createRealHost } from '../../host/real.js';
import { Engine } from '../../monitor/engine.js';
import type { MetricsServer } from '../../web/metrics-server.js';
import { MachineRun, takeMachineSwitch } from '../machine/machine.js';
import { checkDaemon, daemonize, isDaemon, tellReady } from './daemon.js';
import { Ending } from './ending.js';
import { answerTo } from './help.js';
import { startMetrics } from './metrics.js';
import { PidFile } from './pid-file.js';
import { parseRunOptions } from './options.js';
import { start } from './start.js';
import { StdioSocket } from './stdio.js';

/** Nearly the longest time that a timer takes. */
const LONG_MS = 2_000_000_000;

/** `livedisk run` and `livedisk storage-daemon`: serves until told to quit. */
export async function runMain(
  args: readonly string[],
  kind: 'machine' | 'storage-daemon',
  program = 'livedisk',
): Promise<number> {
  const warn = (text: string): void => void process.stderr.write(`${program}: ${text}\n`);
  const machineSwitch = kind === 'machine' ? takeMachineSwitch(args) : undefined;
  const machine = machineSwitch && new MachineRun(machineSwitch.rest, machineSwitch.asked);
  const options = parseRunOptions(machine?.line.ours ?? args, kind);
  for (const warning of options.warnings) warn(warning);
  if (options.asks) {
    process.stdout.write(answerTo(options.asks, kind));
    return 0;
  }
  if (options.daemonize) {
    checkDaemon(options);
    if (!isDaemon()) return daemonize(args);
  }
  tuneCompiler();
  const engine = new Engine({
    host: createRealHost(),
    drivers: allDrivers,
    kind,
    machine: options.machine,
    ...(process.env['TMPDIR'] !== undefined && { temporaryFolder: process.env['TMPDIR'] }),
    startStopped: options.startStopped,
    incoming: options.incoming !== undefined,
    actions: options.actions,
    baseProtection: { refuses: options.protectsSharedBases, folders: options.sharedBasesFolders },
    identity: given({ name: options.name, uuid: options.uuid, memoryBytes: options.memoryBytes }),
    openStandard: (isEditor) => new StdioSocket({ isEditor }),
    warn,
    print: (line) => void process.stdout.write(`${line}\n`),
  });
  engine.opener.onProbed = (name, format, readOnly) =>
    void process.stderr.write(probedWarning(name, format, readOnly));
  engine.graph.onDriverLine = (line) => void process.stderr.write(`${line}\n`);
  engine.opener.onWarning = (text) => warn(`warning: ${text}`);
  engine.hub.onUnexpectedError = (error) => warn(`internal error: ${describe(error)}`);
  let pidFile: PidFile | undefined;
  let ending: Ending | undefined;
  let metrics: MetricsServer | undefined;
  const { pidFile: path } = options;
  const writePidFile = async (): Promise<void> => {
    if (path !== undefined) pidFile = await PidFile.create(engine.host, path, process.pid);
  };
  try {
    // A machine's comes first, a storage daemon's tells that everything is there.
    if (kind === 'machine') await writePidFile();
    machine?.prepare(engine);
    await start(engine, options, () => machine?.boot(engine, options) ?? Promise.resolve());
    if (options.metrics) metrics = await startMetrics(engine, options.metrics);
    ending = new Ending(engine, program);
    if (kind === 'storage-daemon') await writePidFile();
    if (options.daemonize) tellReady();
    await untilEnd(engine);
  } finally {
    await metrics?.close();
    await machine?.end(engine);
    await end(ending ?? new Ending(engine, program), engine, pidFile);
  }
  if (machine?.failure === undefined) return 0;
  warn(machine.failure);
  return 1;
}

/**
 * Less inlining: a job in a fresh daemon is done before large functions have been compiled, and the compiler takes a
 * processor from it meanwhile. Measured: such a job ends a tenth earlier, the next one a fifth; steady load is as fast.
 */
function tuneCompiler(): void {
  setFlagsFromString('--max-inlined-bytecode-size-cumulative=300');
}

/** Also when an image cannot be closed well, which is thrown, nothing stays behind. */
async function end(ending: Ending, engine: Engine, pidFile?: PidFile): Promise<void> {
  try {
    await engine.characterDevices.close();
    await ending.close(async () => pidFile?.remove());
  } finally {
    await pidFile?.remove();
    // Clients that stay connected, standard input, and calls that the kernel holds would keep the process alive.
    setImmediate(() => exitNow());
  }
}

function describe(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

/** Until `quit`, or a signal, even when no socket and no standard input is open that could bring one. */
async function untilEnd(engine: Engine): Promise<void> {
  const keepAlive = setInterval(() => undefined, LONG_MS);
  await engine.quitting.promise;
  clearInterval(keepAlive);
}
