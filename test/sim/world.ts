import { deferred } from '../../src/base/async.js';
import { assert } from '../../src/base/assert.js';
import { BlockError } from '../../src/base/error.js';
import type { BlockBackend } from '../../src/block/backend.js';
import type { Json } from '../../src/block/driver.js';
import type { Graph } from '../../src/block/graph.js';
import type { Node } from '../../src/block/node.js';
import type { Opener } from '../../src/block/open.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { allDrivers } from '../../src/drivers/index.js';
import type { Host } from '../../src/host/host.js';
import {
  createSimulatedHost,
  type DiskSpace,
  SeededRandom,
  type Simulation,
} from '../../src/host/simulated.js';
import type { JobManager } from '../../src/jobs/manager.js';
import { Engine as Monitor } from '../../src/monitor/engine.js';
import { isNoSpace } from './filler.js';
import { SnapshotKeeper } from './internal-snapshots.js';
import { type Allowed, type GuestDisk, Stamps } from './guest-disk.js';

/** Lines of the trace that a failure prints. */
const TRACE_LINES = 120;
/** Virtual time, and operations on files, after which a scenario that still runs is taken to hang. */
const LONGEST_MS = 30 * 60_000;
const MOST_OPERATIONS = 400_000;

/** The engine or the disk did what it must not do. */
export class Violation extends Error {
  override name = 'Violation';
}

export type Format = 'qcow2' | 'raw';

/** An image that the scenario made. */
export interface Image {
  path: string;
  format: Format;
  /** Its creation has ended; before, the file may be anything. */
  isMade: boolean;
  /** What it must hold from now on: nobody changes it any more. */
  allowed?: Allowed;
  /** Of the bitmaps that it keeps, by name: the newest stamp of when it was made or cleared. */
  bitmaps: Map<string, number>;
  /** Names of those that no crash may make inconsistent. */
  durable: Set<string>;
}

export interface WorldOptions {
  /** Lines that a failure shows. */
  traceLines?: number;
  /** Sees every line of the trace. */
  onTrace?: (line: string) => void;
}

/** Where the power may be cut. */
export interface PowerPlan {
  /** The operation, counted from the beginning of the simulation. */
  cutAt: number | undefined;
}

/** The simulated machine of one seed, and what is known from outside of it. */
export class World {
  readonly seed: number;
  readonly random: SeededRandom;
  readonly simulation: Simulation;
  readonly stamps = new Stamps();
  readonly images = new Map<string, Image>();
  /** Of snapshots inside the images. */
  readonly snapshots = new SnapshotKeeper(this);
  /** Images that another engine exports, by the name of the export. */
  readonly exported = new Map<string, Image>();
  /** Errors are to be expected: faults are injected in this seed. */
  faulty = false;
  /** Space runs out now and then in this boot; `isFull`: right now. */
  tight: { tells: DiskSpace['tells']; isFull: boolean } | undefined;
  engine: Engine | undefined;
  /** Requests of guests that were answered. */
  guestRequests = 0;
  power: PowerPlan = { cutAt: undefined };
  /** The file that was the guest's disk when the power went. */
  activePath: string | undefined;
  readonly #trace: string[] = [];
  readonly #options: WorldOptions;
  readonly #failed = deferred<never>();
  #images = 0;

  constructor(seed: number, options: WorldOptions = {}) {
    this.seed = seed;
    this.#options = options;
    this.random = new SeededRandom(seed);
    this.#failed.promise.catch(() => undefined);
    this.simulation = createSimulatedHost({
      seed: this.random.below(2 ** 32),
      refuseProbability: this.random.below(4) * 0.2,
      onOperation: ({ kind, path, index }) => {
        this.trace(`  ${index} ${kind} ${path}`);
        if (index === MOST_OPERATIONS) this.fail('the scenario does not end');
        if (this.power.cutAt === undefined || index < this.power.cutAt) return;
        this.cutPower();
      },
    });
  }

