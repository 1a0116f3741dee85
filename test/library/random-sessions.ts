import assert from 'node:assert/strict';
import type { Node } from '../../src/block/node.js';
import { createSimulatedHost, SeededRandom, type Simulation } from '../../src/host/simulated.js';
import { createEngine, type Engine, type Session } from '../../src/index.js';
import type { JsonObject } from '../../src/schema/types.js';

const DISK_BYTES = 1024 * 1024;
const SECTOR_BYTES = 4096;
const NAMES = ['a', 'b', 'c', 'd', 'e', 'f'];
const IDS = ['x', 'y', 'z'];
const SESSIONS = ['s1', 's2', 's3'];
/** Nobody's session. */
const OUTSIDE = 'outside';
const GUEST = '/machine/peripheral/guest';

/** A node, a bitmap, an export's entry, a job: told apart by what they are. */
type Thing = object;

/**
 * Clients with and without sessions change one engine's graph under a guest that writes, in turns: when a session ends,
 * what was made under it goes, and nothing else does.
 */
export class RandomSessions {
  readonly #random: SeededRandom;
  readonly #simulation: Simulation;
  readonly log: string[] = [];
  engine!: Engine;
  readonly #sessions = new Map<string, Session>();
  readonly #makers = new Map<Thing, string>();
  /** Nodes that the guest's disk has been made of. */
  readonly #guests = new Set<Thing>();
  readonly #expected = Buffer.alloc(DISK_BYTES);
  #images = 0;
  #undone = 0;

  constructor(seed: number) {
    this.#random = new SeededRandom(seed);
    this.#simulation = createSimulatedHost({ seed, stuckAfterMs: 600_000 });
  }

  /** Things of sessions that have ended. */
  get undone(): number {
    return this.#undone;
  }

  run(steps: number): Promise<void> {
    return this.#simulation.run(() => this.#run(steps));
  }

