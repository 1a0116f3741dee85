import { BlockError } from '../../base/error.js';
import type { DirtyBitmap } from '../../block/dirty-bitmap.js';
import { Node } from '../../block/node.js';
import type { Job } from '../../jobs/job.js';
import type { JsonObject } from '../../schema/types.js';
import type { Parts } from '../parts.js';

export type ThingsEngine = Parts<'graph' | 'jobs' | 'exports' | 'registry' | 'hub' | 'devices' | 'drives'>;

/** Something that a command has made: itself, and not what has its name now. */
export interface Thing {
  readonly type: 'node' | 'bitmap' | 'job' | 'export' | 'point';
  readonly name: string;
  /** Somebody has undone it, or it has ended by itself, or it is a guest's now. */
  isGone(): boolean;
  /**
   * True: it is gone. False: not yet; it is to be looked at again. Errors: those of the command that undoes it; busy while others use it.
   */
  undo(): Promise<boolean>;
}

/** What there is at a moment. */
export class Inventory {
  readonly #nodes: ReadonlySet<Node>;
  readonly #bitmaps: ReadonlySet<DirtyBitmap>;
  readonly #jobs: ReadonlySet<Job>;
  readonly #exports: ReadonlySet<unknown>;

  constructor({ graph, jobs, exports }: ThingsEngine) {
    this.#nodes = new Set(graph.nodes.values());
    this.#bitmaps = new Set([...graph.nodes.values()].flatMap((node) => node.dirtyBitmaps));
    this.#jobs = new Set(jobs.list());
    this.#exports = new Set(exports.list().map(({ id }) => exports.find(id)));
  }