  trace(line: string): void {
    this.#options.onTrace?.(line);
    this.#trace.push(line);
    if (this.#trace.length > (this.#options.traceLines ?? TRACE_LINES)) this.#trace.shift();
  }

  get traced(): readonly string[] {
    return this.#trace;
  }

  /** Rejects with the first violation. */
  get failed(): Promise<never> {
    return this.#failed.promise;
  }

  fail(message: string, cause?: unknown): void {
    this.trace(`VIOLATION ${message}`);
    this.#failed.reject(new Violation(message, { cause }));
  }

  cutPower(): void {
    const { engine } = this;
    this.power = { cutAt: undefined };
    if (engine?.guest?.root) {
      const image = this.imageOf(engine.guest.node);
      this.activePath = image.path;
      // A snapshot moves the guest before it answers: from then on the overlay is the disk, not something half-made.
      image.isMade = true;
    }
    this.trace(`POWER LOSS, the guest on ${this.activePath}`);
    this.engine = undefined;
    this.simulation.powerLoss();
  }

  /** The power goes within the next few operations. */
  cutSoon(operations: number): void {
    this.power = { cutAt: this.simulation.operationCount + operations };
  }

  newImage(format: Format, purpose: string): Image {
    const path = `/tmp/${this.#images++}-${purpose}.${format}`;
    const image = {
      path,
      format,
      isMade: false,
      bitmaps: new Map<string, number>(),
      durable: new Set<string>(),
    };
    this.images.set(path, image);
    return image;
  }

  imageOf(node: Node): Image {
    // The name of its storage: while a header changes, an image may have none that opens the same.
    const layer = node.skipFilters();
    const { filename } = layer.children.get('file')?.node ?? layer;
    const image = this.images.get(filename) ?? this.exported.get(filename);
    assert(image, `image of node '${node.name}' at '${node.filename}'`);
    return image;
  }

  /** Runs a part of the simulation until it ends, the power goes, or something is wrong. */
  async run(body: () => Promise<void>): Promise<'done' | 'power'> {
    return this.simulation.run(async () => {
      const { clock } = this.simulation.host;
      const power = this.simulation.powerLost.then(() => 'power' as const);
      const late = deferred<never>();
      const timer = clock.setTimer(LONGEST_MS, () => {
        for (const job of this.engine?.jobs.list() ?? []) this.trace(JSON.stringify(job.blockJobInfo()));
        late.reject(new Violation('the scenario hangs'));
      });
      const done = body().then(() => 'done' as const);
      // What the power interrupts may fail later, when nobody listens any more.
      done.catch(() => undefined);
      try {
        return await Promise.race([power, this.failed, late.promise, done]);
      } finally {
        timer.cancel();
      }
    });
  }

  boot(): Engine {
    this.engine = new Engine(this, this.simulation.host);
    return this.engine;
  }
}

/** Graph, jobs and guest of one boot. */
export class Engine {
  readonly world: World;
  readonly host: Host;
  readonly monitor: Monitor;
  readonly graph: Graph;
  readonly opener: Opener;
  readonly jobs: JobManager;
  /** How each job ended: 'ok', 'cancelled', or its error. */
  readonly ends = new Map<string, string>();
  guest: BlockBackend | undefined;
  disk: GuestDisk | undefined;

  constructor(world: World, host: Host) {
    this.world = world;
    this.host = host;
    this.monitor = new Monitor({ host, drivers: allDrivers, kind: 'storage-daemon' });
    this.graph = this.monitor.graph;
    this.opener = this.monitor.opener;
    this.jobs = this.monitor.jobs;
    this.monitor.onEvent((event, data) => this.#onEvent(event, data));
    this.graph.onDriverEvent = (node, event): void => {
      if (this.isAlive) world.fail(`node '${node.filename}' reports ${JSON.stringify(event)}`);
    };
  }

  /** The power has not gone since this engine began. */
  get isAlive(): boolean {
    return this.world.engine === this;
  }

  #onEvent(event: string, data: { [key: string]: Json }): void {
    const { world } = this;
    if (!this.isAlive) return;
    world.trace(`${event} ${JSON.stringify(data)}`);
    const { device, error } = data;
    if (event === 'BLOCK_JOB_CANCELLED') this.ends.set(text(device), 'cancelled');
    if (event === 'BLOCK_JOB_COMPLETED')
      this.ends.set(text(device), error === undefined ? 'ok' : text(error));
    const isTurn = event === 'BLOCK_JOB_COMPLETED' || data['status'] === 'pending';
    if (isTurn && world.power.cutAt !== undefined && world.random.chance(0.3))
      world.cutSoon(world.random.below(30));
  }

  /** Attaches a guest to a node; others may write to its disk if it shares it. */
  async attachGuest(node: Node, sharesWrite = false): Promise<BlockBackend> {
    const guest = this.graph.createBackend({
      description: "block device '/machine/guest'",
      perm: Permission.consistentRead | Permission.write,
      shared: ALL_PERMISSIONS - Permission.resize - (sharesWrite ? 0 : Permission.write),
    });
    await this.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
    return guest;
  }

  /** Runs a step whose refusal is all right; an I/O error is not, unless faults are injected. */
  async attempt(what: string, step: () => Promise<void>): Promise<boolean> {
    const { world } = this;
    world.trace(what);
    try {
      await step();
      return true;
    } catch (error) {
      if (!this.isAlive) return false;
      this.judge(what, error);
      return false;
    }
  }

  /** An error that the engine answered, the power being on. */
  judge(what: string, error: unknown): void {
    const { world } = this;
    world.trace(`${what}: ${describe(error)}`);
    const isAllowed =
      error instanceof BlockError &&
      (world.faulty || REFUSALS.has(error.kind) || (world.tight !== undefined && isOfNoSpace(error)));
    if (!isAllowed) world.fail(`${what}: ${describe(error)}`, error);
  }
}

/** Space has run out, now or when a header was to name another backing file. */
function isOfNoSpace(error: BlockError): boolean {
  return isNoSpace(error) || error.message.endsWith(': a change of its header failed');
}

/** What an operation may be refused with when nothing is broken. */
const REFUSALS: ReadonlySet<string> = new Set(['busy', 'invalid', 'unsupported', 'exists', 'not-found']);

function text(value: Json | undefined): string {
  return typeof value === 'string' ? value : JSON.stringify(value ?? null);
}

export function describe(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}
