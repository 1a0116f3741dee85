import { setFlagsFromString } from 'node:v8';
import { deferred } from '../../base/async.js';
import { BlockError, toBlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { Host } from '../../host/host.js';
import { codecProgram } from '../../codec/program.js';
import { createRealHost } from '../../host/real.js';
import type { Engine } from '../../monitor/engine.js';
import { onceLetGo } from '../../monitor/takeover/let-go.js';
import type { DaemonProgram } from '../../monitor/takeover.js';
import type { MetricsServer } from '../../web/metrics-server.js';
import { applyTrace } from '../arguments/trace.js';
import type { RunningMachine } from '../machine/running-machine.js';
import { MachineRun, takeMachineSwitch } from '../machine/machine.js';
import { checkDaemon, daemonize, isDaemon, tellReady } from './daemon.js';
import { Ending } from './ending.js';
import { answerTo } from './help.js';
import { startMetrics } from './metrics.js';
import { PidFile } from './pid-file.js';
import { parseRunOptions, type RunOptions, withContext } from './options.js';
import { NewDaemon } from './state.js';
import { letTakeOver, TakenDaemon } from './takeover.js';

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
  const asked = machineSwitch && new MachineRun(machineSwitch.rest, machineSwitch.asked);
  const options = parseRunOptions(asked?.line.ours ?? args, kind, warn);
  const isTaken = options.takeover !== undefined;
  if (isTaken && asked && asked.line.theirs.length > 0)
    throw new BlockError('invalid', '-takeover: what the machine is comes from what serves');
  // One that is taken over comes with its guest.
  const machine = isTaken ? undefined : asked;
  if (machine && options.state !== undefined)
    throw new BlockError('unsupported', '-state: a machine that livedisk runs has more than is kept there');
  if (options.asks) {
    process.stdout.write(answerTo(options.asks, kind));
    return typeof options.asks === 'object' && 'text' in options.asks ? (options.asks.status ?? 0) : 0;
  }
  // One that comes too early is no end, and counts: whoever listens stays the same, since one on its way would be lost between two.
  let isToRenew = false;
  let renew = (): void => void (isToRenew = true);
  process.on('SIGUSR2', () => renew());
  if (options.daemonize) {
    checkDaemon(options);
    if (!isDaemon()) return daemonize(args);
  }
  tuneCompiler();
  tuneMemory();
  const host = createRealHost();
  await applyTraces(host, options, program);
  const daemon =
    options.takeover === undefined
      ? await NewDaemon.open(host, kind, options, warn)
      : await TakenDaemon.wait(host, kind, options, warn);
  const { engine } = daemon;
  // Clients may ask for it before all that is to begin has.
  const begun = deferred<DaemonProgram>();
  engine.daemon = begun.promise;
  const running: RunningMachine | undefined = daemon instanceof TakenDaemon ? daemon.machine : machine;
  let pidFile: PidFile | undefined;
  let ending: Ending | undefined;
  let metrics: MetricsServer | undefined;
  const { pidFile: path } = options;
  /** Whoever serves goes on to serve. */
  const told = (error: unknown): undefined => void warn(`warning: ${toBlockError(error).message}`);
  const writePidFile = async (): Promise<void> => {
    if (path === undefined) return;
    if (options.takeover === undefined) pidFile = await PidFile.create(engine.host, path, process.pid);
    else pidFile = await PidFile.takeOver(engine.host, path, process.pid).catch(told);
  };
  const beginMetrics = async (): Promise<void> => {
    const { metrics: asked } = options;
    if (!asked || metrics) return;
    const begin = (): Promise<MetricsServer> => startMetrics(engine, asked);
    metrics = await (options.takeover === undefined
      ? begin()
      : onceLetGo(engine.host.clock, begin).catch(told));
  };
  try {
    // A machine's comes first, a storage daemon's tells that everything is there but answers.
    if (kind === 'machine' && !isTaken) await writePidFile();
    machine?.prepare(engine);
    await daemon.start(async () => {
      await machine?.boot(engine, options);
      // Who has taken over may be told to end at once, and does it well.
      if (isTaken) ending = new Ending(engine, program);
      if (kind !== 'storage-daemon' || isTaken) return;
      // Who sees the file may send a signal.
      ending = new Ending(engine, program);
      await beginMetrics();
      await writePidFile();
    });
    await beginMetrics();
    ending ??= new Ending(engine, program);
    if (isTaken) await writePidFile();
    if (options.daemonize) tellReady();
    renew = letTakeOver(engine, daemon, options, begun);
    if (isToRenew) renew();
    await host.loadWhole?.([codecProgram]).catch(told);
    await untilEnd(engine);
  } finally {
    // Also after an error.
    engine.quitting.resolve();
    engine.graph.keeper = undefined;
    await metrics?.close();
    await running?.end(engine);
    await end(ending ?? new Ending(engine, program), engine, pidFile).finally(() => daemon.close());
  }
  if (running?.failure === undefined) return 0;
  warn(running.failure);
  return 1;
}

/** Errors: those of the files, naming the option. */
async function applyTraces(
  host: Host,
  { traces, hasTimestamps, logFile }: Pick<RunOptions, 'traces' | 'hasTimestamps' | 'logFile'>,
  program: string,
): Promise<void> {
  host.trace.output.hasTimes = hasTimestamps;
  if (logFile !== undefined) host.trace.output.toFile(logFile);
  for (const { options, text } of traces) {
    const warn = (what: string): void => {
      const option = what.startsWith(' ') && text !== '' ? ` ${text}:` : '';
      process.stderr.write(`${program}:${option}${what}\n`);
    };
    await applyTrace(host, options, warn).catch((error: unknown) => {
      throw withContext(text, error);
    });
  }
}

/**
 * Less inlining: a job in a fresh daemon is done before large functions have been compiled, and the compiler takes a
 * processor from it meanwhile. Measured: such a job ends a tenth earlier, the next one a fifth; steady load is as fast.
 */
function tuneCompiler(): void {
  setFlagsFromString('--max-inlined-bytecode-size-cumulative=300');
}

/**
 * What is new stays in the few MiB that it has when the program has started. Opening a long chain makes V8 grow that to 32 MiB,
 * for good. Measured: with small requests, 32 at a time, and long ones, the processor time is the same either way.
 */
function tuneMemory(): void {
  setFlagsFromString('--semi-space-growth-factor=1');
}

/** Also when an image cannot be closed well, which is thrown, nothing stays behind. */
async function end(ending: Ending, engine: Engine, pidFile?: PidFile): Promise<void> {
  try {
    await engine.characterDevices.close();
    await ending.close(async () => pidFile?.remove());
  } catch (error) {
    throw withNode(toBlockError(error));
  } finally {
    await pidFile?.remove();
  }
}

/** What could not be closed well is named: there may be many disks. */
function withNode(error: BlockError): BlockError {
  const { kind, message, errno, node, path } = error;
  if (node === undefined) return error;
  const named = path === undefined ? `node '${node}'` : `node '${node}' (${path})`;
  return new BlockError(kind, `${named}: ${message}`, { ...given({ errno, path }), node, cause: error });
}

/** Until `quit`, or a signal, even when no socket and no standard input is open that could bring one. */
async function untilEnd(engine: Engine): Promise<void> {
  const keepAlive = setInterval(() => undefined, LONG_MS);
  await engine.quitting.promise;
  // Another process may have all of it by now.
  await engine.handingOver;
  clearInterval(keepAlive);
}
