import { toBlockError } from '../base/error.js';
import { DEFAULT_QUIESCE_MS } from '../schema/points.js';
import type { CommandArguments, CommandResult } from '../schema/commands.js';
import type { JsonObject, JsonValue } from '../schema/types.js';
import type { Parts } from './parts.js';
import { type Created, createPoint } from './points/create.js';
import {
  finishDeletion,
  isDeletedOn,
  markDeleting,
  type PlannedDeletion,
  planPointDeletion,
} from './points/delete.js';
import { listPoints } from './points/list.js';
import { DeletionQueue } from './points/queue.js';
import { revertToPoint } from './points/revert.js';
import type { PointServer } from './points/server.js';
import { diskSwitch } from './points/switch-disks.js';

type Engine = Parts<
  | ('command' | 'graph' | 'opener' | 'print' | 'runState' | 'devices' | 'exports' | 'host')
  | ('registry' | 'hub' | 'emit' | 'onEvent' | 'isClosed' | 'deletingPoints')
>;

/** Points in time of disks: names for moments that chains hold. */
export function registerPoints(engine: Engine): void {
  const points = new Points(engine);
  engine.command('x-point-create', (args) => points.create(args));
  engine.command('x-point-list', async ({ nodes }) => points.list(nodes));
  engine.command('x-point-delete', (args) => points.delete(args));
  engine.command('x-point-revert', async ({ name, image, disks, 'dry-run': isDryRun = false }) => {
    const asked = { name, image, disks, isDryRun };
    return (await revertToPoint(points.here, asked, diskSwitch(engine))).answer;
  });
}

class Points {
  /** For a command that runs. */
  readonly here: PointServer;
  /** For what goes on after it: its commands come in turn with those of clients. */
  readonly #later: PointServer;
  readonly #tellEnd: (name: string, id: string, error?: string) => void;
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
      // What follows may be for an image that another is no longer above.
      execute: (command, args = {}) => registry.complete(command, args) as Promise<JsonValue>,
    };
    this.#later = {
      ...common,
      alone,
      execute: (command, args = {}) => hub.execute(command, args) as Promise<JsonValue>,
    };
    this.#tellEnd = (name, id, error) => {
      const data: JsonObject = { name, id, ...(error !== undefined && { error }) };
      if (!engine.isClosed) engine.emit('x-point-deleted', data);
    };
    this.#queue = new DeletionQueue(this.#tellEnd);
    engine.deletingPoints = () => this.#queue.names;
  }

  async create(args: CommandArguments<'x-point-create'>): Promise<Created> {
    const { name, disks, keep, quiesce: path } = args;
    const timeoutMs = args['quiesce-timeout'] ?? DEFAULT_QUIESCE_MS;
    const isDryRun = args['dry-run'] ?? false;
    const quiesce = path === undefined ? undefined : { path, timeoutMs };
    const { answer: created } = await createPoint(this.here, { name, disks, keep, quiesce, isDryRun });
    if (isDryRun) return created;
    this.#queue.nameTaken(name);
    const nodes = created.images.map((image) => image['new-node-name']);
    for (const old of created.deletes) await this.#deleteTooOld(old, nodes);
    return created;
  }

  /** The new point is there: what keeps an old one from going is told as of any deletion that ends with an error. */
  async #deleteTooOld(name: string, nodes: readonly string[]): Promise<void> {
    try {
      await this.#startDeletion(name, nodes, () => planPointDeletion(this.here, name, nodes));
    } catch (error) {
      const { disks } = await this.list(nodes);
      const old = disks.flatMap(({ points }) => points).find((point) => point.name === name);
      this.#tellEnd(name, old?.id ?? '', toBlockError(error).message);
    }
  }

  async list(nodes: readonly string[] | undefined): Promise<CommandResult<'x-point-list'>> {
    const disks = await listPoints(this.here, nodes, (id) => this.#queue.failureOf(id));
    return { disks, queue: this.#queue.names };
  }

  async delete(args: CommandArguments<'x-point-delete'>): Promise<CommandResult<'x-point-delete'>> {
    const plan = (): Promise<PlannedDeletion> => planPointDeletion(this.here, args.name, args.nodes);
    return this.#startDeletion(args.name, args.nodes, plan, args['dry-run']);
  }

  async #startDeletion(
    name: string,
    nodes: readonly string[] | undefined,
    makePlan: () => Promise<PlannedDeletion>,
    isDryRun = false,
  ): Promise<CommandResult<'x-point-delete'>> {
    const nothing = { words: [], bytes: 0, seconds: 0, ends: [], invalid: [], users: [] };
    const known = this.#queue.find(name);
    if (known && (await isDeletedOn(this.here, name, nodes)))
      return { id: known.id, state: known.state, plan: nothing };
    const done = this.#queue.idOfDone(name);
    if (done !== undefined && (await isDeletedOn(this.here, name, nodes, 'copied')))
      return { id: done, state: 'done', plan: nothing };
    const planned = await makePlan();
    const { id, plan } = planned;
    if (isDryRun) return { id, state: 'planned', plan };
    await markDeleting(this.here, planned);
    const { state } = this.#queue.add(name, id, () => finishDeletion(this.#later, planned));
    return { id, state, plan };
  }
}
