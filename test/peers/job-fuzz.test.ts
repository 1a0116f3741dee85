import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { run, skipWithout } from './daemon.js';
import type { Command } from './fuzz-commands.js';
import { assertSame, comparable, describeJob, describeNode, leaveOutRefused } from './fuzz-described.js';
import { DEVICE, JOB_DISK_BYTES, JOB_IMAGES, JobSource, type JobState } from './job-fuzz-commands.js';
import { type Answer, type Json, listOf, Pair } from './fuzz-pair.js';
import { runSeeds } from './fuzz-runs.js';

/** Jobs with every option on the disk of a machine, faults, policies, what a guest does meanwhile. */
const KNOWN_SEEDS = 8;
const STEPS = Number(process.env['FUZZ_STEPS'] ?? 30);

/** Looks at what may differ because a job goes on. */
const MOST_TRIES = 10;

/** Events by what they are about. */
type Events = { [about: string]: unknown[] };

/** Their places in a list, and lengths, are each side's own. */
const FILES = ['file', 'blkdebug'];

/** Images once: each of the chain has data of its own. */
function makeImages(folder: string): void {
  mkdirSync(folder);
  for (const [name, format] of Object.entries(JOB_IMAGES)) {
    const below = { b: 'a', c: 'b' }[name];
    const backing = below === undefined ? [] : ['-b', `${below}.img`, '-F', 'qcow2'];
    const size = name === 's' ? JOB_DISK_BYTES / 2 : JOB_DISK_BYTES;
    run(folder, 'qemu-img', 'create', '-q', '-f', format, ...backing, `${name}.img`, `${size}`);
  }
  run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'write -P 0xa1 0 2M', 'a.img');
  run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'write -P 0xb1 1M 1536k', 'b.img');
  run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'write -P 0xc1 2M 1536k', 'c.img');
}

/** Events with all their members, but how far a job came that did not end well. */
function described(event: string | undefined, { len, offset, ...rest }: Json): string | undefined {
  const isWhole = rest['error'] === undefined && rest['speed'] === 0 && event !== 'BLOCK_JOB_CANCELLED';
  return JSON.stringify({ event, ...rest, ...(isWhole && { len, offset }) });
}

/** Of one that has done all that is to be done for now: also how much that was. */
function describeWhole(job: Json): unknown {
  const { len, offset, status, error, speed } = job;
  const isWhole = ['pending', 'concluded'].includes(String(status)) && error === undefined && speed === 0;
  return [describeJob(job), isWhole && { len, offset }];
}

class JobRun {
  readonly #pair: Pair;
  readonly #source: JobSource;
  readonly #trace: string[] = [];
  readonly differences: string[] = [];
  #active = 'c';
  readonly #endless = new Set<string>();
  readonly #ending = new Set<string>();
  /** Files of commands that were not refused; QEMU leaves some behind of others. */
  readonly #made = new Set<string>();
  readonly #uncertain = new Set<string>();
  steps = 0;

  constructor(pair: Pair, source: JobSource) {
    this.#pair = pair;
    this.#source = source;
  }

  get trace(): string {
    return this.#trace.join('\n');
  }

