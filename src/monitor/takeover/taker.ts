import { assert } from '../../base/assert.js';
import { BlockError, toBlockError } from '../../base/error.js';
import { restoreNodes } from '../../block/restore-nodes.js';
import type { PassedGuest } from '../../attach/guest-program.js';
import type { NodeState } from '../../block/node-state.js';
import type { Host, HostListener, HostSocket } from '../../host/host.js';
import type { ObjectOptions } from '../../schema/objects.js';
import type { EngineState } from '../../schema/state.js';
import type { JsonObject } from '../../schema/types.js';
import { deferred } from '../../base/async.js';
import { closeGraph } from '../closing.js';
import type { Engine } from '../engine.js';
import { restoreEngine } from '../state/restore.js';
import {
  adoptBitmaps,
  adoptClients,
  adoptCounters,
  adoptDescriptors,
  adoptFiles,
  adoptFrontEnds,
  adoptMemories,
  adoptJobs,
  adoptMoves,
  adoptSessions,
  ownFiles,
} from './adopt.js';
import { TakeoverChannel, text as tell } from './channel.js';
import { adoptPassedJobs, orderNodes } from './passed-jobs.js';
import { type LiveState, type Prepared, TAKEOVER_PROTOCOL } from './messages.js';

export interface TakingProperties {
  readonly host: Host;
  readonly kind: EngineState['kind'];
  /** Where it waits. */
  readonly socketPath: string;
  /** Where it keeps its state. */
  readonly stateFolder: string | undefined;
  /** An engine on which nothing is, for a state; `folder`: from where relative names are seen. */
  readonly compose: (state: EngineState, folder: string) => Engine;
  /** The engine is to have that guest's disks, which are made after it. */
  readonly adoptGuest: (engine: Engine, guest: PassedGuest, state: EngineState) => void;
  /** The process that serves may be told of it. */
  readonly onWaiting: () => void;
}

/** What another process has given, and is not to be served before own(). */
export interface Taken {
  readonly engine: Engine;
  readonly state: EngineState;
  /** The lock of the state's folder. */
  readonly lock: number | undefined;
}

/** The new process's side: waits for the one that serves, and takes what it has. */
export class Taking {
  readonly #properties: TakingProperties;
  readonly #channel: TakeoverChannel;
  #folder = '/';
  #live: { state: EngineState; live: LiveState; fds: readonly number[] } | undefined;
  /** Connections that the other process had accepted, for when there are those who serve them. */
  readonly #late: Array<{ names: string[]; fd: number }> = [];

  private constructor(properties: TakingProperties, channel: TakeoverChannel) {
    this.#properties = properties;
    this.#channel = channel;
  }

  /** Resolves when a process of this user has come; others are sent away. Errors: those of listening. */
  static async wait(properties: TakingProperties): Promise<Taking> {
    const { host, socketPath, onWaiting } = properties;
    const came = deferred<HostSocket>();
    const listener: HostListener = await host.net.listen(
      { type: 'unix', path: socketPath },
      (socket) => (socket.peer?.()?.isSameUser === true ? came.resolve(socket) : socket.destroy()),
      { receiveFds: true },
    );
    if (host.passing) host.passing.isTaking = true;
    onWaiting();
    const socket = await came.promise;
    await listener.close();
    return new Taking(properties, new TakeoverChannel(socket, host.clock));
  }

  /** Until all is there and ready to be served. Errors: what goes wrong, which the other process is told. */
  async prepare(): Promise<Taken> {
    try {
      return await this.#prepare();
    } catch (error) {
      const { message } = toBlockError(error);
      await this.#channel.send({ type: 'failed', error: message }).catch(() => undefined);
      throw error;
    }
  }

