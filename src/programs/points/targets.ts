import { AsyncMutex, deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import { Graph } from '../../block/graph.js';
import { Opener } from '../../block/open.js';
import { probedWarning } from '../../block/format-guard.js';
import { DriverRegistry } from '../../block/registry.js';
import { allDrivers } from '../../drivers/index.js';
import type { Host } from '../../host/host.js';
import { Disk } from '../../library/disk.js';
import { Engine } from '../../monitor/engine.js';
import { createPoint } from '../../monitor/points/create.js';
import {
  deletionCommands,
  finishDeletion,
  markDeleting,
  type PlannedDeletion,
  planPointDeletion,
} from '../../monitor/points/delete.js';
import { listPoints } from '../../monitor/points/list.js';
import { revertToPoint } from '../../monitor/points/revert.js';
import type { PointServer } from '../../monitor/points/server.js';
import { qmpSwitch } from '../../monitor/points/switch-by-qmp.js';
import { answerTo } from '../../schema/answer.js';
import type { CommandArguments, CommandName, CommandResult } from '../../schema/commands.js';
import { DEFAULT_QUIESCE_MS } from '../../schema/points.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import { objectsOf, textOf } from '../../view/answers.js';
import { connectMonitor } from '../../view/connect.js';
import type { PointsCommands, PointsLink, Told } from '../../web/points.js';
import type { QmpClient } from '../../wire/qmp/client.js';
import { parseMonitorAddress } from '../arguments/monitor-address.js';

/** Whose points are looked at and changed. */
export interface PointsTarget extends PointsCommands {
  /** A command of plain QMP. */
  execute(command: string, args?: JsonObject): Promise<JsonValue>;
  close(): Promise<void>;
}

/** A running server, by its QMP socket. Errors: those of connecting. */
export async function connectTarget(
  host: Host,
  name: string,
  folder: string | undefined,
): Promise<PointsTarget> {
  const client = await connectMonitor(host, parseMonitorAddress(name), name);
  return targetOver(host, new ClientLink(client), folder);
}

/** A server that is connected. */
export async function targetOver(
  host: Host,
  link: Link,
  folder: string | undefined,
): Promise<LivediskTarget | QmpTarget> {
  const commands = objectsOf(await link.execute('query-commands'));
  const isOurs = commands.some((command) => command['name'] === 'x-point-list');
  return isOurs ? new LivediskTarget(link) : new QmpTarget(host, link, folder);
}

/** Whoever takes our commands. */
interface Link extends PointsLink {
  close(): Promise<void>;
}

class ClientLink implements Link {
  readonly #client: QmpClient;

  constructor(client: QmpClient) {
    this.#client = client;
  }

  execute(command: string, args?: JsonObject): Promise<JsonValue> {
    return this.#client.execute(command, args);
  }

  onEvent(listener: (event: string, data: JsonObject) => void): () => void {
    return this.#client.onEvent(({ event, data }) => listener(event, data));
  }

  get ended(): Promise<unknown> {
    return this.#client.closed;
  }

  async close(): Promise<void> {
    this.#client.close();
  }
}

/** Has the commands itself. */
class LivediskTarget implements PointsTarget {
  readonly #link: Link;
  readonly #ownDisk: string | undefined;

  /** `ownDisk`: the one that all is about, where none is named. */
  constructor(link: Link, ownDisk?: string) {
    this.#link = link;
    this.#ownDisk = ownDisk;
  }

  execute(command: string, args?: JsonObject): Promise<JsonValue> {
    return this.#link.execute(command, args);
  }

  async #run<N extends CommandName>(name: N, args: CommandArguments<N>): Promise<CommandResult<N>> {
    return answerTo(name, await this.#link.execute(name, args));
  }

  list(args: CommandArguments<'x-point-list'>): Promise<CommandResult<'x-point-list'>> {
    return this.#run('x-point-list', args);
  }

  create(args: CommandArguments<'x-point-create'>): Promise<CommandResult<'x-point-create'>> {
    return this.#watching(async (ended) => {
      const answer = await this.#run('x-point-create', { ...this.#ownDisks(), ...args });
      if (args['dry-run'] !== true) for (const name of answer.deletes) await ended(name);
      return answer;
    });
  }

  delete(
    args: CommandArguments<'x-point-delete'>,
    onStarted?: () => void,
  ): Promise<CommandResult<'x-point-delete'>> {
    const own = this.#ownDisk === undefined ? {} : { nodes: [this.#ownDisk] };
    return this.#watching(async (ended) => {
      const answer = await this.#run('x-point-delete', { ...own, ...args });
      onStarted?.();
      if (answer.state === 'queued' || answer.state === 'running') await ended(args.name);
      return answer;
    });
  }

  revert(args: CommandArguments<'x-point-revert'>): Promise<CommandResult<'x-point-revert'>> {
    return this.#run('x-point-revert', { ...this.#ownDisks(), ...args });
  }

  #ownDisks(): { disks?: Array<{ node: string }> } {
    return this.#ownDisk === undefined ? {} : { disks: [{ node: this.#ownDisk }] };
  }

  /** Ends of deletions are kept from before the command on, which may end before its answer is read. */
  async #watching<T>(body: (ended: (name: string) => Promise<void>) => Promise<T>): Promise<T> {
    const ends = new Map<string, JsonObject>();
    let changed = deferred();
    const stop = this.#link.onEvent((event, data) => {
      const { name } = data;
      if (event !== 'x-point-deleted' || typeof name !== 'string') return;
      ends.set(name, data);
      changed.resolve();
    });
    const ended = async (name: string): Promise<void> => {
      for (;;) {
        const end = ends.get(name);
        const error = textOf(end?.['error']);
        if (error !== undefined) throw new BlockError('io', error);
        if (end) return;
        const isClosed = await Promise.race([changed.promise, this.#link.ended.then(() => true)]);
        if (isClosed === true)
          throw new BlockError('closed', `the server is gone; '${name}' is deleted in part`);
        changed = deferred();
      }
    };
    try {
      return await body(ended);
    } finally {
      stop();
    }
  }

  close(): Promise<void> {
    return this.#link.close();
  }
}

