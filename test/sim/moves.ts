import assert from 'node:assert/strict';
import { createImage } from '../../src/block/create.js';
import { allDrivers } from '../../src/drivers/index.js';
import type { SocketAddress } from '../../src/host/host.js';
import { createSimulatedHost, SeededRandom, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import type { MoveInfo } from '../../src/schema/migration.js';
import { KillableHost } from '../kit/killable-host.js';
import { type Cut, Relay } from '../kit/relay.js';

/** Moves of one machine between two processes, which are killed, cut off, and asked by hand; all from one seed. */

const KiB = 1024;
const DISK_BYTES = 256 * KiB;
const BLOCK_BYTES = 4 * KiB;
const BLOCKS = DISK_BYTES / BLOCK_BYTES;
const LINK: SocketAddress = { type: 'unix', path: '/tmp/link' };
const DOOR: SocketAddress = { type: 'unix', path: '/tmp/door' };
/** Both ends have come to rest by then, whatever they wait for. */
const REST_MS = 100_000;
/** A move's bytes towards each end, of which the last ones are the word and the answer to it. */
const MOVE_BYTES = { server: { all: 610, last: 90 }, client: { all: 155, last: 32 } } as const;

export interface MoveFailure {
  seed: number;
  message: string;
  trace: string[];
}

/** Errors: none; what went wrong is the answer. */
export async function runMoves(seed: number): Promise<MoveFailure | undefined> {
  const scenario = new MoveScenario(seed);
  try {
    await scenario.run();
    return undefined;
  } catch (error) {
    const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { seed, message, trace: scenario.trace };
  }
}

interface Side {
  readonly name: 'source' | 'destination';
  readonly process: KillableHost;
  readonly engine: Engine;
}

export class MoveScenario {
  readonly trace: string[] = [];
  readonly #random: SeededRandom;
  readonly #simulation: Simulation;
  readonly #isShared: boolean;
  /** What each block must hold: the last value that was flushed, or one that was written after. */
  readonly #allowed: Array<Set<number>> = Array.from({ length: BLOCKS }, () => new Set([0]));
  #stamp = 0;
  #isWriting = true;
  /** What happens now takes long. */
  #isCalm = false;
  /** The first thing that must not be, seen while nobody could be told. */
  #violation: string | undefined;
  /** What a dead end has written to a disk of its own went with it. */
  #isForced = false;
  #source!: Side;
  #destination!: Side;
  #relay!: Relay;

  constructor(seed: number) {
    this.#random = new SeededRandom(seed);
    this.#simulation = createSimulatedHost({ seed: this.#random.below(2 ** 32), stuckAfterMs: 20_000 });
    this.#isShared = this.#random.chance(0.6);
  }

  run(): Promise<void> {
    return this.#simulation.run(async () => {
      await this.#begin();
      const writer = this.#write();
      await this.#trouble();
      await this.#settle();
      this.#isWriting = false;
      await writer;
      await this.#judge();
      await Promise.all(this.#living().map(({ engine }) => engine.close()));
      await this.#relay.close();
    });
  }

  async #begin(): Promise<void> {
    const { host } = this.#simulation;
    this.#relay = await new Relay(host, LINK, DOOR, {
      delayMs: this.#random.below(3) * 20,
      random: this.#random.fork(),
    }).open();
    for (const name of this.#isShared ? ['here'] : ['here', 'there']) await this.#makeImage(name);
    this.#source = await this.#start('source', 'here');
    this.#destination = await this.#start('destination', this.#isShared ? 'here' : 'there');
    if (this.#random.chance(0.3)) await this.#capable(this.#source, 'pause-before-switchover');
    if (this.#random.chance(0.3)) await this.#capable(this.#destination, 'late-block-activate');
    await this.#destination.engine.execute('migrate-incoming', { uri: `unix:${pathOf(DOOR)}` });
  }

  async #capable(
    { engine }: Side,
    capability: 'pause-before-switchover' | 'late-block-activate',
  ): Promise<void> {
    await engine.execute('migrate-set-capabilities', { capabilities: [{ capability, state: true }] });
  }

  async #makeImage(name: string): Promise<void> {
    const maker = new Engine({ host: this.#simulation.host, drivers: allDrivers, kind: 'storage-daemon' });
    await createImage(maker.opener, `/tmp/${name}`, 'qcow2', {
      sizeBytes: DISK_BYTES,
      options: { 'cluster-size': 4096 },
    });
    await maker.close();
  }

  async #start(name: Side['name'], image: string): Promise<Side> {
    const process = new KillableHost(this.#simulation.host);
    const engine = new Engine({
      host: process.host,
      drivers: allDrivers,
      kind: 'machine',
      incoming: name === 'destination',
      warn: (text) => this.trace.push(`${name}: ${text}`),
      onUnexpectedError: (error) => this.#sees(`${name}: ${String(error)}`),
    });
    const side = { name, process, engine };
    engine.onEvent((event, data) => {
      if (process.isDead) return;
      this.trace.push(`${name}: ${event} ${JSON.stringify(data)}`);
      this.#look();
    });
    await engine.execute('migrate-set-capabilities', {
      capabilities: [{ capability: 'events', state: true }],
    });
    await engine.addNode({
      driver: 'qcow2',
      'node-name': 'disk',
      file: { driver: 'file', filename: `/tmp/${image}` },
    });
    await engine.addDevice('disk', { id: 'virtio0' });
    return side;
  }

  // ---- the oracle

  #sees(what: string): void {
    this.trace.push(`VIOLATION ${what}`);
    this.#violation ??= what;
  }

  #living(): Side[] {
    return [this.#source, this.#destination].filter(({ process }) => !process.isDead);
  }

  /** At every event. */
  #look(): void {
    if (this.#source === undefined || this.#destination === undefined) return;
    const living = this.#living();
    if (living.filter(({ engine }) => engine.runState.isRunning).length > 1) this.#sees('two guests run');
    if (living.filter((side) => ownerOf(side) === 'here').length > 1) this.#sees('both have the machine');
    const isActive = ({ engine }: Side): boolean => engine.graph.nodes.get('disk')?.activity === 'active';
    if (this.#isShared && living.filter(isActive).length > 1) this.#sees('both may write the image');
  }

  /** The guest: writes, and flushes now and then, wherever it runs. Only a shared disk has what it wrote on both sides. */
  async #write(): Promise<void> {
    const { clock } = this.#simulation.host;
    const pending = new Map<number, number>();
    while (this.#isWriting) {
      await clock.sleep(1 + this.#random.below(this.#isCalm ? 20_000 : 20));
      const side = this.#living().find(({ engine }) => engine.runState.isRunning);
      const backend = side?.engine.devices.get('virtio0')?.backend;
      if (!side || !backend || (!this.#isShared && side.name === 'source')) continue;
      const block = this.#random.below(BLOCKS);
      const stamp = (this.#stamp = (this.#stamp % 250) + 1);
      this.#allowed[block]?.add(stamp);
      try {
        await backend.write(block * BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, stamp));
        pending.set(block, stamp);
        if (this.#random.chance(0.3)) {
          const flushed = new Map(pending);
          pending.clear();
          await backend.flush();
          for (const [at, value] of flushed) this.#flushed(at, value);
        }
      } catch (error) {
        // What is answered with an error may be there or not; a stopped guest has none in flight.
        this.trace.push(`${side.name}: a write failed: ${String(error)}`);
      }
    }
  }

  #flushed(block: number, value: number): void {
    const allowed = this.#allowed[block];
    if (!allowed) return;
    // Those that were written later stay possible.
    const values = [...allowed];
    for (const old of values.slice(0, values.indexOf(value))) allowed.delete(old);
  }

  // ---- what happens

  async #trouble(): Promise<void> {
    const kind = this.#random.below(8);
    if (kind <= 2) this.#planCut();
    const move = this.#migrate();
    const { clock } = this.#simulation.host;
    const soon = (): Promise<void> => clock.sleep(this.#random.below(400));
    if (kind === 3 || kind === 4) {
      await soon();
      const victim = kind === 3 ? this.#source : this.#destination;
      this.trace.push(`${victim.name} is killed`);
      await victim.process.kill();
    } else if (kind === 5) {
      await soon();
      await this.#cancel();
    } else if (kind === 6) {
      this.trace.push('the next flush fails');
      this.#simulation.injectFault({
        op: 'write',
        errno: 'ENOSPC',
        once: true,
        afterCount: this.#random.below(6),
      });
    }
    await clock.sleep(1000);
    this.#isCalm = true;
    if (this.#source.process.isDead) return;
    await Promise.race([move, clock.sleep(REST_MS)]);
  }

  #planCut(): void {
    const towards = this.#random.chance(0.5) ? 'client' : 'server';
    const { all, last } = MOVE_BYTES[towards];
    const cut: Cut = {
      towards,
      afterBytes: this.#random.chance(0.5) ? this.#random.below(all) : all - 1 - this.#random.below(last),
      how: this.#random.chance(0.7) ? 'reset' : 'stall',
    };
    this.trace.push(`cut ${JSON.stringify(cut)}`);
    this.#relay.cutAt(cut);
  }

  /** Resolves when the move has ended, or waits. */
  async #migrate(): Promise<void> {
    const { engine } = this.#source;
    await engine.execute('migrate', { uri: `unix:${pathOf(LINK)}` });
    const goesOn = async (): Promise<void> => {
      while (
        engine.moves.source.isUnderWay &&
        ownerOf(this.#source) === 'here' &&
        !this.#source.process.isDead
      ) {
        if (engine.moves.source.status === 'pre-switchover')
          await engine.execute('migrate-continue', { state: 'pre-switchover' }).catch(() => undefined);
        await this.#simulation.host.clock.sleep(5);
      }
    };
    void goesOn();
    await engine.moves.source.ended;
  }

  async #cancel(): Promise<void> {
    this.trace.push('cancelled');
    await this.#source.engine.execute('migrate_cancel').catch((error: unknown) => {
      this.trace.push(`too late: ${String(error)}`);
    });
  }

  /** Until one end has the machine: the link comes back, or somebody decides. */
  async #settle(): Promise<void> {
    const { clock } = this.#simulation.host;
    if (this.#relay.isDown) {
      await clock.sleep(this.#random.below(60_000));
      if (this.#random.chance(0.6)) {
        this.trace.push('the link is back');
        this.#relay.setDown(false);
      }
    }
    await clock.sleep(REST_MS);
    this.#assertExplained();
    if (this.#isInDoubt()) await this.#decide();
    await clock.sleep(REST_MS);
  }

  #isInDoubt(): boolean {
    return !this.#living().some((side) => ownerOf(side) === 'here');
  }

  /** Whoever does not know who has the machine says why. */
  #assertExplained(): void {
    for (const side of this.#living()) {
      const { owner, reason } = infoOf(side);
      if (owner === 'unknown')
        assert.ok((reason ?? '') !== '', `${side.name} does not say why it is in doubt`);
    }
  }

  /** By hand, on either side; the other one refuses for good. */
  async #decide(): Promise<void> {
    const living = this.#living();
    const [only] = living;
    assert.ok(only, 'somebody lives');
    if (living.length === 1) {
      // A destination that has not heard all of it has nothing to run.
      if (infoOf(only).owner !== 'unknown') return;
      this.trace.push(`${only.name} claims by force`);
      this.#isForced = true;
      return void (await only.engine.execute('x-move-claim', { force: true }));
    }
    const [winner, loser] = this.#random.chance(0.5) ? living : living.slice().reverse();
    assert.ok(winner && loser, 'both live');
    this.trace.push(`${winner.name} claims with the word of the other end`);
    const { word } = await loser.engine.execute('x-move-release');
    await winner.engine.execute('x-move-claim', { word });
    await assert.rejects(loser.engine.execute('x-move-claim'), `${loser.name} would take it, too`);
    if (!this.#relay.isDown) return;
    this.#relay.setDown(false);
  }

  async #judge(): Promise<void> {
    if (this.#violation !== undefined) throw new Error(this.#violation);
    const living = this.#living();
    const owners = living.filter((side) => ownerOf(side) === 'here');
    if (living.length === 1 && owners.length === 0) return this.#assertReadable();
    assert.equal(owners.length, 1, `${owners.length} of ${living.length} have the machine`);
    const [owner] = owners;
    assert.ok(owner);
    for (const { engine } of living)
      if (engine !== owner.engine)
        await assert.rejects(engine.execute('cont').then(() => mustNotRun(engine)));
    await this.#assertGoesOn(owner);
    if (owner.name === 'source' && living.length === 2) await this.#secondTry();
  }

  /** The guest runs, or can be started, and its disk holds what it must. */
  async #assertGoesOn({ engine }: Side): Promise<void> {
    if (!engine.runState.isRunning) await engine.execute('cont');
    const backend = engine.devices.get('virtio0')?.backend;
    assert.ok(backend);
    await this.#compare((offset, buffer) => backend.read(offset, buffer));
    await backend.write(0, Buffer.alloc(BLOCK_BYTES, 255));
    await backend.flush();
    if (this.#isShared) this.#allowed[0] = new Set([255]);
    else this.#allowed[0]?.add(255);
    this.#look();
  }

  /** Who has it is dead, and the other one will not run it: whoever opens the image finds all of it. */
  async #assertReadable(): Promise<void> {
    const image = this.#destination.process.isDead && !this.#isShared ? 'there' : 'here';
    const reader = new Engine({ host: this.#simulation.host, drivers: allDrivers, kind: 'storage-daemon' });
    const node = await reader.opener.openImage(`/tmp/${image}`, 'qcow2', { readOnly: true });
    await this.#compare((offset, buffer) => node.io.readBuffer(offset, buffer));
    await reader.close();
  }

  async #compare(read: (offset: number, buffer: Buffer) => Promise<unknown>): Promise<void> {
    if (this.#isForced && !this.#isShared) return;
    for (const [block, allowed] of this.#allowed.entries()) {
      const buffer = Buffer.alloc(BLOCK_BYTES);
      await read(block * BLOCK_BYTES, buffer);
      const values = new Set(buffer);
      assert.equal(values.size, 1, `block ${block} is torn`);
      const [value = -1] = values;
      assert.ok(allowed.has(value), `block ${block} holds ${value}, not ${[...allowed].join(' or ')}`);
    }
  }

  /** What has failed once succeeds when nothing is in its way any more. */
  async #secondTry(): Promise<void> {
    this.trace.push('again');
    this.#relay.cutAt(undefined);
    this.#relay.setDown(false);
    await this.#migrate();
    await this.#simulation.host.clock.sleep(REST_MS);
    if (this.#violation !== undefined) throw new Error(this.#violation);
    assert.equal(ownerOf(this.#destination), 'here', 'the second try has failed');
    await this.#assertGoesOn(this.#destination);
  }
}

function mustNotRun({ runState }: Engine): void {
  // In inmigrate `cont` is only remembered.
  if (runState.status === 'inmigrate') throw new Error('remembered');
}

function infoOf({ engine }: Side): MoveInfo {
  return engine.moves.moveInfo();
}

function ownerOf(side: Side): MoveInfo['owner'] {
  return infoOf(side).owner;
}

function pathOf(address: SocketAddress): string {
  assert.equal(address.type, 'unix');
  return address.path;
}
