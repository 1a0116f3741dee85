import { DEFAULT_QUIESCE_MS } from '../schema/points.js';
import type { CommandArguments, CommandResult } from '../schema/commands.js';
import type { JsonObject, JsonValue } from '../schema/types.js';
import type { Parts } from './parts.js';
import { type Created, createPoint } from './points/create.js';
import { finishDeletion, markDeleting, planPointDeletion } from './points/delete.js';
import { listPoints } from './points/list.js';
import { DeletionQueue } from './points/queue.js';
import { revertToPoint } from './points/revert.js';
import type { PointServer } from './points/server.js';
import { diskSwitch } from './points/switch-disks.js';

type Engine = Parts<
  | ('command' | 'graph' | 'opener' | 'print' | 'runState' | 'devices' | 'exports' | 'host')
  | ('registry' | 'hub' | 'emit' | 'onEvent' | 'isClosed')
>;

/** Points in time of disks: names for moments that chains hold. */
export function registerPoints(engine: Engine): void {
  const points = new Points(engine);
  engine.command('x-point-create', (args) => points.create(args));
  engine.command('x-point-list', async ({ nodes }) => points.list(nodes));
  engine.command('x-point-delete', (args) => points.delete(args));
  engine.command('x-point-revert', (args) =>
    revertToPoint(
      points.here,
      { name: args.name, disks: args.disks, isDryRun: args['dry-run'] ?? false },
      diskSwitch(engine),
    ),
  );
}

class Points {
  /** For a command that runs. */
  readonly here: PointServer;
  /** For what goes on after it: its commands come in turn with those of clients. */
  readonly #later: PointServer;
  readonly #queue: DeletionQueue;

  constructor(engine: Engine) {
    const { host, opener, registry, hub } = engine;
    const onJobChange = (listener: () => void): (() => void) =>
      engine.onEvent((event) => {
        if (event === 'JOB_STATUS_CHANGE') listener();
      });
    const common = { host, opener, folder: '.', onJobChange };
    const alone: PointServer['alone'] = (work) => hub.inBand(() => work(this.here));
    this.here = {
      ...common,
      alone: (work) => work(this.here),
      execute: (command, args = {}) => registry.execute(command, args) as Promise<JsonValue>,
    };
    this.#later = {
      ...common,
      alone,
      execute: (command, args = {}) => hub.execute(command, args) as Promise<JsonValue>,
    };
    this.#queue = new DeletionQueue((name, id, error) => {
      const data: JsonObject = { name, id, ...(error !== undefined && { error }) };
      if (!engine.isClosed) engine.emit('x-point-deleted', data);
    });
  }

  async create(args: CommandArguments<'x-point-create'>): Promise<Created> {
    const { name, disks, keep, quiesce: path } = args;
    const timeoutMs = args['quiesce-timeout'] ?? DEFAULT_QUIESCE_MS;
    const isDryRun = args['dry-run'] ?? false;
    const quiesce = path === undefined ? undefined : { path, timeoutMs };
    const created = await createPoint(this.here, { name, disks, keep, quiesce, isDryRun });
    if (isDryRun) return created;
    this.#queue.nameTaken(name);
    for (const old of created.deletes) await this.#delete(old);
    return created;
  }

  async list(nodes: readonly string[] | undefined): Promise<CommandResult<'x-point-list'>> {
    const disks = await listPoints(this.here, nodes, (id) => this.#queue.failureOf(id));
    return { disks, queue: this.#queue.names };
  }

  async delete(args: CommandArguments<'x-point-delete'>): Promise<CommandResult<'x-point-delete'>> {
    return this.#delete(args.name, args.nodes, args['dry-run']);
  }

  async #delete(
    name: string,
    nodes?: readonly string[],
    isDryRun = false,
  ): Promise<CommandResult<'x-point-delete'>> {
    const nothing = { words: [], bytes: 0, seconds: 0, ends: [], invalid: [], users: [] };
    const known = this.#queue.find(name);
    if (known) return { id: known.id, state: known.state, plan: nothing };
    const done = this.#queue.idOfDone(name);
    if (done !== undefined) return { id: done, state: 'done', plan: nothing };
    const planned = await planPointDeletion(this.here, name, nodes);
    const { id, plan } = planned;
    if (isDryRun) return { id, state: 'planned', plan };
    await markDeleting(this.here, planned);
    const { state } = this.#queue.add(name, id, () => finishDeletion(this.#later, planned));
    return { id, state, plan };
  }
}