  async #prepare(): Promise<Taken> {
    const hello = await this.#next('hello');
    this.#checkHello(hello.value);
    await this.#channel.send({ type: 'hello', protocol: TAKEOVER_PROTOCOL });
    const rehearsal = await this.#next('rehearse');
    await this.#rehearse(rehearsal.value as unknown as Prepared, rehearsal.fds);
    await this.#channel.send({ type: 'rehearsed' });
    const { value, fds } = await this.#next('prepare');
    return this.#restore(value as unknown as Prepared, fds);
  }

  async #next(type: string): Promise<{ value: JsonObject; fds: readonly number[] }> {
    const message = await this.#channel.receive();
    if (!message) throw new BlockError('closed', 'The process that serves has ended');
    if (message.value['type'] === 'abort') throw new BlockError('closed', 'The process that serves goes on');
    if (message.value['type'] !== type)
      throw new BlockError('corrupt', 'The process that serves speaks no such protocol');
    return message;
  }

  #checkHello({ protocol, kind, stateFolder: folder, folder: here }: JsonObject): void {
    this.#folder = tell(here);
    const { kind: ours, stateFolder } = this.#properties;
    if (protocol !== TAKEOVER_PROTOCOL)
      throw new BlockError(
        'unsupported',
        `This livedisk takes over by protocol ${TAKEOVER_PROTOCOL}, and not ${tell(protocol)}`,
      );
    if (kind !== ours) throw new BlockError('invalid', `This is a ${ours}, and what serves a ${tell(kind)}`);
    if ((folder ?? undefined) === stateFolder) return;
    const text =
      folder === undefined || folder === null
        ? 'What serves keeps no state, and this process is to'
        : `What serves keeps its state in '${tell(folder)}': start this process with --state of that folder`;
    throw new BlockError('invalid', text);
  }

  /** All images are opened as another process's, and closed. */
  async #rehearse({ state, files, memories }: Prepared, fds: readonly number[]): Promise<void> {
    const { host, compose } = this.#properties;
    const engine = compose(state, this.#folder);
    adoptFiles({ host }, files, fds);
    adoptMemories({ host }, memories, fds);
    for (const { id, type, options } of state.objects)
      if (type !== 'secret')
        await engine.graph.objects.add({ ...(options as object), 'qom-type': type, id } as ObjectOptions);
    const isSecret = state.objects.some(({ type }) => type === 'secret');
    // What a secret opens is opened when it is there.
    if (!isSecret)
      await restoreNodes(
        engine.opener,
        (state.nodes as unknown as NodeState[]).map((node) => ({ ...node, isInactive: true })),
      );
    await closeGraph(engine.graph);
    for (const { fd } of host.passing?.files.values() ?? []) host.sharing?.close(fd);
    host.passing?.files.clear();
    host.passing?.memories.clear();
  }

  async #restore({ state, files, memories, live }: Prepared, fds: readonly number[]): Promise<Taken> {
    const engine = this.#properties.compose(state, this.#folder);
    adoptFiles(engine, files, fds);
    adoptMemories(engine, memories, fds);
    adoptDescriptors(engine, live, fds);
    if (live.guest) {
      const { data, fds: places } = live.guest;
      this.#properties.adoptGuest(engine, { data, fds: places.map((place) => fds[place] ?? -1) }, state);
    }
    const secrets = new Map(live.secrets.map(({ id, options }) => [id, options as unknown as ObjectOptions]));
    await restoreEngine(engine, state, secrets, async () => {
      for (const name of live.lentNodes) engine.graph.node(name).isLentWritable = true;
      await adoptBitmaps(engine, live, fds);
    });
    engine.host.passing?.memories.clear();
    await adoptMoves(engine, live);
    adoptCounters(engine, live, fds);
    await adoptPassedJobs(engine, live.passedJobs, fds);
    orderNodes(engine, live.nodeOrder);
    this.#live = { state, live, fds };
    return { engine, state, lock: live.lock === undefined ? undefined : fds[live.lock] };
  }

  /**
   * Everything is ready: resolves when it is this process's, since the other one says so or is no more; `owns` is called
   * before anybody is told. Nothing is served before. Errors: closed, when the other one goes on.
   */
  async own({ engine }: Taken, owns: () => Promise<void>): Promise<JsonObject> {
    await this.#channel.send({ type: 'ready' }).catch(() => undefined);
    const message = await this.#channel.receive();
    if (message && message.value['type'] !== 'commit')
      throw new BlockError('closed', 'The process that serves goes on');
    await owns();
    await this.#channel.send({ type: 'owned' }).catch(() => undefined);
    if (engine.host.passing) engine.host.passing.isTaking = false;
    await this.#goOnWithJobs(engine);
    ownFiles(engine);
    const report = message?.value['report'];
    return typeof report === 'object' && report !== null && !Array.isArray(report) ? report : {};
  }

  /** Before anybody can write. A journal is had by one process. */
  async #goOnWithJobs(engine: Engine): Promise<void> {
    const { state, live } = this.#live ?? {};
    if (!state || !live || state.jobs.every(({ journal }) => journal === undefined)) return;
    await this.#untilAlone(engine);
    await adoptJobs(engine, state, live).catch((error: unknown) =>
      engine.warn(`warning: ${toBlockError(error).message}`),
    );
  }

  /** Clients go on, and later ones come. Monitors are there. */
  async serve({ engine }: Taken, report: JsonObject): Promise<void> {
    const { live, fds } = this.#live ?? {};
    if (!live || !fds) return;
    const { passing } = engine.host;
    passing?.begin();
    await adoptFrontEnds(engine, live, fds);
    await adoptClients(engine, live, fds);
    await adoptSessions(engine, live, fds, report);
  }

  /** Connections that the other process had accepted come until it has ended. Then jobs go on. */
  async untilAlone({ engine }: Taken): Promise<void> {
    await this.#untilAlone(engine);
    engine.jobs.goOn();
    for (const connection of this.#late.splice(0)) engine.host.passing?.deliver(connection);
  }

  /** This process serves already: whoever came late is worth less than that. */
  async #untilAlone({ host, warn }: Engine): Promise<void> {
    try {
      while (!this.#channel.isOver) await this.#receiveLate();
    } catch (error) {
      warn(`warning: clients that came during the takeover are lost: ${toBlockError(error).message}`);
    }
    assert(host.passing?.isTaking !== true, 'who waits for the other to end owns all');
    this.#channel.close();
  }

  async #receiveLate(): Promise<void> {
    const message = await this.#channel.receive();
    const { names } = message?.value ?? {};
    const [fd] = message?.fds ?? [];
    if (Array.isArray(names) && fd !== undefined) this.#late.push({ names: names.map(tell), fd });
  }
}
