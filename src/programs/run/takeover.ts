import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import type { Deferred } from '../../base/async.js';
import { BlockError, toBlockError } from '../../base/error.js';
import { exitNow } from '../../host/exit.js';
import type { Host } from '../../host/host.js';
import type { Engine } from '../../monitor/engine.js';
import { StateKeeper } from '../../monitor/state/keeper.js';
import { StateStore } from '../../monitor/state/store.js';
import { Taking, type Taken } from '../../monitor/takeover/taker.js';
import { assertWilling, planTakeover } from '../../monitor/takeover/plan.js';
import { type DaemonProgram, takeOverAt } from '../../monitor/takeover.js';
import type { EngineState } from '../../schema/state.js';
import { AdoptedMachine } from '../machine/adopted-machine.js';
import { composeEngine } from './compose.js';
import { DEFAULT_MACHINE, type RunOptions } from './options.js';
import { start } from './start.js';
import { type DaemonStart, monitorSteps, propertiesOf } from './state.js';

const STARTS_WITHIN_MS = 30_000;
const LOOK_MS = 20;
/** In the environment of a process that was started to take over: by whom. */
const STARTED_BY = 'LIVEDISK_TAKEOVER_STARTED_BY';
const STARTER_LOOK_MS = 250;
const NOT_STARTED = 'No takeover: the new process could not be started';
/** Of connecting. */
const NOBODY_LISTENS: ReadonlySet<string | undefined> = new Set(['ECONNREFUSED', 'ENOENT']);

/** A daemon that begins as another process ends: with all that that one has. */
export class TakenDaemon implements DaemonStart {
  readonly #taking: Taking;
  readonly #taken: Taken;
  readonly #host: Host;
  readonly #folder: string | undefined;
  #store: StateStore | undefined;
  /** Where it came with its guest. */
  readonly machine: AdoptedMachine | undefined;

  private constructor(
    taking: Taking,
    taken: Taken,
    {
      host,
      folder,
      machine,
    }: { host: Host; folder: string | undefined; machine: AdoptedMachine | undefined },
  ) {
    this.machine = machine;
    this.#taking = taking;
    this.#taken = taken;
    this.#host = host;
    this.#folder = folder;
  }

  /** Waits for the process that serves, and makes all that it has. Errors: invalid for options that say what that one is. */
  static async wait(
    host: Host,
    kind: EngineState['kind'],
    options: RunOptions,
    warn: (text: string) => void,
  ): Promise<TakenDaemon> {
    const { takeover: socketPath = '', state: stateFolder } = options;
    checkTakeover(options);
    let machine: AdoptedMachine | undefined;
    const waits = waitsWithStarter(socketPath);
    const taking = await Taking.wait({
      ...{ host, kind, socketPath, stateFolder },
      compose: (state, folder) => {
        // Relative names are seen from where the other process is.
        process.chdir(folder);
        return composeEngine(host, kind, propertiesOf(state), warn);
      },
      adoptGuest: (engine, guest, { devices }) =>
        (machine = new AdoptedMachine(
          engine,
          guest,
          devices.map(({ path }) => path),
        )),
      onWaiting: () => void process.stdout.write(`livedisk: waits at ${socketPath}\n`),
    }).finally(() => clearInterval(waits));
    const taken = await taking.prepare().catch(endNow);
    return new TakenDaemon(taking, taken, { host, folder: stateFolder, machine });
  }

  get engine(): Engine {
    return this.#taken.engine;
  }

  get program(): DaemonStart['program'] {
    const { askedDigest, monitors, isMultiplexed } = this.#taken.state;
    const kept = this.#store && { stateFolder: this.#store.folder, stateLock: this.#store.lock };
    return { askedDigest, monitors, isMultiplexed, ...kept };
  }