  async #run(steps: number): Promise<void> {
    this.engine = await createEngine({ host: this.#simulation.host, kind: 'machine' });
    await this.#chain();
    for (let i = 0; i < steps; i++) await this.#step();
    await this.#leave();
    await this.engine.close();
  }

  async #chain(): Promise<void> {
    const { engine } = this;
    let backing: { filename: string; format: string } | undefined;
    for (const name of ['low', 'top']) {
      const filename = `/tmp/${name}.qcow2`;
      await engine.createImage({
        filename,
        format: 'qcow2',
        sizeBytes: DISK_BYTES,
        ...(backing && { backing }),
      });
      const options = { driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename } };
      await engine.addNode({ ...options, ...(backing && { backing: 'low' }) });
      backing = { filename, format: 'qcow2' };
    }
    await engine.addDevice('top', { id: 'guest' });
    await engine.execute('nbd-server-start', { addr: { type: 'unix', data: { path: '/tmp/nbd' } } });
    this.#note(OUTSIDE);
  }

  /** All that there is now and has a maker. */
  #things(): Set<Thing> {
    const { graph, jobs, exports } = this.engine;
    const nodes = [...graph.nodes.values()];
    return new Set<Thing>([
      ...nodes.filter((node) => node.monitorOwned),
      ...nodes.flatMap((node) => node.dirtyBitmaps.filter(({ name }) => name !== undefined)),
      ...jobs.list(),
      ...exports.list().map(({ id }) => exports.find(id) as object),
    ]);
  }

  #note(maker: string): void {
    for (const thing of this.#things()) if (!this.#makers.has(thing)) this.#makers.set(thing, maker);
  }

  #noteGuests(): void {
    for (let at = this.#guestNode(); at; at = at.below?.node) this.#guests.add(at);
  }

  #guestNode(): Node | undefined {
    return this.engine.devices.get('guest')?.backend?.node;
  }

  #pick<T>(of: readonly T[]): T {
    return of[this.#random.below(of.length)] as T;
  }

  async #step(): Promise<void> {
    this.#noteGuests();
    if (this.#random.chance(0.4)) await this.#guestWrites();
    const roll = this.#random.below(20);
    if (roll < 3) return this.#openSession();
    if (roll < 6) return this.#endSession();
    if (roll < 8) return this.#sleep(this.#pick([5, 300, 2000]));
    const maker = this.#random.chance(0.7) ? this.#anySession() : undefined;
    await this.#command(maker ?? OUTSIDE, ...(await this.#choose()));
  }

  async #command(maker: string, name: string, args: JsonObject): Promise<void> {
    const caller = this.#sessions.get(maker) ?? this.engine;
    this.log.push(`${maker}: ${name} ${JSON.stringify(args)}`);
    const before = this.#things();
    try {
      const answer: unknown = await caller.execute(name as 'query-block', args);
      this.log.push(`  ${JSON.stringify(answer)}`);
    } catch (error) {
      this.log.push(`  ${String(error)}`);
      assert.doesNotMatch(String(error), /internal|assert/i);
    }
    for (const thing of this.#things())
      if (!before.has(thing) && !this.#makers.has(thing)) this.#makers.set(thing, maker);
  }

  async #guestWrites(): Promise<void> {
    const backend = this.engine.devices.get('guest')?.backend;
    assert.ok(backend);
    const offset = this.#random.below(DISK_BYTES / SECTOR_BYTES) * SECTOR_BYTES;
    const bytes = Buffer.alloc(SECTOR_BYTES, 1 + this.#random.below(255));
    await backend.write(offset, bytes);
    bytes.copy(this.#expected, offset);
  }

  #anySession(): string | undefined {
    return this.#sessions.size > 0 ? this.#pick([...this.#sessions.keys()]) : undefined;
  }

  async #openSession(): Promise<void> {
    const id = this.#pick(SESSIONS);
    if (this.#sessions.has(id)) return;
    const lease = this.#random.chance(0.5) ? { lease: 1 + this.#random.below(3) } : {};
    try {
      this.#sessions.set(id, await this.engine.openSession(id, lease));
      this.log.push(`open ${id} ${JSON.stringify(lease)}`);
    } catch (error) {
      this.log.push(`open ${id}: ${String(error)}`);
      assert.match(String(error), /already in use/);
    }
  }

  async #endSession(): Promise<void> {
    const id = this.#anySession();
    const session = this.#sessions.get(id ?? '');
    if (id === undefined || !session) return;
    if (this.#random.chance(0.3)) return this.#sleep(4000);
    const kept = this.#keptWhen([id]);
    this.log.push(`close ${id}`);
    await session.close().catch((error: unknown) => {
      this.log.push(`  ${String(error)}`);
      assert.match(String(error), /is not undone yet|not found/);
    });
    this.#sessions.delete(id);
    this.#checkKept(kept);
    await this.#checkEnded();
  }

  /** Leases may end meanwhile, and what could not be undone is tried again. */
  async #sleep(ms: number): Promise<void> {
    const kept = this.#keptWhen(SESSIONS);
    this.log.push(`${ms} ms pass`);
    await this.#simulation.host.clock.sleep(ms);
    this.#checkKept(kept);
    await this.#checkEnded();
  }

  /** Nodes, bitmaps and exports that nobody of `ending` made, on nodes that stay. Jobs may end by themselves. */
  #keptWhen(ending: readonly string[]): Thing[] {
    const { jobs, graph } = this.engine;
    const mayEnd = new Set<Thing>(jobs.list());
    const goes = (thing: Thing): boolean => ending.includes(this.#makers.get(thing) ?? OUTSIDE);
    for (const node of graph.nodes.values())
      if (goes(node)) for (const bitmap of node.dirtyBitmaps) mayEnd.add(bitmap);
    return [...this.#things()].filter((thing) => !mayEnd.has(thing) && !goes(thing));
  }

  #checkKept(kept: readonly Thing[]): void {
    const now = this.#things();
    for (const thing of kept)
      if (!now.has(thing)) assert.fail(`lost with a session: ${this.#describe(thing)}`);
  }

  #describe(thing: Thing): string {
    const { name, id } = thing as { name?: string; id?: string };
    return `${thing.constructor.name} ${name ?? id ?? ''} of ${this.#makers.get(thing) ?? 'nobody'}`;
  }

  /** Of a session that is no more nothing is left but nodes that the guest has come to. */
  async #checkEnded(): Promise<void> {
    const listed = await this.engine.execute('x-session-list');
    const open = new Set(listed.filter(({ ends }) => ends === undefined).map(({ id }) => id));
    const known = new Set(listed.map(({ id }) => id));
    for (const id of this.#sessions.keys()) if (!open.has(id)) this.#sessions.delete(id);
    for (const [thing, maker] of this.#makers) {
      if (maker === OUTSIDE || known.has(maker)) continue;
      this.#undone++;
      const isThere = this.#things().has(thing);
      if (isThere && !this.#guests.has(thing)) {
        this.log.push(JSON.stringify(listed));
        assert.fail(`left of a session: ${this.#describe(thing)}`);
      }
      this.#makers.set(thing, OUTSIDE);
    }
  }

  /** Everybody goes, those without a session first: nothing of a session is left after a minute. */
  async #leave(): Promise<void> {
    this.#noteGuests();
    const { engine } = this;
    const { clock } = this.#simulation.host;
    for (const job of engine.jobs.list()) {
      await job.cancelNow().catch(() => undefined);
      if (engine.jobs.find(job.id) === job) job.dismiss();
    }
    for (const { id } of engine.exports.list())
      await engine.execute('block-export-del', { id, mode: 'hard' }).catch(() => undefined);
    for (const [id, session] of this.#sessions) {
      this.log.push(`close ${id} at the end`);
      await session.close().catch((error: unknown) => this.log.push(`  ${String(error)}`));
    }
    this.#sessions.clear();
    for (let round = 0; round < 12; round++) {
      await clock.sleep(500);
      const at = this.#guestNode();
      const value = at?.isFilter === true && at.monitorOwned ? at.filtered?.node.name : undefined;
      if (value !== undefined)
        await engine.execute('qom-set', { path: GUEST, property: 'drive', value }).catch(() => undefined);
      const nodes = this.#owned().filter((node) => this.#makers.get(node) === OUTSIDE);
      for (const { name } of nodes)
        await engine.execute('blockdev-del', { 'node-name': name }).catch(() => undefined);
    }
    await clock.sleep(120_000);
    await this.#checkEnded();
    const listed = await engine.execute('x-session-list');
    assert.deepEqual(listed, [], 'sessions that are not undone');
    await this.#checkDisk();
  }

  async #checkDisk(): Promise<void> {
    const backend = this.engine.devices.get('guest')?.backend;
    const bytes = Buffer.alloc(DISK_BYTES);
    await backend?.read(0, bytes);
    assert.ok(bytes.equals(this.#expected), 'the guest reads what it wrote');
  }

  #owned(): Node[] {
    return [...this.engine.graph.nodes.values()].filter((node) => node.monitorOwned);
  }

  #name(): string {
    return this.#random.chance(0.8) ? this.#pick(this.#owned()).name : this.#pick(NAMES);
  }

  /** A name of a node that may be written over. */
  #target(): string {
    const targets = this.#owned().filter(({ name }) => /^[ij]/.test(name));
    return targets.length > 0 ? this.#pick(targets).name : 'none';
  }

  /** Where the guest would see what it sees: a filter above its node, or what its filter shows. */
  #sameDisk(): string {
    const node = this.#guestNode();
    const filters = this.#owned().filter(
      ({ filtered, driver, readOnly }) =>
        filtered?.node === node && driver.name !== 'snapshot-access' && !readOnly,
    );
    const below = node?.isFilter === true ? node.filtered?.node : undefined;
    return this.#pick([...filters, ...(below ? [below] : []), ...(node ? [node] : [])]).name;
  }

  async #choose(): Promise<[string, JsonObject]> {
    const random = this.#random;
    const [one, target, id] = [this.#name(), this.#target(), this.#pick(IDS)];
    // What is kept of a bitmap in an image that is not written is lost, and cannot be removed there, as in QEMU.
    const persistent = random.chance(0.4) && /^i/.test(one);
    const common = {
      'job-id': id,
      ...(random.chance(0.5) ? { speed: 100_000 } : {}),
      ...(random.chance(0.3) ? { 'auto-dismiss': false } : {}),
    };
    switch (random.below(22)) {
      case 0:
        return ['blockdev-add', { driver: 'null-co', 'node-name': this.#pick(NAMES), size: DISK_BYTES }];
      case 1:
      case 2: {
        const filename = `/tmp/i${this.#images++}.qcow2`;
        await this.engine.createImage({ filename, format: 'qcow2', sizeBytes: DISK_BYTES });
        const file = { driver: 'file', filename };
        return ['blockdev-add', { driver: 'qcow2', 'node-name': `i${this.#images}`, file }];
      }
      case 3:
      case 4:
      case 5:
        return this.#filter(random.chance(0.5) ? (this.#guestNode()?.name ?? one) : one, target);
      case 6:
        return ['blockdev-del', { 'node-name': one }];
      case 7:
      case 8:
        return ['block-dirty-bitmap-add', { node: one, name: id, persistent }];
      case 9:
        return ['block-dirty-bitmap-remove', { node: one, name: id }];
      case 10:
        return ['blockdev-mirror', { ...common, device: one, target, sync: 'full' }];
      case 11:
        return ['blockdev-backup', { ...common, device: one, target, sync: this.#pick(['full', 'none']) }];
      case 12:
        return [
          this.#pick([
            'job-cancel',
            'job-complete',
            'job-complete',
            'job-dismiss',
            'job-pause',
            'job-resume',
          ]),
          { id },
        ];
      case 13:
        return [
          'block-export-add',
          { type: 'nbd', id: this.#pick(IDS), 'node-name': one, writable: random.chance(0.2) },
        ];
      case 14:
        return ['block-export-del', { id, mode: this.#pick(['safe', 'hard']) }];
      case 15: {
        const file = `/tmp/o${this.#images++}.qcow2`;
        const node = random.chance(0.5) ? (this.#guestNode()?.name ?? one) : one;
        return [
          'blockdev-snapshot-sync',
          { 'node-name': node, 'snapshot-file': file, 'snapshot-node-name': `o${this.#images}` },
        ];
      }
      case 16:
        return ['block-commit', { ...common, device: one }];
      case 17:
        return ['block-stream', { ...common, device: one }];
      case 18:
        return random.chance(0.7)
          ? ['x-point-create', { name: id, disks: [{ node: this.#guestNode()?.name ?? one }] }]
          : ['x-point-delete', { name: id }];
      case 19:
      case 20:
        return ['qom-set', { path: GUEST, property: 'drive', value: this.#sameDisk() }];
      default:
        return [
          'transaction',
          {
            actions: [
              { type: 'block-dirty-bitmap-add', data: { node: one, name: id } },
              { type: 'blockdev-backup', data: { ...common, device: one, target, sync: 'full' } },
            ],
          },
        ];
    }
  }

  #filter(file: string, target: string): [string, JsonObject] {
    const name = this.#pick(NAMES);
    const driver = this.#pick(['copy-on-read', 'raw', 'copy-before-write', 'snapshot-access']);
    const more = driver === 'copy-before-write' ? { target } : {};
    return ['blockdev-add', { driver, 'node-name': name, file, ...more }];
  }
}
