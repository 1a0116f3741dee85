import { deferred } from '../../base/async.js';
import { CancelSignal } from '../../base/cancel-signal.js';
import { BlockError, toBlockError } from '../../base/error.js';
import type { HostFile, HostSocket } from '../../host/host.js';
import type { HostPeer, PassedListener } from '../../host/passing.js';
import { assertStill } from '../../jobs/passed/rest-jobs.js';
import type { Caller } from '../../wire/qmp/registry.js';
import { describeEngine, type ProgramState } from '../state/describe.js';
import { Bundle } from './bundle.js';
import { TakeoverChannel, text } from './channel.js';
import {
  describeFiles,
  describeLive,
  describeMemories,
  type Given,
  nbdServersOf,
  vhostServersOf,
} from './live.js';
import { hasSpoken } from './last-word.js';
import { type Prepared, TAKEOVER_PROTOCOL } from './messages.js';
import { describeJobs, nodesOfJobs } from './passed-jobs.js';
import { assertWilling, planTakeover, type Report } from './plan.js';
import { flushAll, storeAll, undo } from './storing.js';
import { within } from './within.js';

/** While nobody is held. */
const REHEARSAL_MS = 30_000;
const LOOK_MS = 1;
/** A process that was killed lets go of what it has. */
const ENDS_WITHIN_MS = 5_000;

/** What a program knows of a daemon that another process may take over. */
export interface DaemonProgram extends ProgramState {
  /** From where relative names are seen. */
  readonly folder: () => string;
  /** Where its state is kept, and the file there that is locked. */
  readonly stateFolder?: string;
  readonly stateLock?: HostFile;
  /** Another process serves: this one ends now, and does nothing more. */
  readonly handedOver: () => void;
}

export interface GivingProperties {
  readonly engine: Given;
  readonly program: DaemonProgram;
  readonly socketPath: string;
  readonly timeoutMs: number;
  /** Whose command it is. */
  readonly asker: Caller | undefined;
}

/**
 * Gives all that this process serves to another one that waits for it. On success it does not return: the other process
 * serves, and answers. Errors: why not; then this one goes on as before.
 */
export async function giveOver(properties: GivingProperties): Promise<never> {
  const { engine, socketPath } = properties;
  assertWilling(planTakeover(engine));
  const socket = await engine.host.net.connect(
    { type: 'unix', path: socketPath },
    { receiveFds: true, timeoutMs: properties.timeoutMs },
  );
  const peer = assertSameUser(socket);
  const giving = new Giving(properties, new TakeoverChannel(socket, engine.host.clock), peer);
  void engine.quitting.promise.then(() => (giving.isQuitting = true));
  try {
    return await giving.run();
  } catch (error) {
    await giving.giveUp();
    const { kind, message } = toBlockError(error);
    throw new BlockError(kind, `No takeover: ${message}`, { cause: error });
  }
}

/** Errors: busy, where a node does something that no request waits for. */
function assertAtRest({ graph }: Given): void {
  for (const node of graph.nodes.values())
    if (node.isOpen && node.instance.isWorking === true)
      throw new BlockError('busy', `node '${node.name}' is at work`);
}

/** Errors: permission. */
export function assertSameUser(socket: HostSocket): HostPeer {
  const peer = socket.peer?.();
  if (peer?.isSameUser === true) return peer;
  socket.destroy();
  throw new BlockError('permission', 'The other process is not of this user');
}

class Giving {
  readonly #properties: GivingProperties;
  readonly #channel: TakeoverChannel;
  readonly #peer: HostPeer;
  /** The other one has been told all: it may write until it has ended. */
  #isTold = false;
  #hasEnded = false;
  /** This process has been told to end. */
  isQuitting = false;

  constructor(properties: GivingProperties, channel: TakeoverChannel, peer: HostPeer) {
    this.#properties = properties;
    this.#channel = channel;
    this.#peer = peer;
  }

  async run(): Promise<never> {
    await this.#greet();
    await this.#rehearse();
    const { engine, timeoutMs } = this.#properties;
    const goOn = await engine.jobs.rest(timeoutMs);
    try {
      // What is flushed now need not be while guests are held.
      await this.#within(flushAll(engine));
      return await this.#handingOver(() => this.#held(() => this.#handOver()));
    } finally {
      goOn();
    }
  }

