import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { seededBelow } from '../kit/crash-states.js';
import { Relay } from '../kit/relay.js';
import { ChaosMachine, type End, ended, INIT, PATIENCE_MS, pause, state } from './chaos-machine.js';
import { run } from './daemon.js';
import { assertUnbroken, ringOf } from './guest-ring.js';
import { newBed, unsoundMoves } from './machine-end.js';
import { endUnlessTold, successor, update } from './takeover-sides.js';

/**
 * A machine that livedisk runs, with two disks of which one comes and goes, is stopped, reset, switched off, updated, killed,
 * told to do jobs, and moved to other processes, of which some end and some links break. What its guest synced is there
 * whenever it boots anew, and two processes never run it.
 */

/**
 * CHAOS_STEPS=40: so many of them (`npm run proof machine-chaos`), CHAOS_SEED=7: others. Where the seed is odd disks come over
 * NBD, else over vhost-user.
 */
const STEPS = Number(process.env['CHAOS_STEPS'] ?? 0);
const SEED = Number(process.env['CHAOS_SEED'] ?? Date.now() % 2 ** 31);
/** CHAOS_ONLY='move, cut;kill': these alone. */
const ONLY = process.env['CHAOS_ONLY']?.split(';');
/** About as long as a move takes. */
const MOVE_MS = 5000;
/** The guest's memory, as a stream. */
const MOVE_BYTES = 60 * 1024 * 1024;
/** Types of the last messages: `end` and what follows. */
const LAST_MESSAGES = { server: [7, 9, 11, 13], client: [8, 10, 12] } as const;

type Inserted = { 'node-name': string; backing_file_depth: number; file: string };

class Chaos {
  readonly #t: TestContext;
  readonly #machine: ChaosMachine;
  readonly #below: (limit: number) => number;
  readonly #host = createRealHost();
  readonly counts = new Map<string, number>();

  constructor(t: TestContext, machine: ChaosMachine, seed: number) {
    this.#t = t;
    this.#machine = machine;
    this.#below = seededBelow(seed);
  }