/** QEMU or its storage daemon: the same is done from here, by plain QMP. */
class QmpTarget implements PointsTarget {
  readonly #link: Link;
  readonly #server: PointServer;

  constructor(host: Host, link: Link, folder: string | undefined) {
    this.#link = link;
    const turns = new AsyncMutex();
    const inTurn: PointServer = {
      ...{ host, folder, opener: new Opener(new Graph(host), new DriverRegistry(allDrivers)) },
      execute: (command, args) => link.execute(command, args),
      alone: (work) => work(inTurn),
      onJobChange: (listener) => {
        // Of a server that is gone no event comes: the next question tells that.
        void link.ended.then(listener, listener);
        return link.onEvent((event) => {
          if (event === 'JOB_STATUS_CHANGE') listener();
        });
      },
    };
    this.#server = { ...inTurn, alone: (work) => turns.run(() => work(inTurn)) };
  }

  execute(command: string, args?: JsonObject): Promise<JsonValue> {
    return this.#link.execute(command, args);
  }

  async list({ nodes }: CommandArguments<'x-point-list'>): Promise<CommandResult<'x-point-list'>> {
    return { disks: await listPoints(this.#server, nodes, () => undefined), queue: [] };
  }

  async create(args: CommandArguments<'x-point-create'>): Promise<Told<'x-point-create'>> {
    const { name, disks, keep, quiesce: path, 'dry-run': isDryRun = false } = args;
    const timeoutMs = args['quiesce-timeout'] ?? DEFAULT_QUIESCE_MS;
    const quiesce = path === undefined ? undefined : { path, timeoutMs };
    const { answer, commands } = await this.#server.alone((server) =>
      createPoint(server, { name, disks, keep, quiesce, isDryRun }),
    );
    const nodes = answer.images.map((image) => image['new-node-name']);
    if (!isDryRun)
      for (const old of answer.deletes)
        await this.#delete((server) => planPointDeletion(server, old, nodes), false);
    return { ...answer, commands };
  }

  async delete(
    args: CommandArguments<'x-point-delete'>,
    onStarted?: () => void,
  ): Promise<Told<'x-point-delete'>> {
    const plan = (server: PointServer): Promise<PlannedDeletion> =>
      planPointDeletion(server, args.name, args.nodes);
    return this.#delete(plan, args['dry-run'] === true, onStarted);
  }

  async #delete(
    makePlan: (server: PointServer) => Promise<PlannedDeletion>,
    isDryRun: boolean,
    onStarted?: () => void,
  ): Promise<Told<'x-point-delete'>> {
    const planned = await this.#server.alone(async (server) => {
      const found = await makePlan(server);
      if (!isDryRun) await markDeleting(server, found);
      return found;
    });
    const { id, plan } = planned;
    const commands = deletionCommands(planned);
    if (isDryRun) return { id, state: 'planned', plan, commands };
    onStarted?.();
    await finishDeletion(this.#server, planned);
    return { id, state: 'done', plan, commands };
  }

  async revert(args: CommandArguments<'x-point-revert'>): Promise<Told<'x-point-revert'>> {
    const { name, image, disks, 'dry-run': isDryRun = false } = args;
    const { answer, commands } = await this.#server.alone((server) =>
      revertToPoint(server, { name, image, disks, isDryRun }, qmpSwitch(server)),
    );
    return { ...answer, commands };
  }

  close(): Promise<void> {
    return this.#link.close();
  }
}

/** An image that no program has open. Errors: those of opening, busy when one has. */
export async function openTarget(
  host: Host,
  filename: string,
  { format, writes }: { format: string | undefined; writes: boolean },
): Promise<PointsTarget> {
  const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
  engine.opener.onProbed = (name, probed, readOnly) =>
    void process.stderr.write(probedWarning(name, probed, readOnly));
  let disk: string;
  try {
    const context = writes ? { readOnly: false } : { readOnly: true, forceShare: true };
    const node = await engine.opener.openImage(filename, format, { ...context, discard: 'unmap' });
    disk = node.name;
    await Disk.open(engine.graph, node, {});
  } catch (error) {
    await engine.close();
    throw error;
  }
  const execute = (command: string, args: JsonObject = {}): Promise<JsonValue> =>
    engine.hub.execute(command, args) as Promise<JsonValue>;
  const link: Link = {
    execute,
    onEvent: (listener) => engine.onEvent((event, data) => listener(event, data)),
    ended: engine.ended,
    close: () => engine.close(),
  };
  // Of a point of several disks it is the one that was named.
  return new LivediskTarget(link, disk);
}