  async all(): Promise<void> {
    for (let i = 0; i < STEPS && !this.#isOver(); i++)
      await this.#step(this.#source.next(await this.#state()));
    if (!this.#isOver()) await this.#finish();
    else this.#trace.push(`over: ${this.#pair.isReferenceGone ? 'reference gone' : 'parted'}`);
  }

  #isOver(): boolean {
    return this.#pair.isReferenceGone || this.#pair.hasParted;
  }

  async #state(): Promise<JobState> {
    const list = async (command: string, args: Json = {}): Promise<Json[]> =>
      listOf((await this.#pair.execute(command, args)).theirs);
    const [disk] = await list('query-block');
    const active = (disk?.['inserted'] as Json | undefined)?.['node-name'];
    if (typeof active === 'string' && !active.startsWith('#')) this.#active = active;
    return {
      active: this.#active,
      nodes: await list('query-named-block-nodes', { flat: true }),
      jobs: await list('query-block-jobs'),
      exports: [],
    };
  }

  async #step(command: Command): Promise<void> {
    this.steps++;
    this.#trace.push(`${command.name} ${JSON.stringify(command.args)}`);
    const before = listOf((await this.#pair.execute('query-named-block-nodes', { flat: true })).theirs);
    const { theirs, ours } = await this.#pair.execute(command.name, command.args);
    if (this.#isOver()) return;
    this.#trace.push(`    ${JSON.stringify(theirs)}`);
    if (isHeldByEnded(theirs) && !ours.error) this.#pair.hasParted = true;
    else await this.#compareAnswers(theirs, ours);
    if (this.#isOver()) return;
    if (!theirs.error) this.#note(command, before);
    await this.#compare(theirs.error !== undefined);
  }

  async #compareAnswers(theirs: Answer, ours: Answer): Promise<void> {
    const expected = JSON.stringify(comparable(theirs));
    const found = JSON.stringify(comparable(ours));
    if (found === expected) return;
    if (theirs.error && ours.error) {
      if (areTwoMistakes(theirs, ours)) return;
      this.differences.push(`${this.#trace.at(-2) ?? ''}\n  theirs ${expected}\n  ours   ${found}`);
      return;
    }
    // A slow job is ready on one side, or has ended.
    await this.#pair.settle(this.#endless, this.#ending);
    if (!this.#isOver()) assert.equal(found, expected);
  }

  /** A slow job may go on between two looks: what differs then is looked at again. */
  async #compare(isRefused: boolean): Promise<void> {
    const events = { theirs: {}, ours: {} };
    for (let tries = 1; ; tries++) {
      try {
        return await this.#compareOnce(isRefused, events);
      } catch (error) {
        if (tries === MOST_TRIES) throw error;
        await new Promise((resolve) => setTimeout(resolve, 10 * tries));
      }
    }
  }

  /** `events`: those of earlier looks, to which these are added. */
  async #compareOnce(isRefused: boolean, events: { theirs: Events; ours: Events }): Promise<void> {
    const jobs = await this.#pair.settle(this.#endless, this.#ending);
    if (this.#isOver()) return;
    assert.deepEqual(jobs.ours, jobs.theirs, 'jobs');
    const more = this.#pair.takeEvents();
    for (const side of ['theirs', 'ours'] as const) {
      for (const [about, told] of Object.entries(more[side]))
        events[side][about] = [...(events[side][about] ?? []), ...(told as unknown[])];
      // A job that is refused late is created on one side.
      if (isRefused) leaveOutRefused(events[side]);
    }
    assert.deepEqual(events.ours, events.theirs, 'events');
    for (const [query, describe] of [
      ['query-block-jobs', describeWhole],
      ['query-jobs', ({ id, type, status, error }: Json): unknown => ({ id, type, status, error })],
      ['query-named-block-nodes', describeNode],
    ] as const) {
      const { theirs, ours } = await this.#pair.execute(query);
      if (this.#isOver()) return;
      const told = (answer: Answer): unknown[] =>
        listOf(answer)
          .filter(({ drv }) => !FILES.includes(String(drv)))
          .map(describe);
      assertSame(told(ours), told(theirs), query);
    }
  }

  #note({ name, args }: Command, nodes: readonly Json[]): void {
    if (name === 'transaction')
      for (const { type, data } of args['actions'] as Array<{ type: string; data: Json }>)
        this.#note({ name: type, args: data }, nodes);
    for (const made of [args['snapshot-file'], args['target']])
      if (typeof made === 'string') this.#made.add(made);
    const id = args['job-id'];
    if (args['sync'] === 'none' && name.endsWith('-backup')) this.#endless.add(String(id));
    else if (id !== undefined) this.#endless.delete(id as string);
    if (/^(block-)?job-(complete|cancel)$/.test(name)) this.#ending.add(String(args['id'] ?? args['device']));
    else if (id !== undefined) this.#ending.delete(id as string);
    if (name === 'block-commit' || name === 'block-stream')
      for (const file of ['a.img', 'b.img']) this.#uncertain.add(file);
    const target = nodes.find((node) => node['node-name'] === args['target']);
    const file = target === undefined ? args['target'] : fileOf(target);
    if (file !== undefined && typeof file === 'string') this.#uncertain.add(file);
  }

  /** What it shows depends on how far a job came. */
  #isUncertain(folder: string, file: string): boolean {
    const chain = run(folder, 'qemu-img', 'info', '--output=json', '--backing-chain', file);
    return [...this.#uncertain].some((name) => chain.includes(`${name}"`) || chain.includes(`${name}\\"`));
  }

  async #finish(): Promise<void> {
    const { jobs } = await this.#state();
    for (const { device } of jobs) await this.#pair.execute('block-job-cancel', { device, force: true });
    await this.#pair.end();
    for (const file of readdirSync(this.#pair.folders.theirs).filter((name) => name.endsWith('.img')))
      this.#compareFile(file);
  }

  #compareFile(file: string): void {
    const { theirs, ours } = this.#pair.folders;
    if (!existsSync(join(ours, file))) {
      assert.ok(!this.#made.has(file), `no ${file}`);
      return;
    }
    const told = [theirs, ours].map((folder) => {
      const info = JSON.parse(run(folder, 'qemu-img', 'info', '--output=json', file)) as Json;
      const { format, 'virtual-size': size, 'backing-filename': backing, 'format-specific': specific } = info;
      const { bitmaps } = ((specific as Json | undefined)?.['data'] ?? {}) as Json;
      return { format, size, backing: JSON.stringify(backing ?? '').replaceAll(folder, ''), bitmaps };
    });
    assert.deepEqual(told[1], told[0], `qemu-img info ${file}`);
    // Names in images may say of faults, and may not open.
    const whole = ['convert', '-f', String(told[0]?.format), '-O', 'raw', file, 'shown.raw'];
    if (spawnSync('qemu-img', whole, { cwd: theirs }).status !== 0) return;
    if (told[0]?.format === 'qcow2') run(ours, 'qemu-img', 'check', '-q', file);
    if (this.#isUncertain(theirs, file)) return;
    const [expected, found] = [theirs, ours].map((folder) => {
      run(folder, 'qemu-img', 'convert', '-f', String(told[0]?.format), '-O', 'raw', file, 'shown.raw');
      return readFileSync(join(folder, 'shown.raw'));
    });
    assert.ok(expected && found);
    if (!expected.equals(found)) {
      const at = expected.findIndex((byte, i) => byte !== found[i]);
      assert.fail(`${file} shows something else at ${at}: ${found[at]}, not ${expected[at]}`);
    }
  }
}

/** QEMU's commits and streams hold their nodes until they are dismissed. */
function isHeldByEnded({ error }: Answer): boolean {
  return /in use by block job: (commit|stream)|Need a root block node/.test(error?.desc ?? '');
}

/** Of a wrong job on nodes that it cannot have, QEMU tells the nodes first. */
function areTwoMistakes(theirs: Answer, ours: Answer): boolean {
  const isOfGraph = /Permission conflict|Block node is read-only|Failed to get .* lock/;
  const isOfJob = /^(Invalid job ID|Job ID '.*' already in use|Parameter 'speed' expects)/;
  return isOfGraph.test(theirs.error?.desc ?? '') && isOfJob.test(ours.error?.desc ?? '');
}

function fileOf({ file }: Json): string {
  const name = String(file);
  if (!name.startsWith('json:')) return name;
  const text = /"filename": "([^"]*)"/.exec(name)?.[1];
  return text ?? name;
}

test('random jobs on a machine’s disk go as QEMU’s do', async (context) => {
  if (skipWithout(context, 'qemu-system-x86_64', 'qemu-img', 'qemu-io')) return;
  await runSeeds(context, KNOWN_SEEDS, makeImages, async (seed, images, folder) => {
    const copy = (cwd: string): void => {
      for (const name of Object.keys(JOB_IMAGES))
        copyFileSync(join(images, `${name}.img`), join(cwd, `${name}.img`));
    };
    const source = new JobSource(seed);
    const nodes = source.nodes().flatMap((node) => ['-blockdev', JSON.stringify(node)]);
    const line = [...nodes, '-device', `virtio-blk-pci,id=${DEVICE},drive=c,cyls=1,heads=1,secs=1`];
    const pair = await Pair.startMachines(context, folder, copy, described, line);
    return { pair, run: new JobRun(pair, source), of: nodes.join(' ') };
  });
});