  /** It is this process's from here on, as `owns` is told first. Errors: closed, when the other one goes on. */
  async start(owns: () => Promise<void>): Promise<void> {
    const taken = this.#taken;
    const { engine, state, lock } = taken;
    const report = await this.#taking.own(taken, owns).catch(endNow);
    if (this.#folder !== undefined && lock !== undefined)
      this.#store = await StateStore.adopt(this.#host, this.#folder, lock);
    await this.machine?.begin(engine);
    const steps = monitorSteps(state);
    await start(engine, { steps, incoming: undefined, loadvm: undefined });
    const { askedDigest, monitors, isMultiplexed } = state;
    const program = { askedDigest, monitors, isMultiplexed };
    // It has the graph before clients can change it.
    const keeping = this.#store && StateKeeper.begin(this.#store, engine, program, true);
    await Promise.all([keeping, this.#taking.serve(taken, report)]);
    this.machine?.serves();
    await this.#taking.untilAlone(taken);
  }

  async close(): Promise<void> {
    await this.#store?.close();
  }
}

/** Nothing is closed or written: all of it is the other process's. */
function endNow(error: unknown): never {
  process.stderr.write(`livedisk: no takeover: ${toBlockError(error).message}\n`);
  exitNow(1);
  throw error;
}

/** Whom a process has started that has ended before it came: nobody comes, and it ends. */
function waitsWithStarter(socketPath: string): NodeJS.Timeout | undefined {
  const starter = process.env[STARTED_BY];
  if (starter === undefined) return undefined;
  delete process.env[STARTED_BY];
  return setInterval(() => {
    if (process.ppid === Number(starter)) return;
    rmSync(dirname(socketPath), { recursive: true, force: true });
    endNow(new BlockError('closed', 'The process that serves has ended'));
  }, STARTER_LOOK_MS);
}

/** From now on another process may take this one's place, as who waits for `begun` hears; the answer starts one that does. */
export function letTakeOver(
  engine: Engine,
  { program }: DaemonStart,
  options: RunOptions,
  begun: Deferred<DaemonProgram>,
): () => void {
  let folder: string | undefined;
  const handedOver = (): void => {
    if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
    exitNow(0);
  };
  begun.resolve({ ...program, folder: () => process.cwd(), handedOver });
  const renew = async (): Promise<void> => {
    assertWilling(planTakeover(engine));
    folder = mkdtempSync(join(tmpdir(), 'livedisk-takeover-'));
    const socket = join(folder, 'socket');
    let child: ChildProcess | undefined;
    try {
      child = spawnSuccessor(engine.kind, socket, options);
      await onceReady(child, socket, () => engine.hub.inBand(() => takeOverAt(engine, socket)));
    } finally {
      child?.kill('SIGKILL');
      rmSync(folder, { recursive: true, force: true });
      folder = undefined;
    }
  };
  return () => {
    if (folder === undefined)
      renew().catch((error: unknown) => engine.warn(`warning: ${toBlockError(error).message}`));
  };
}

/**
 * The program as it is installed by now, with what of the command line does not come from this process. Errors: some of those of
 * starting it; the child tells the others.
 */
function spawnSuccessor(kind: Engine['kind'], socket: string, options: RunOptions): ChildProcess {
  const { pidFile, state, metricsText } = options;
  const words = [
    ...[kind === 'machine' ? 'run' : 'storage-daemon', '-takeover', socket],
    ...(pidFile === undefined ? [] : ['-pidfile', pidFile]),
    ...(state === undefined ? [] : ['-state', state]),
    ...(metricsText === undefined ? [] : ['-metrics', metricsText]),
  ];
  const [, program = ''] = process.argv;
  try {
    return spawn(process.execPath, [...process.execArgv, program, ...words], {
      detached: true,
      stdio: ['ignore', 'inherit', 'inherit'],
      env: { ...process.env, [STARTED_BY]: String(process.pid) },
    });
  } catch (error) {
    throw toBlockError(error, NOT_STARTED);
  }
}

/**
 * A socket is there before somebody listens on it: `giveOver` is tried again where nobody does. Errors: those of starting the
 * process; closed, when it ends before; timeout; those of `giveOver`.
 */
async function onceReady(child: ChildProcess, socket: string, giveOver: () => Promise<never>): Promise<void> {
  let failure: Error | undefined;
  child.on('error', (error) => (failure = error));
  for (let waitedMs = 0; waitedMs < STARTS_WITHIN_MS; waitedMs += LOOK_MS) {
    if (failure) throw toBlockError(failure, NOT_STARTED);
    if (child.exitCode !== null) throw new BlockError('closed', 'No takeover: the new process has ended');
    const error = existsSync(socket) ? await giveOver().catch(toBlockError) : undefined;
    if (error && !NOBODY_LISTENS.has(error.errno)) throw error;
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
  throw new BlockError('timeout', `No takeover: the new process was not ready in ${STARTS_WITHIN_MS} ms`);
}

/** What the daemon is comes from the other process. Errors: invalid. */
function checkTakeover(options: RunOptions): void {
  const { steps, name, uuid, memoryBytes, startStopped, machine, incoming, loadvm, daemonize } = options;
  for (const step of steps) if (step.kind === 'wrong') throw step.error;
  const isBare =
    steps.length === 0 &&
    [name, uuid, memoryBytes, incoming, loadvm].every((value) => value === undefined) &&
    !startStopped &&
    !daemonize &&
    machine === DEFAULT_MACHINE;
  if (isBare) return;
  const text = '-takeover goes together with -pidfile, -metrics and -state: the rest comes from what serves';
  throw new BlockError('invalid', text);
}
