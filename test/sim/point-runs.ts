import { BlockError, toBlockError } from '../../src/base/error.js';
import type { Host } from '../../src/host/host.js';
import {
  createSimulatedHost,
  type Operation,
  SeededRandom,
  type Simulation,
} from '../../src/host/simulated.js';
import type { PointsTarget } from '../../src/programs/points/targets.js';
import type { JsonObject } from '../../src/schema/types.js';
import { KillableHost } from '../kit/killable-host.js';
import { checkDisks, checkFiles, checkLeft, recognise, Violation } from './point-checks.js';
import { OTHER_FOLDER, PointDisks } from './point-disks.js';
import { doForeign } from './point-foreign.js';
import { alike, bytesOf, type Moment, PIECE_BYTES, PIECES, PointModel } from './point-model.js';

/** Points of one to three disks are made, deleted and gone back to in a random order, while guests write, jobs of others run, and the power goes. */

export interface PointFailure {
  readonly message: string;
  readonly trace: readonly string[];
}

/** What happens in a run; each is drawn. */
export interface PointKinds {
  /** Jobs and layers of others. */
  foreign: boolean;
  /** The process is killed, or the power goes. */
  crashes: boolean;
  /** Somebody else changes points at the same time, by plain QMP. */
  managers: boolean;
}

const LOOKS: ReadonlySet<Operation['kind']> = new Set(['open', 'stat', 'read', 'compute']);

export async function runPoints(
  seed: number,
  only: Partial<PointKinds> = {},
): Promise<PointFailure | undefined> {
  const run = new Run(seed, only);
  try {
    await run.run();
    return undefined;
  } catch (error) {
    const message = error instanceof Violation ? error.message : String((error as Error).stack ?? error);
    return { message, trace: run.trace };
  }
}

class Run {
  readonly trace: string[] = [];
  readonly #random: SeededRandom;
  readonly #simulation: Simulation;
  readonly #kinds: PointKinds;
  readonly #model: PointModel;
  #disks!: PointDisks;
  #process!: KillableHost;
  #names = 0;
  /** Changes of files until the crash. */
  #untilCrash = Infinity;
  #crash: (() => void) | undefined;
  #powerLosses = 0;
  #isWriting = false;
  #guestsEnd: Promise<void> = Promise.resolve();
  #isClosing = false;