  /** The end of this process waits for `body`: what the other one has by then must not be closed here. */
  async #handingOver(body: () => Promise<never>): Promise<never> {
    const { engine } = this.#properties;
    this.#assertStays();
    const over = deferred();
    engine.handingOver = over.promise;
    try {
      return await body();
    } finally {
      engine.handingOver = undefined;
      over.resolve();
    }
  }

  /** Errors: closed. */
  #assertStays(): void {
    if (this.isQuitting) throw new BlockError('closed', 'this process is ending');
  }

  async #greet(): Promise<void> {
    const { engine, program } = this.#properties;
    const hello = {
      type: 'hello',
      protocol: TAKEOVER_PROTOCOL,
      kind: engine.kind,
      stateFolder: program.stateFolder,
      folder: program.folder(),
    };
    await this.#channel.send(hello, [], REHEARSAL_MS);
    await this.#expect('hello', REHEARSAL_MS);
  }

  /** The other one opens all images by what is passed, as another process's. */
  async #rehearse(): Promise<void> {
    const { bundle, ...described } = this.#describe();
    await this.#deliver({ type: 'rehearse', ...described }, bundle, REHEARSAL_MS);
    await this.#expect('rehearsed', REHEARSAL_MS);
  }

  async #deliver(
    message: { type: string } & Partial<Prepared>,
    bundle: Bundle,
    mostMs: number,
  ): Promise<void> {
    try {
      await this.#channel.send({ ...message }, bundle.fds, mostMs);
    } finally {
      bundle.end((fd) => this.#properties.engine.host.sharing?.close(fd));
    }
  }

  #describe(): Omit<Prepared, 'live'> & { bundle: Bundle } {
    const { engine, program } = this.#properties;
    const { askedDigest, monitors, isMultiplexed } = program;
    const state = describeEngine(engine, { askedDigest, monitors, isMultiplexed }, nodesOfJobs(engine));
    const bundle = new Bundle();
    const names = new Set(state.nodes.map(({ name }) => name));
    const nodes = [...engine.graph.nodes.values()].filter(({ name }) => names.has(name));
    const memories = describeMemories(engine, nodes, bundle);
    return { state, bundle, files: describeFiles(nodes, bundle), memories };
  }

  /** The next message of that type. Errors: what the other one says; closed. */
  async #expect(type: string, mostMs: number): Promise<void> {
    const message = await this.#channel.receive(mostMs);
    if (!message) throw new BlockError('closed', 'The other process has ended');
    const { type: got, error } = message.value;
    if (got === 'failed') throw new BlockError('invalid', `The other process says: ${text(error)}`);
    if (got !== type) throw new BlockError('corrupt', 'The other process speaks no such protocol');
  }

  /** Runs `body` while nobody is served; whoever asked before has its answer. */
  async #held(body: () => Promise<never>): Promise<never> {
    const { engine } = this.#properties;
    const { graph, host } = engine;
    const connections: PassedListener[] = [];
    this.#startMs = host.clock.nowMs();
    host.passing?.hold((connection) => this.#cameIn(connection));
    this.#waiting = connections;
    const served = [...nbdServersOf(engine), ...vhostServersOf(engine)].map(({ server }) => server);
    const frozen = [...served, ...engine.hub.list(), engine.sessions];
    for (const one of frozen) one.freeze();
    try {
      await this.#untilQuiet();
      const signal = new CancelSignal();
      const timer = host.clock.setTimer(this.#properties.timeoutMs, () => signal.cancel());
      return await graph.drained(
        graph.nodes.values(),
        () => {
          timer.cancel();
          return body();
        },
        undefined,
        signal,
      );
    } finally {
      this.#waiting = undefined;
      host.passing?.release();
      for (const one of frozen) one.thaw();
      engine.guestProgram?.goOn();
    }
  }

  #startMs = 0;
  readonly #sending = new Set<Promise<void>>();
  /** Connections that came while nobody was served; undefined: they go to the other one at once. */
  #waiting: PassedListener[] | undefined;

  #cameIn(connection: PassedListener): void {
    if (this.#waiting) this.#waiting.push(connection);
    else this.#send(connection);
  }

  /** One that comes when the other process serves already. */
  #send(connection: PassedListener): void {
    const sending = this.#channel
      .send(...connectionMessage(connection))
      .catch(() => undefined)
      .then(() => void this.#sending.delete(sending));
    this.#sending.add(sending);
  }

  async #untilQuiet(): Promise<void> {
    const { engine, timeoutMs } = this.#properties;
    const { clock } = engine.host;
    for (;;) {
      this.#assertStays();
      const obstacle = this.#obstacle();
      if (obstacle === undefined) return;
      if (clock.nowMs() - this.#startMs > timeoutMs) throw new BlockError('timeout', obstacle);
      await clock.sleep(LOOK_MS);
    }
  }

  #obstacle(): string | undefined {
    const { engine, asker } = this.#properties;
    if (!nbdServersOf(engine).every(({ server }) => server.isQuiet))
      return 'a request of an NBD client is not answered, or its answer not taken';
    if (!vhostServersOf(engine).every(({ server }) => server.isQuiet))
      return 'a request of a vhost-user front-end is not answered';
    if (!engine.lost.isEmpty) return 'a request of a client that is gone is in flight';
    for (const session of engine.hub.list()) {
      const obstacle = session.obstacle(asker);
      if (obstacle !== undefined) return obstacle;
    }
    // Commands that were begun may need its answers.
    return engine.guestProgram?.comeToRest();
  }

  /** Nothing is in flight. */
  async #handOver(): Promise<never> {
    const { engine, program, asker, timeoutMs } = this.#properties;
    this.#assertStays();
    const report = planTakeover(engine);
    assertWilling(report);
    assertAtRest(engine);
    assertStill(engine.jobs.list());
    const late = new CancelSignal();
    const storing = storeAll(engine, late);
    const changes = await this.#within(storing).catch((error: unknown) => {
      // Guests go on: nothing more may be stored as if nobody wrote.
      late.cancel();
      void storing.then(undo).catch(() => undefined);
      throw error;
    });
    try {
      const { bundle, ...described } = this.#describe();
      const passedJobs = describeJobs(engine, bundle);
      const live = describeLive(engine, bundle, { asker, passedJobs });
      const lock = program.stateLock?.descriptor;
      if (lock !== undefined) live.lock = bundle.add(lock);
      this.#isTold = true;
      await this.#deliver({ type: 'prepare', ...described, live }, bundle, timeoutMs);
      await this.#expect('ready', timeoutMs);
      return await this.#commit(report);
    } catch (error) {
      await this.giveUp();
      undo(changes);
      throw error;
    }
  }

  /** From here on it is the other one's, unless that has ended before it said so. */
  async #commit(report: Report): Promise<never> {
    const { engine, program, timeoutMs } = this.#properties;
    this.#assertStays();
    const keeper = engine.graph.keeper;
    engine.graph.keeper = undefined;
    const pause = engine.host.clock.nowMs() - this.#startMs;
    try {
      await this.#channel
        .send({ type: 'commit', report: { ...report, pause } }, [], timeoutMs)
        .then(() => this.#expect('owned', timeoutMs))
        .catch((error: unknown) => this.#lastWord(error));
    } catch (error) {
      engine.graph.keeper = keeper;
      throw error;
    }
    for (const connection of this.#waiting?.splice(0) ?? []) this.#send(connection);
    this.#waiting = undefined;
    while (this.#sending.size > 0) await Promise.all(this.#sending);
    // Whoever wanted the service to end knew of this process only.
    if (this.isQuitting) this.#peer.terminate();
    program.handedOver();
    return new Promise<never>(() => undefined);
  }

  /** It may have said meanwhile that it serves: then nobody else may. */
  async #lastWord(error: unknown): Promise<void> {
    const look = (mostMs: number): Promise<void> => this.#expect('owned', mostMs);
    if (!(await hasSpoken(this.#peer, this.#properties.engine.host.clock, look))) throw error;
  }

  #within<T>(work: Promise<T>): Promise<T> {
    const { engine, timeoutMs } = this.#properties;
    const late = `What was written is not on disk within ${timeoutMs} ms`;
    return within(engine.host.clock, work, { timeoutMs, late });
  }

  /** The other one does nothing more: it hears so, or, when it may have begun, it has ended. */
  async giveUp(): Promise<void> {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    if (!this.#isTold && !this.#channel.isClosed)
      await this.#channel.send({ type: 'abort' }, [], ENDS_WITHIN_MS).catch(() => undefined);
    if (this.#isTold) {
      this.#peer.kill();
      const { clock } = this.#properties.engine.host;
      const startMs = clock.nowMs();
      while (!this.#channel.isClosed && clock.nowMs() - startMs < ENDS_WITHIN_MS) await clock.sleep(LOOK_MS);
    }
    this.#channel.close();
  }
}

function connectionMessage({
  names,
  fd,
}: PassedListener): [value: { type: string; names: string[] }, fds: number[]] {
  return [{ type: 'connection', names: [...names] }, [fd]];
}
