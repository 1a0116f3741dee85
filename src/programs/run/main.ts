import { setFlagsFromString } from 'node:v8';
import { exitNow } from '../../host/exit.js';
import { createRealHost } from '../../host/real.js';
import type { Engine } from '../../monitor/engine.js';
import type { MetricsServer } from '../../web/metrics-server.js';
import { composeEngine } from './compose.js';
import { checkDaemon, daemonize, isDaemon, tellReady } from './daemon.js';
import { Ending } from './ending.js';
import { answerTo } from './help.js';
import { startMetrics } from './metrics.js';
import { PidFile } from './pid-file.js';
import { parseRunOptions } from './options.js';
import { DaemonState } from './state.js';

/** Nearly the longest time that a timer takes. */
const LONG_MS = 2_000_000_000;

/** `livedisk run` and `livedisk storage-daemon`: serves until told to quit. */
export async function runMain(
  args: readonly string[],
  kind: 'machine' | 'storage-daemon',
  program = 'livedisk',
): Promise<number> {
  const warn = (text: string): void => void process.stderr.write(`${program}: ${text}\n`);
  const options = parseRunOptions(args, kind);
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
  const host = createRealHost();
  const daemon = await DaemonState.open(host, kind, options);
  const engine = composeEngine(host, kind, daemon.engineProperties(), warn);
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
    await daemon.start(engine);
    if (options.metrics) metrics = await startMetrics(engine, options.metrics);
    ending = new Ending(engine, program);
    if (kind === 'storage-daemon') await writePidFile();
    if (options.daemonize) tellReady();
    await untilEnd(engine);
  } finally {
    engine.graph.keeper = undefined;
    await metrics?.close();
    await end(ending ?? new Ending(engine, program), engine, pidFile).finally(() => daemon.close());
  }
  return 0;
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

/** Until `quit`, or a signal, even when no socket and no standard input is open that could bring one. */
async function untilEnd(engine: Engine): Promise<void> {
  const keepAlive = setInterval(() => undefined, LONG_MS);
  await engine.quitting.promise;
  clearInterval(keepAlive);
}
