import { setFlagsFromString } from 'node:v8';
import { deferred } from '../../base/async.js';
import { probedWarning } from '../../block/format-guard.js';
import { allDrivers } from '../../drivers/index.js';
import type { HostListener, HostSocket } from '../../host/host.js';
import { exitNow } from '../../host/exit.js';
import { createRealHost } from '../../host/real.js';
import { Engine } from '../../monitor/engine.js';
import { QmpSession } from '../../wire/qmp/session.js';
import { versionText } from '../../wire/qmp/version.js';
import { Ending } from './ending.js';
import { HumanMonitor } from './human-monitor.js';
import { HELP } from './help.js';
import { PidFile } from './pid-file.js';
import { StdioSocket } from './stdio.js';
import { parseRunOptions, type RunOptions, type Step, withContext } from './options.js';

/** As QEMU's programs call themselves. */
const PROGRAM_NAMES = { machine: 'QEMU emulator', 'storage-daemon': 'qemu-storage-daemon' } as const;

/** Nearly the longest time that a timer takes. */
const LONG_MS = 2_000_000_000;

/** `livedisk run` and `livedisk storage-daemon`: serves until told to quit. */
export async function runMain(args: readonly string[], kind: 'machine' | 'storage-daemon'): Promise<number> {
  const options = parseRunOptions(args, kind);
  if (options.asks) {
    process.stdout.write(answerTo(options.asks, kind));
    return 0;
  }
  tuneCompiler();
  const engine = new Engine({
    host: createRealHost(),
    drivers: allDrivers,
    kind,
    startStopped: options.startStopped,
    incoming: options.incoming,
    print: (line) => void process.stdout.write(`${line}\n`),
  });
  engine.opener.onProbed = (name, format, readOnly) =>
    void process.stderr.write(probedWarning(name, format, readOnly));
  engine.graph.onDriverLine = (line) => void process.stderr.write(`${line}\n`);
  engine.opener.onWarning = (text) => void process.stderr.write(`livedisk: warning: ${text}\n`);
  engine.hub.onUnexpectedError = (error) =>
    process.stderr.write(`livedisk: internal error: ${describe(error)}\n`);
  const listeners: HostListener[] = [];
  let pidFile: PidFile | undefined;
  let ending: Ending | undefined;
  const { pidFile: path } = options;
  const writePidFile = async (): Promise<void> => {
    if (path !== undefined) pidFile = await PidFile.create(engine.host, path, process.pid);
  };
  try {
    // A machine's comes first, a storage daemon's tells that everything is there.
    if (kind === 'machine') await writePidFile();
    await start(engine, options, listeners);
    ending = new Ending(engine);
    if (kind === 'storage-daemon') await writePidFile();
    await untilEnd(engine);
  } finally {
    await end(ending ?? new Ending(engine), listeners, pidFile);
  }
  return 0;
}

function answerTo(asks: NonNullable<RunOptions['asks']>, kind: 'machine' | 'storage-daemon'): string {
  if (typeof asks === 'object') return asks.text;
  return asks === 'help' ? HELP[kind] : versionText(PROGRAM_NAMES[kind]);
}

/**
 * Less inlining: a job in a fresh daemon is done before large functions have been compiled, and the compiler takes a
 * processor from it meanwhile. Measured: such a job ends a tenth earlier, the next one a fifth; steady load is as fast.
 */
function tuneCompiler(): void {
  setFlagsFromString('--max-inlined-bytecode-size-cumulative=300');
}

/** Also when an image cannot be closed well, which is thrown, nothing stays behind. */
async function end(ending: Ending, listeners: readonly HostListener[], pidFile?: PidFile): Promise<void> {
  try {
    for (const listener of listeners) await listener.close();
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

async function start(engine: Engine, options: RunOptions, listeners: HostListener[]): Promise<void> {
  for (const step of options.steps) {
    try {
      await perform(engine, step, listeners);
    } catch (error) {
      throw step.text === '' ? error : withContext(step.text, error);
    }
  }
}

async function perform(engine: Engine, step: Step, listeners: HostListener[]): Promise<void> {
  switch (step.kind) {
    case 'object':
      return void (await engine.graph.objects.add(step.options));
    case 'descriptor':
      return engine.host.files.descriptorSets.adopt(step.fd, step.setId, step.opaque);
    case 'blockdev':
      return void (await engine.addNode(step.options));
    case 'nbd-server':
      return engine.exports.startServer(step.address, step.properties);
    case 'export':
      return void (await engine.execute('block-export-add', step.options));
    case 'device':
      return void (await engine.addDevice(step.drive, step.properties));
    case 'monitor':
      return openMonitor(engine, step, listeners);
  }
}

type MonitorStep = Extract<Step, { kind: 'monitor' }>;

async function openMonitor(engine: Engine, step: MonitorStep, listeners: HostListener[]): Promise<void> {
  const { socket, isControl, pretty } = step;
  const serve = (connection: HostSocket): void => {
    if (isControl) new QmpSession(engine.hub, connection, { pretty });
    else serveHuman(engine, connection, socket.kind === 'stdio' ? '\n' : '\r\n');
  };
  switch (socket.kind) {
    case 'stdio':
      return serve(new StdioSocket());
    case 'client':
      return serve(await engine.host.net.connect(socket.address, { receiveFds: true }));
    case 'server': {
      const connected = deferred();
      const onConnection = (connection: HostSocket): void => {
        serve(connection);
        connected.resolve();
      };
      listeners.push(await engine.host.net.listen(socket.address, onConnection, { receiveFds: true }));
      if (socket.wait) await connected.promise;
    }
  }
}

function serveHuman(engine: Engine, connection: HostSocket, lineEnd: string): void {
  let isOpen = true;
  const write = (text: string): void => {
    if (isOpen) connection.write(Buffer.from(text.replaceAll('\n', lineEnd)));
  };
  const monitor = new HumanMonitor(engine, write);
  connection.start({
    onData: (chunk) => monitor.push(chunk),
    onClose: () => void (isOpen = false),
  });
}

/** Until `quit`, or a signal, even when no socket and no standard input is open that could bring one. */
async function untilEnd(engine: Engine): Promise<void> {
  const keepAlive = setInterval(() => undefined, LONG_MS);
  await engine.quitting.promise;
  clearInterval(keepAlive);
}