  /** What has come since, in the order in which one needs the other; `ours`: nodes that are the session's. */
  since(engine: ThingsEngine, ours: ReadonlySet<Node>): Thing[] {
    const { graph, jobs, exports } = engine;
    const nodes = [...graph.nodes.values()].filter((node) => node.monitorOwned && !this.#nodes.has(node));
    const all = new Set([...ours, ...nodes]);
    const bitmaps = [...graph.nodes.values()]
      .filter((node) => this.#nodes.has(node))
      .flatMap((node) => node.dirtyBitmaps)
      .filter((bitmap) => bitmap.name !== undefined && !this.#bitmaps.has(bitmap));
    const newJobs = jobs.list().filter((job) => !this.#jobs.has(job));
    const newExports = exports.list().filter(({ id }) => !this.#exports.has(exports.find(id)));
    return [
      ...nodes.map((node) => new MadeNode(engine, node, all)),
      ...bitmaps.map((bitmap) => new MadeBitmap(engine, bitmap)),
      ...newJobs.reverse().map((job) => new MadeJob(engine, job)),
      ...newExports.reverse().map(({ id }) => new MadeExport(engine, id)),
    ];
  }
}

/** Runs a command when no other runs. */
function command({ registry }: ThingsEngine, name: string, args: JsonObject): Promise<unknown> {
  return registry.complete(name, args);
}

export class MadeNode implements Thing {
  readonly type = 'node';
  readonly node: Node;
  readonly #engine: ThingsEngine;
  readonly #ours: ReadonlySet<Node>;

  constructor(engine: ThingsEngine, node: Node, ours: ReadonlySet<Node>) {
    this.#engine = engine;
    this.node = node;
    this.#ours = ours;
  }

  get name(): string {
    return this.node.name;
  }

  /** A guest that a job, or a snapshot, has brought to it keeps it; a filter that was put above its disk is taken away. */
  isGone(): boolean {
    const { graph } = this.#engine;
    if (graph.nodes.get(this.name) !== this.node || !this.node.monitorOwned) return true;
    return this.#isOfGuest(this.node);
  }

  /** It is an image of a guest's disk, which may have others above it by now. */
  #isOfGuest(node: Node): boolean {
    return !node.isFilter && this.#isUnderGuest(node);
  }

  #isUnderGuest(node: Node): boolean {
    for (const { parent } of node.parents) {
      if (this.#isGuest(parent)) return true;
      if (parent instanceof Node && parent.below?.node === node && this.#isUnderGuest(parent)) return true;
    }
    return false;
  }

  #isGuest(parent: unknown): boolean {
    const { devices, drives } = this.#engine;
    for (const { backend } of devices.values()) if (backend === parent) return true;
    for (const { backend } of drives.values()) if (backend === parent) return true;
    return false;
  }

  undo(): Promise<boolean> {
    const { hub } = this.#engine;
    return hub.inBand(async () => {
      if (this.isGone()) return true;
      if (this.node.isFilter) await this.#takeOut();
      await command(this.#engine, 'blockdev-del', { 'node-name': this.name });
      return true;
    });
  }

  /** Whoever came to the filter goes back to what it shows. */
  async #takeOut(): Promise<void> {
    const { graph } = this.#engine;
    const shown = this.node.filtered?.node;
    const isOurs = (parent: unknown): boolean =>
      parent instanceof Node && this.#ours.has(parent) && !this.#isOfGuest(parent);
    if (!shown || [...this.node.parents].every(({ parent }) => isOurs(parent))) return;
    await graph.drained([this.node], () =>
      graph.transaction((transaction) => {
        transaction.replaceNode(this.node, shown, ({ parent }) => isOurs(parent));
      }),
    );
  }
}

class MadeBitmap implements Thing {
  readonly type = 'bitmap';
  readonly #engine: ThingsEngine;
  readonly #bitmap: DirtyBitmap;

  constructor(engine: ThingsEngine, bitmap: DirtyBitmap) {
    this.#engine = engine;
    this.#bitmap = bitmap;
  }

  /** It goes with its disk where a job moves that. */
  get name(): string {
    return `${this.#node()?.name ?? ''}/${this.#bitmap.name ?? ''}`;
  }

  #node(): Node | undefined {
    for (const node of this.#engine.graph.nodes.values())
      if (node.dirtyBitmaps.includes(this.#bitmap)) return node;
    return undefined;
  }

  isGone(): boolean {
    return this.#node() === undefined;
  }

  undo(): Promise<boolean> {
    return this.#engine.hub.inBand(async () => {
      const node = this.#node();
      if (!node) return true;
      const args = { node: node.name, name: this.#bitmap.name ?? '' };
      await command(this.#engine, 'block-dirty-bitmap-remove', args);
      return true;
    });
  }
}

class MadeJob implements Thing {
  readonly type = 'job';
  readonly #jobs: ThingsEngine['jobs'];
  readonly #job: Job;

  constructor({ jobs }: ThingsEngine, job: Job) {
    this.#jobs = jobs;
    this.#job = job;
  }

  get name(): string {
    return this.#job.id;
  }

  isGone(): boolean {
    return this.#jobs.find(this.name) !== this.#job;
  }

  /** Others go on while it ends. */
  async undo(): Promise<boolean> {
    await this.#job.cancelNow();
    if (!this.isGone()) this.#job.dismiss();
    return true;
  }
}

class MadeExport implements Thing {
  readonly type = 'export';
  readonly name: string;
  readonly #engine: ThingsEngine;
  readonly #entry: unknown;

  constructor(engine: ThingsEngine, id: string) {
    this.name = id;
    this.#engine = engine;
    this.#entry = engine.exports.find(id);
  }

  isGone(): boolean {
    return this.#entry === undefined || this.#engine.exports.find(this.name) !== this.#entry;
  }

  undo(): Promise<boolean> {
    return this.#engine.hub.inBand(async () => {
      const { exports } = this.#engine;
      const isEnding = exports.list().some(({ id, shuttingDown }) => id === this.name && shuttingDown);
      if (!this.isGone() && !isEnding) await exports.remove(this.name, 'hard');
      return this.isGone();
    });
  }
}

export class MadePoint implements Thing {
  readonly type = 'point';
  readonly name: string;
  readonly #engine: ThingsEngine;
  #isGone = false;

  constructor(engine: ThingsEngine, name: string) {
    this.#engine = engine;
    this.name = name;
  }

  isGone(): boolean {
    return this.#isGone;
  }

  /** Its deletion is a job that takes its time. */
  undo(): Promise<boolean> {
    return this.#engine.hub.inBand(async () => {
      const { disks, queue } = (await command(this.#engine, 'x-point-list', {})) as {
        disks: ReadonlyArray<{ points: ReadonlyArray<{ name: string; why?: string }> }>;
        queue: readonly string[];
      };
      const points = disks.flatMap(({ points: all }) => all).filter(({ name }) => name === this.name);
      this.#isGone = points.length === 0 && !queue.includes(this.name);
      if (this.#isGone || queue.includes(this.name)) return this.#isGone;
      await command(this.#engine, 'x-point-delete', { name: this.name });
      const [first] = points;
      if (first?.why !== undefined) throw new BlockError('busy', first.why);
      return false;
    });
  }
}

/** Those of another process, which have come to be here again. What has not is left out. */
export function restoreThings(
  engine: ThingsEngine,
  things: ReadonlyArray<Pick<Thing, 'type' | 'name'>>,
): Thing[] {
  const { graph, jobs } = engine;
  const ours = new Set(
    things.flatMap(({ type, name }) => (type === 'node' ? (graph.nodes.get(name) ?? []) : [])),
  );
  return things.flatMap(({ type, name }): Thing[] => {
    switch (type) {
      case 'node': {
        const node = graph.nodes.get(name);
        return node ? [new MadeNode(engine, node, ours)] : [];
      }
      case 'bitmap': {
        // A node's name has no slash.
        const slash = name.indexOf('/');
        const bitmap = graph.nodes.get(name.slice(0, slash))?.findBitmap(name.slice(slash + 1));
        return bitmap ? [new MadeBitmap(engine, bitmap)] : [];
      }
      case 'job': {
        const job = jobs.find(name);
        return job ? [new MadeJob(engine, job)] : [];
      }
      case 'export':
        return [new MadeExport(engine, name)];
      case 'point':
        return [new MadePoint(engine, name)];
    }
  });
}