  constructor(seed: number, only: Partial<PointKinds>) {
    this.#random = new SeededRandom(seed);
    this.#kinds = {
      foreign: only.foreign ?? this.#random.chance(0.4),
      crashes: only.crashes ?? this.#random.chance(0.5),
      managers: only.managers ?? this.#random.chance(0.2),
    };
    this.#simulation = createSimulatedHost({
      seed: this.#random.below(2 ** 32),
      stuckAfterMs: 5000,
      onOperation: ({ kind }) => {
        if (this.#crash && !LOOKS.has(kind) && this.#untilCrash-- === 0) this.#crash();
      },
    });
    const images = Array.from(
      { length: 1 + this.#random.below(3) },
      (_, i) => `/tmp/${'abc'[i] ?? ''}.qcow2`,
    );
    this.#model = new PointModel(images);
    this.#model.hasForeign = this.#kinds.foreign || this.#kinds.managers;
    this.trace.push(`${images.length} disks ${JSON.stringify(this.#kinds)}`);
  }

  run(): Promise<void> {
    return this.#simulation.run(async () => {
      await PointDisks.make(this.#simulation.host, this.#model.active);
      const boots = 1 + this.#random.below(4);
      for (let boot = 1; boot <= boots; boot++) {
        const isLast = boot === boots;
        const crash =
          this.#kinds.crashes && !isLast ? this.#crashSoon() : new Promise<never>(() => undefined);
        this.#process = new KillableHost(this.#simulation.host);
        await this.#open(this.#process.host);
        const ended = await Promise.race([this.#live(isLast).then(() => 'end'), crash]);
        this.#crash = undefined;
        this.trace.push(`-- ${ended}`);
      }
    });
  }

  #crashSoon(): Promise<string> {
    this.#untilCrash = this.#random.below(this.#random.chance(0.5) ? 60 : 400);
    const isKill = this.#random.chance(0.5);
    return new Promise((resolve) => {
      this.#crash = () => {
        this.#crash = undefined;
        this.#isWriting = false;
        this.#noteActive();
        if (!isKill) this.#powerLosses++;
        if (!isKill) this.#simulation.powerLoss();
        void this.#process.kill().then(() => {
          if (!isKill) this.#simulation.reboot();
          resolve(isKill ? 'killed' : 'power lost');
        });
      };
    });
  }

  async #open(host: Host): Promise<void> {
    const crash = this.#crash;
    this.#crash = undefined;
    this.#isClosing = false;
    this.#disks = await PointDisks.open(host, this.#model.active);
    for (const [i] of this.#model.active.entries()) this.#model.active[i] = (await this.#disks.list(i)).file;
    this.trace.push(`opened ${this.#model.active.join(' ')}`);
    await recognise(this.#disks, this.#model);
    await this.#check();
    await this.#checkLeft();
    this.#crash = crash;
  }

  /** A disk's user knows what it uses; but for an image that is new, of which it has no answer yet. */
  #noteActive(): void {
    if (this.#isClosing) return;
    const { active } = this.#model;
    const existing = new Set(this.#simulation.paths());
    for (const [i, file] of active.entries()) {
      const [top] = this.#disks.layers(i);
      const isCommitted = !this.#disks.layers(i).some(({ filename }) => filename === file);
      if (top && (isCommitted || !existing.has(file) || this.#random.chance(0.5))) active[i] = top.filename;
    }
  }

  async #live(isLast: boolean): Promise<void> {
    const steps = 3 + this.#random.below(8);
    for (let i = 0; i < steps; i++) await this.#step();
    await this.#settle();
    this.#noteActive();
    if (isLast) await this.#deleteAll();
    this.#isClosing = true;
    await this.#disks.close();
    this.#isClosing = false;
  }

  async #settle(): Promise<void> {
    await this.#disks.untilIdle();
    await this.#disks.untilNoJob();
    await this.#check();
    await this.#checkLeft();
  }

  /** Jobs of others write into what it stands on. */
  async #checkLeft(): Promise<void> {
    if (!this.#kinds.foreign) await checkLeft(this.#disks, this.#model);
  }

  async #step(): Promise<void> {
    this.#guestsEnd = this.#random.chance(0.7) ? this.#guest() : Promise.resolve();
    // Of a killed process it ends with an error when nobody looks any more.
    this.#guestsEnd.catch(() => undefined);
    const process = this.#process;
    const before = this.trace.length;
    try {
      await this.#something();
    } catch (error) {
      this.#goOnlyIf(process, error);
      if (!(error instanceof BlockError)) throw error;
      this.trace.push(`  refused: ${error.message}`);
      if (!isExpected(error)) throw new Violation(`${this.trace[before] ?? ''}: ${error.message}`);
    }
    await this.#stopGuest();
    this.#noteActive();
    await this.#check();
  }

  /** Numbered records, one after the other. */
  async #guest(): Promise<void> {
    this.#isWriting = true;
    while (this.#isWriting) await this.#write();
  }

  async #stopGuest(): Promise<void> {
    this.#isWriting = false;
    await this.#guestsEnd;
  }

  async #write(): Promise<void> {
    const [index, piece] = [this.#random.below(this.#disks.count), this.#random.below(PIECES)];
    const isZero = this.#random.chance(0.2);
    const disk = this.#disks.disk(index);
    const record = this.#model.begin(index, piece, isZero);
    if (isZero) await disk.writeZeroes(piece * PIECE_BYTES, PIECE_BYTES);
    else await disk.write(piece * PIECE_BYTES, bytesOf(record));
    await disk.flush();
    this.#model.done();
    await this.#disks.host.clock.sleep(this.#random.below(4));
  }

  async #something(): Promise<void> {
    const drawn = this.#random.below(this.#kinds.foreign ? 14 : 10);
    if (drawn < 4) return this.#create(await this.#target());
    if (drawn < 7) return this.#delete(await this.#target());
    if (drawn < 8) return this.#deleteSeveral();
    if (drawn < 9) return this.#revert(await this.#target());
    if (drawn < 10) return this.#managersAtOnce();
    return doForeign({
      ...{ disks: this.#disks, model: this.#model, random: this.#random },
      ...{ tell: (line) => void this.trace.push(line), stopGuest: () => this.#stopGuest() },
      ...{ newName: () => `x${++this.#names}`, mayCrash: this.#kinds.crashes },
    });
  }

  /** livedisk's own commands, or plain QMP. */
  async #target(): Promise<PointsTarget | undefined> {
    return this.#random.chance(0.3) ? this.#disks.manager() : undefined;
  }

  async #create(target: PointsTarget | undefined, all?: readonly number[]): Promise<void> {
    const model = this.#model;
    const process = this.#process;
    const name = `p${++this.#names}`;
    const chosen = all ?? model.active.map((_, i) => i).filter(() => this.#random.chance(0.7));
    const isAll = all !== undefined || chosen.length === 0 || this.#random.chance(0.6);
    const indices = isAll ? model.active.map((_, i) => i) : chosen;
    const keep = this.#random.chance(0.2) ? 1 + this.#random.below(4) : undefined;
    this.trace.push(`create ${name} of ${indices.join()} keep ${keep} ${target ? 'by QMP' : ''}`);
    const moment: Moment = { from: model.states.length - 1, to: Infinity, expected: 'unsure' };
    for (const index of indices) {
      // What goes then is told by an answer that may not come.
      if (keep !== undefined)
        for (const [old, { expected }] of model.moments[index] ?? [])
          if (expected === 'usable') this.#model.expect(index, old, 'unsure');
      model.moments[index]?.set(name, moment);
    }
    const isElsewhere = !isAll && this.#random.chance(0.4);
    const nodes = indices.map((index) => ({
      node: this.#topNode(index),
      ...(isElsewhere && { file: `${OTHER_FOLDER}/${name}-of-${index}.qcow2` }),
    }));
    const tops = this.#tops();
    const args = { name, ...(!isAll && { disks: nodes }), ...(keep !== undefined && { keep }) };
    try {
      const { images, deletes } = await this.#disks.send(target, 'x-point-create', args);
      moment.to = model.states.length - 1;
      moment.expected = this.#kinds.managers ? 'unsure' : 'usable';
      for (const { node, file } of images) model.active[tops.indexOf(node)] = file;
      for (const old of deletes) for (const index of indices) this.#model.expect(index, old, 'unsure');
      this.trace.push(`  ${images.map(({ file }) => file).join(' ')} deletes ${deletes.join()}`);
    } catch (error) {
      this.#goOnlyIf(process, error);
      moment.to = model.states.length - 1;
      moment.expected = 'gone';
      throw error;
    }
  }

  /** What a process that was killed knows of its end is nothing to go by. */
  #goOnlyIf(process: KillableHost, error: unknown): void {
    if (process.isDead || error instanceof Violation) throw error;
  }

  #topNode(index: number): string {
    return this.#disks.layers(index)[0]?.name ?? '';
  }

  #tops(): string[] {
    return this.#model.active.map((_, i) => this.#topNode(i));
  }

  #aName(): string | undefined {
    const names = [...new Set(this.#model.moments.flatMap((moments) => [...moments.keys()]))];
    return names.length === 0 ? undefined : names[this.#random.below(names.length)];
  }

  async #delete(
    target: PointsTarget | undefined,
    name = this.#aName(),
    waits = this.#random.chance(0.5),
  ): Promise<void> {
    if (name === undefined) return;
    const model = this.#model;
    const process = this.#process;
    this.trace.push(`delete ${name} ${target ? 'by QMP' : ''} ${waits ? 'waits' : ''}`);
    const before = model.moments.map((moments) => moments.get(name)?.expected);
    for (const [index] of model.active.entries()) this.#model.expect(index, name, 'unsure');
    const ends = this.#disks.ended.length;
    try {
      const { id, state } = (await this.#disks.send(target, 'x-point-delete', {
        name,
      })) as unknown as JsonObject;
      this.trace.push(`  ${JSON.stringify({ id, state })}`);
      for (const [index] of model.active.entries())
        if (before[index] !== undefined)
          this.#model.expect(index, name, this.#kinds.managers ? 'unsure' : 'gone');
      if (!waits || target || state === 'done') return;
      while (!this.#disks.ended.slice(ends).some((end) => end.name === name))
        await this.#disks.host.clock.sleep(3);
      const error = this.#disks.ended.slice(ends).find((end) => end.name === name)?.error;
      if (error === undefined) return;
      this.trace.push(`  ended: ${error}`);
      if (!this.#kinds.foreign && !this.#kinds.managers) throw new Violation(`deleting ${name}: ${error}`);
    } catch (error) {
      this.#goOnlyIf(process, error);
      for (const [index, expected] of before.entries())
        if (expected !== undefined && !target) this.#model.expect(index, name, expected);
      throw error;
    }
  }

  /** Without a wait. */
  async #deleteSeveral(): Promise<void> {
    for (let i = 0; i < 3; i++) await this.#delete(undefined, this.#aName(), false);
  }

  async #revert(target: PointsTarget | undefined): Promise<void> {
    const name = this.#aName();
    if (name === undefined) return;
    const model = this.#model;
    const process = this.#process;
    const indices = model.moments.flatMap((moments, i) => (moments.has(name) ? [i] : []));
    // One of a point of several disks is no point in time of all.
    const chosen = target || this.#random.chance(0.2) ? indices.slice(0, 1) : indices;
    this.trace.push(`revert ${name} of ${chosen.join()} ${target ? 'by QMP' : ''}`);
    await this.#stopGuest();
    await this.#disks.whileReadOnly(chosen, async () => {
      const goals = model.statesOf(model.moments[chosen[0] ?? 0]?.get(name) ?? { from: 0, to: 0 });
      for (const goal of goals)
        model.others.push(model.now.map((pieces, i) => (chosen.includes(i) ? (goal[i] ?? []) : pieces)));
      const disks = chosen.map((index) => ({ node: this.#topNode(index) }));
      const before = model.moments.map((moments) => new Map(moments));
      const tops = this.#tops();
      const left = chosen.map((index) => this.#disks.layers(index)[0]?.filename);
      for (const index of chosen) {
        this.#forgetLater(index, name, 'unsure');
        await this.#noteLeft(index, name);
      }
      try {
        const { plan, images } = await this.#disks.send(target, 'x-point-revert', { name, disks });
        for (const [i, index] of chosen.entries())
          model.leftContents.set(left[i] ?? '', model.now[index] ?? []);
        for (const { node, file } of images) model.active[tops.indexOf(node)] = file;
        this.trace.push(`  ${images.map(({ file }) => file).join(' ')} left ${plan.ends.join(' ')}`);
      } catch (error) {
        this.#goOnlyIf(process, error);
        model.others.length = 0;
        for (const [index, moments] of before.entries()) model.moments[index] = moments;
        throw error;
      }
      for (const index of chosen) this.#forgetLater(index, name, this.#kinds.managers ? 'unsure' : 'gone');
      await this.#recogniseOthers();
    });
  }

  /** What was written since stays in its files. */
  async #noteLeft(index: number, name: string): Promise<void> {
    const { points } = await this.#disks.list(index);
    const { file } = points.find((point) => point.name === name) ?? {};
    for (const { filename } of this.#disks.layers(index)) {
      if (filename === file) return;
      this.#model.left.add(filename);
    }
  }

  async #recogniseOthers(): Promise<void> {
    const model = this.#model;
    const found = await Promise.all(model.active.map((_, i) => this.#disks.content(i)));
    if (!model.others.some((state) => found.every((pieces, i) => alike(state[i], pieces))))
      throw new Violation(`went back to ${JSON.stringify(found)}, of ${JSON.stringify(model.others)}`);
    model.become(found);
  }

  /** Points that were made since go with what is left. */
  #forgetLater(index: number, name: string, expected: Moment['expected']): void {
    const names = [...(this.#model.moments[index]?.keys() ?? [])];
    for (const later of names.slice(names.indexOf(name) + 1)) this.#model.expect(index, later, expected);
  }

  async #managersAtOnce(): Promise<void> {
    if (!this.#kinds.managers) return this.#delete(undefined);
    const managers = [await this.#disks.manager(), await this.#disks.manager(), undefined];
    const works = managers.map((target) =>
      this.#random.chance(0.5) ? this.#create(target) : this.#delete(target),
    );
    this.trace.push('  all at once');
    for (const { reason } of (await Promise.allSettled(works)) as Array<{ reason?: unknown }>)
      if (reason !== undefined) this.trace.push(`  one: ${toBlockError(reason).message}`);
  }

  #check(): Promise<void> {
    return checkDisks(this.#disks, this.#model);
  }

  /** In any order; then no image is left over that nobody needs. */
  async #deleteAll(): Promise<void> {
    const model = this.#model;
    this.trace.push('all are deleted');
    // What a crash has left goes with the next change.
    await this.#create(
      undefined,
      model.active.map((_, i) => i),
    );
    for (let index = 0; index < this.#disks.count; index++)
      for (;;) {
        const { points } = await this.#disks.list(index);
        if (points.length === 0) break;
        const { name } = points[this.#random.below(points.length)] ?? { name: '' };
        const ends = this.#disks.ended.length;
        this.trace.push(`delete ${name} of ${index}`);
        try {
          await this.#disks.execute('x-point-delete', { name, nodes: [this.#topNode(index)] });
        } catch (error) {
          // What a job of others or going back by plain QMP has left open may stand on it.
          const isStoodOn = error instanceof BlockError && /is needed by \d+ images/.test(error.message);
          if (isStoodOn || (model.hasForeign && error instanceof BlockError)) return;
          throw error;
        }
        await this.#disks.untilIdle();
        for (const end of this.#disks.ended.slice(ends))
          if (end.error !== undefined) throw new Violation(`deleting ${end.name}: ${end.error}`);
        model.moments[index]?.delete(name);
        await this.#check();
      }
    await this.#settle();
    // What a power loss has left may have been forgotten with another one.
    if (model.hasForeign || this.#powerLosses > 0) return;
    await checkFiles(this.#disks, model, this.#simulation.paths());
  }
}

function isExpected({ kind, message }: BlockError): boolean {
  return ['busy', 'invalid', 'not-found'].includes(kind) || /is in use|in use/.test(message);
}