  readonly #steps: { [name: string]: () => Promise<void> } = {
    stop: async () => {
      await this.#machine.ask('stop');
      if (this.#below(2) === 0) await this.#machine.ask('stop');
      const last = this.#machine.lastRecord('A');
      await pause(this.#below(500));
      assert.equal(this.#machine.lastRecord('A'), last, 'a machine that was stopped');
      await this.#machine.ask('cont');
      if (this.#below(2) === 0) await this.#machine.ask('cont');
    },
    reset: async () => {
      const [before, length] = [this.#machine.synced(), this.#machine.saidLength()];
      if (this.#below(2) === 0) await this.#machine.ask('system_reset');
      else await this.#machine.tell('reboot');
      await this.#machine.boots(before, length);
    },
    'switched off': async () => {
      const { serving } = this.#machine.end;
      await this.#machine.tell('poweroff');
      assert.deepEqual(await ended(serving), [0, null], this.#machine.told());
      await this.#machine.again();
    },
    quit: async () => {
      const { serving } = this.#machine.end;
      if (this.#below(2) === 0) await this.#machine.ask('quit');
      else serving.kill('SIGTERM');
      assert.deepEqual(await ended(serving), [0, null], this.#machine.told());
      await this.#machine.again();
    },
    kill: async () => {
      this.#machine.end.serving.kill('SIGKILL');
      await this.#machine.again();
    },
    update: async () => {
      this.#machine.end.serving = await update(this.#t, this.#machine.folder, this.#machine.end);
    },
    'update, killed': () => this.#killedUpdate(),
    'update, stopped': async () => {
      await this.#machine.ask('stop');
      await this.#steps['update']?.();
      await this.#machine.ask('cont');
    },
    hang: async () => {
      this.#machine.end.serving.kill('SIGSTOP');
      await pause(this.#below(2000));
      this.#machine.end.serving.kill('SIGCONT');
    },
    plug: () => (this.#machine.hasB ? this.#machine.unplug('B') : this.#machine.plugB()),
    snapshot: () => this.#snapshot(),
    commit: async () => {
      if (await this.#commit()) await this.#completed();
    },
    stream: async () => {
      const { 'node-name': device } = await this.#disk();
      await this.#machine.ask('block-stream', { 'job-id': 'j', device });
      await this.#machine.end.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
    },
    mirror: async () => {
      await this.#mirror();
      await this.#completed();
      this.#machine.image = (await this.#disk()).file;
    },
    'mirror, updated': async () => {
      await this.#mirror();
      await this.#steps['update']?.();
      const ready =
        ((await this.#machine.ask('query-jobs')) as Array<{ status: string }>)[0]?.status === 'ready';
      if (!ready) await this.#machine.end.daemon.event('BLOCK_JOB_READY', { device: 'j' });
      this.#machine.end.daemon.events.length = 0;
      await this.#machine.ask('job-complete', { id: 'j' });
      await this.#machine.end.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
      this.#machine.image = (await this.#disk()).file;
    },
    'commit, killed': async () => {
      if (await this.#commit()) await pause(this.#below(100));
      await this.#steps['kill']?.();
    },
    move: async () => {
      const there = await this.#machine.start('move.sock');
      await this.#machine.ask('migrate', { uri: 'unix:move.sock' });
      assert.equal(await this.#settled(there), 'there', this.#machine.told());
    },
    'move, cancelled': async () => {
      const there = await this.#machine.start('move.sock');
      await this.#machine.ask('migrate', { uri: 'unix:move.sock' });
      await pause(this.#below(MOVE_MS));
      await this.#machine.ask('migrate_cancel');
      await this.#settled(there);
    },
    'move, cut': () => this.#cutMove(),
    'move, cut at its end': () => this.#cutMove(true),
    'move, there killed': async () => {
      const there = await this.#machine.start('move.sock');
      await this.#machine.ask('migrate', { uri: 'unix:move.sock' });
      await pause(this.#below(MOVE_MS));
      await there.daemon.kill();
      await this.#aloneHere();
    },
    'move, here killed': async () => {
      const there = await this.#machine.start('move.sock');
      await this.#machine.ask('migrate', { uri: 'unix:move.sock' });
      await pause(this.#below(MOVE_MS));
      this.#machine.end.serving.kill('SIGKILL');
      await ended(this.#machine.end.serving);
      await this.#aloneThere(there);
    },
  };

  async #disk(): Promise<Inserted> {
    const disks = (await this.#machine.ask('query-block')) as Array<{ qdev: string; inserted: Inserted }>;
    const disk = disks.find(({ qdev }) => qdev.split('/').includes('A'));
    assert.ok(disk);
    return disk.inserted;
  }

  async #snapshot(): Promise<void> {
    const name = this.#machine.newName();
    await this.#machine.ask('blockdev-snapshot-sync', {
      ...{ 'node-name': (await this.#disk())['node-name'], 'snapshot-file': `${name}.qcow2` },
      ...{ 'snapshot-node-name': name },
    });
    this.#machine.image = `${name}.qcow2`;
  }

  async #mirror(): Promise<void> {
    const target = this.#machine.newName();
    await this.#machine.ask('drive-mirror', {
      ...{ 'job-id': 'j', device: (await this.#disk())['node-name'], sync: 'full', format: 'qcow2' },
      ...{ target: `${target}.qcow2`, 'node-name': target },
    });
  }

  /** Whether there is something to commit. */
  async #commit(): Promise<boolean> {
    const { 'node-name': device, backing_file_depth: depth } = await this.#disk();
    if (depth > 0) await this.#machine.ask('block-commit', { 'job-id': 'j', device });
    return depth > 0;
  }

  async #completed(): Promise<void> {
    const { daemon } = this.#machine.end;
    await daemon.event('BLOCK_JOB_READY', { device: 'j' });
    await this.#machine.ask('job-complete', { id: 'j' });
    await daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
    this.#machine.image = (await this.#disk()).file;
  }

  async #killedUpdate(): Promise<void> {
    const { daemon, serving: old } = this.#machine.end;
    const next = await successor(this.#t, this.#machine.folder);
    const asked = daemon.raw('x-takeover', { socket: 'next.sock', timeout: PATIENCE_MS });
    await pause(this.#below(800));
    const [victim, other] = this.#below(2) === 0 ? [next, old] : [old, next];
    victim.kill('SIGKILL');
    if (victim === old) void endUnlessTold(other, join(this.#machine.folder, 'next.sock'));
    const isServed = await Promise.race([
      asked.then(({ error }) => (error ? error.class !== 'Closed' : victim === old)),
      ended(other).then(() => false),
    ]);
    this.#machine.end.serving = other;
    if (!isServed) await this.#machine.again();
  }

  async #cutMove(isAtEnd = false): Promise<void> {
    const there = await this.#machine.start('door.sock');
    const address = (name: string): { type: 'unix'; path: string } => ({
      type: 'unix',
      path: join(this.#machine.folder, name),
    });
    const relay = await new Relay(this.#host, address('move.sock'), address('door.sock')).open();
    const towards = this.#below(2) === 0 ? 'client' : 'server';
    const types = LAST_MESSAGES[towards];
    const how = (['reset', 'half-close', 'stall'] as const)[this.#below(3)] ?? 'reset';
    const most = towards === 'client' ? 200 : MOVE_BYTES;
    if (isAtEnd) relay.cutBefore({ towards, type: types[this.#below(types.length)] ?? 7 });
    else relay.cutAt({ towards, afterBytes: this.#below(most), how });
    await this.#machine.ask('migrate', { uri: 'unix:move.sock' });
    void this.#machine
      .until(() => relay.isDown)
      .then(() => pause(this.#below(3000)))
      .then(() => relay.setDown(false))
      .catch(() => undefined);
    await this.#settled(there).finally(() => relay.close());
  }

  /** Waits until one of both has the machine, which goes on there, and the other one ends. */
  async #settled(there: End): Promise<'here' | 'there'> {
    const here = this.#machine.end;
    let status = '';
    await this.#machine.until(async () => {
      const theirs = await state(there);
      const ours = await state(here);
      assert.ok(!(ours.runs && theirs.runs), `two run it: ${JSON.stringify([ours, theirs])}`);
      status = ours.migration;
      return ['completed', 'failed', 'cancelled'].includes(status) && ours.owner !== 'unknown';
    });
    const isThere = status === 'completed';
    const [stays, goes] = isThere ? [there, here] : [here, there];
    this.counts.set(`ended ${status}`, (this.counts.get(`ended ${status}`) ?? 0) + 1);
    this.#machine.end = stays;
    assert.equal((await state(goes)).runs, false, 'one that has it no more');
    goes.serving.kill(isThere ? 'SIGTERM' : 'SIGKILL');
    await ended(goes.serving);
    return isThere ? 'there' : 'here';
  }

  /** Where it was to go is dead. */
  async #aloneHere(): Promise<void> {
    let last = await state(this.#machine.end);
    await this.#machine.until(async () => {
      last = await state(this.#machine.end);
      return ['completed', 'failed', 'cancelled'].includes(last.migration) || last.owner === 'unknown';
    });
    if (last.owner === 'unknown') await this.#machine.ask('x-move-claim', { force: true });
    else if (last.migration === 'completed') {
      this.#machine.end.serving.kill('SIGTERM');
      await this.#machine.again();
    }
  }

  /** Where it was is dead. */
  async #aloneThere(there: End): Promise<void> {
    const before = this.#machine.synced();
    let last = await state(there);
    await this.#machine.until(async () => {
      last = await state(there);
      return last.isGone || last.owner === 'here' || last.owner === 'unknown' || last.migration === 'failed';
    });
    this.#machine.end = there;
    if (last.owner === 'here') return;
    if (last.owner === 'unknown' && this.#below(2) === 0)
      return void (await this.#machine.ask('x-move-claim', { force: true }));
    there.serving.kill('SIGKILL');
    await ended(there.serving);
    this.#machine.end = await this.#machine.start();
    await this.#machine.boots(before);
  }

  async run(steps: number): Promise<void> {
    const unsound = unsoundMoves();
    if (unsound !== undefined) this.#t.diagnostic(`no moves: ${unsound}`);
    const all = ONLY ?? Object.keys(this.#steps);
    const names = all.filter((name) => unsound === undefined || !name.startsWith('move'));
    for (let step = 0; step < steps; step++) {
      const name = names[this.#below(names.length)] ?? '';
      const begun = Date.now();
      try {
        await this.#steps[name]?.();
        await this.#machine.goesOn();
      } catch (error) {
        throw new Error(`step ${step}, '${name}': ${String(error)}\n${this.#machine.told()}`, {
          cause: error,
        });
      }
      this.counts.set(name, (this.counts.get(name) ?? 0) + 1);
      if (process.env['CHAOS_TOLD'] !== undefined)
        process.stderr.write(
          `${step} ${name}: ${Date.now() - begun} ms, record ${this.#machine.lastRecord('A')}\n`,
        );
    }
  }

  /** What was synced is there. */
  async end(): Promise<void> {
    const { serving } = this.#machine.end;
    await this.#machine.ask('stop');
    const last = this.#machine.synced();
    await this.#machine.ask('quit');
    assert.deepEqual(await ended(serving), [0, null]);
    for (const image of [this.#machine.image, 'B.qcow2'])
      run(this.#machine.folder, 'qemu-img', 'check', '-q', image);
    assertUnbroken(ringOf(this.#machine.folder, this.#machine.image), last['A'] ?? -1, 'the disk that stays');
    assertUnbroken(
      ringOf(this.#machine.folder, 'B.qcow2'),
      this.#machine.lastRecord('B'),
      'the disk that comes and goes',
    );
  }
}

test(`a machine goes on through ${STEPS} stops, ends, updates, jobs, plugs and moves (seed ${SEED})`, async (t) => {
  if (STEPS === 0) return t.skip('takes minutes: npm run proof machine-chaos');
  const bed = newBed(t, { init: INIT, moduleFolders: [] });
  if (!bed) return;
  const machine = new ChaosMachine(t, bed, SEED % 2 === 0);
  await machine.begin();
  const chaos = new Chaos(t, machine, SEED);
  await chaos.run(STEPS);
  await chaos.end();
  const told = [...chaos.counts].map(([name, count]) => `${count} times '${name}'`).join(', ');
  t.diagnostic(
    `${STEPS} steps of machine chaos: ${told}; ${machine.lastRecord('A')} and ${machine.lastRecord('B')} records`,
  );
});
