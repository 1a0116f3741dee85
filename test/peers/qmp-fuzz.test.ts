import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { run, scratch, skipWithout } from './daemon.js';
import { type Command, CommandSource, DISK_BYTES, IMAGES, type State } from './fuzz-commands.js';
import { type Answer, type Json, listOf, Pair } from './fuzz-pair.js';

/** FUZZ_SECONDS: how long to go on; FUZZ_SEED: only this one, with a trace. */
const SECONDS = Number(process.env['FUZZ_SECONDS'] ?? 20);
/** Seeds that are known to hold; only who asks for more time looks for new differences. */
const MOST_RUNS = process.env['FUZZ_SECONDS'] === undefined ? 14 : Infinity;
const ONLY_SEED = process.env['FUZZ_SEED'];
const STEPS = 40;

/** Differences that are meant: where one side refuses and the other does not, the run ends there. */
const MEANT: ReadonlyArray<{ command: RegExp; theirs?: RegExp; ours?: RegExp; why: string }> = [
  {
    command: /snapshot|transaction/,
    ours: /^The overlay is already in use$/,
    why: 'QEMU takes the target of a running job as an overlay',
  },
  {
    command: /^(block-)?job-/,
    ours: /^(Block job '.*' n|Job n)ot found$/,
    why: 'a slow job of livedisk copies zeroes for nothing, and may have ended',
  },
  {
    command: /backup|transaction/,
    theirs: /Permission conflict/,
    ours: /^Invalid job ID/,
    why: "of two mistakes in a backup QEMU tells the graph's first",
  },
];

/** Names in messages that each side generates, and what of a conflict depends on how jobs hold their nodes. */
function inCommon(desc: string): string {
  return (
    desc
      .replace(/#block\d+/g, '#block')
      .replace(/(Permission conflict on node '[^']*': permissions ')[^']*(' are both required by ).*/, '$1$2')
      .replace(/^Could not create node: (?=Permission conflict)/, '')
      // Of several locks that others have, which is told.
      .replace(/"(write|resize|consistent read)" lock/, '"some" lock')
  );
}

function comparable({ error, return: value }: Answer): Json {
  return error ? { class: error.class, desc: inCommon(error.desc) } : { value };
}

/** Without the names of files: QEMU makes json: names where a backing file is not the one in the header. */
function describeNode(node: Json): unknown {
  const name = String(node['node-name']).replace(/^#block\d+/, '#block');
  const { 'virtual-size': size, 'cluster-size': cluster } = node['image'] as Json;
  const { drv, ro, cache, 'dirty-bitmaps': bitmaps } = node;
  // QEMU holds what some of its filters show as a backing file, and has them writable whatever they show.
  if (/top|copy/.test(String(drv))) return { name, drv, size };
  // A job's own bitmaps have no name, and how far a slow job is shows in how much those of its target have noted.
  const named = (Array.isArray(bitmaps) ? (bitmaps as Json[]) : [])
    .filter((bitmap) => 'name' in bitmap)
    .map((bitmap) => ({ ...bitmap, count: undefined }));
  return { name, drv, ro, size: drv === 'file' ? 0 : size, cluster, cache, named };
}

function assertSame(ours: readonly unknown[], theirs: readonly unknown[], what: string): void {
  const lines = (list: readonly unknown[]): string => list.map((item) => JSON.stringify(item)).join('\n');
  if (lines(ours) !== lines(theirs)) assert.fail(`${what}\nours:\n${lines(ours)}\ntheirs:\n${lines(theirs)}`);
}

function describeJob(job: Json): unknown {
  const { type, device, paused, ready, status, speed, error, 'io-status': io } = job;
  const { 'auto-finalize': finalize, 'auto-dismiss': dismiss } = job;
  return { type, device, paused, ready, status, speed, error, io, finalize, dismiss };
}

/** Of a node that a job has made, the name is each side's own. */
function describeExport({ 'node-name': name, ...rest }: Json): unknown {
  return { ...rest, name: String(name).replace(/^#block\d+/, '#block') };
}

function describeAll(answer: Answer, describe: (item: Json) => unknown): unknown[] {
  return listOf(answer).map(describe);
}

/** Makes the images once: [a] <-- [b] <-- [c], three empty ones of the same size, and one that is smaller. */
function makeImages(folder: string): void {
  mkdirSync(folder);
  const create = (name: string, ...more: string[]): string =>
    run(
      folder,
      'qemu-img',
      'create',
      '-q',
      '-f',
      'qcow2',
      ...more,
      `${name}.qcow2`,
      ...(more.length > 0 ? [] : [`${DISK_BYTES}`]),
    );
  const write = (name: string, command: string): string =>
    run(folder, 'qemu-io', '-f', 'qcow2', '-c', command, `${name}.qcow2`);
  create('a');
  write('a', 'write -P 0xa1 0 4M');
  create('b', '-b', 'a.qcow2', '-F', 'qcow2');
  write('b', 'write -P 0xb1 2M 3M');
  create('c', '-b', 'b.qcow2', '-F', 'qcow2');
  write('c', 'write -P 0xc1 4M 3M');
  for (const name of ['t0', 't1', 't2']) create(name);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 's.qcow2', '1M');
}

/** One run of commands, the same on both sides. */
class Run {
  readonly #pair: Pair;
  readonly #source: CommandSource;
  readonly #trace: string[] = [];
  /** In the wording of refusals. */
  readonly differences: string[] = [];
  /** Files whose content depends on how far a job came that did not end well. */
  readonly #uncertain = new Set<string>();

  constructor(pair: Pair, source: CommandSource) {
    this.#pair = pair;
    this.#source = source;
  }

  get trace(): string {
    return this.#trace.join('\n');
  }

  /** False when it ended early, at a difference that is meant. */
  async all(): Promise<boolean> {
    for (const command of this.#source.begin()) assert.ok(await this.#step(command));
    for (let i = 0; i < STEPS; i++) {
      const state = await this.#state();
      if (this.#pair.isReferenceGone) return false;
      if (this.#source.chance(12)) this.#write(state);
      else if (!(await this.#step(this.#source.next(state)))) return false;
    }
    return this.#finish();
  }

  async #state(): Promise<State> {
    const list = async (command: string, args: Json = {}): Promise<Json[]> =>
      listOf((await this.#pair.execute(command, args)).theirs);
    return {
      nodes: await list('query-named-block-nodes', { flat: true }),
      jobs: await list('query-block-jobs'),
      exports: await list('query-block-exports'),
    };
  }

  /** A client of an export writes the same on both sides. */
  #write({ exports }: State): void {
    const { id } = this.#source.pick(exports, {});
    if (id === undefined) return;
    const name = `nbd+unix:///${id as string}?socket=nbd.sock`;
    const at = this.#source.pick([0, 2, 5], 0);
    const command = `write -P ${this.#source.pick([1, 2, 3], 1)} ${at}M 3M`;
    this.#trace.push(`write ${id as string}: ${command}`);
    const { theirs, ours } = this.#pair.run('qemu-io', '-f', 'raw', '-c', command, name);
    const words = (text: string): string => text.replace(/^(wrote.*\n).*ops.*\n/m, '$1').replace(/\(.*/g, '');
    assert.equal(words(ours), words(theirs));
  }

  /** False when the sides part as they are meant to, or the reference has crashed. */
  async #step(command: Command): Promise<boolean> {
    this.#trace.push(`${command.name} ${JSON.stringify(command.args)}`);
    const before = await this.#pair.execute('query-named-block-nodes', { flat: true });
    const { theirs, ours } = await this.#pair.execute(command.name, command.args);
    if (this.#pair.isReferenceGone) return false;
    this.#trace.push(`    ${JSON.stringify(theirs)}`);
    if (isMeant(command, theirs, ours)) return theirs.error !== undefined && ours.error !== undefined;
    const expected = JSON.stringify(comparable(theirs));
    const found = JSON.stringify(comparable(ours));
    // Two refusals leave both sides as they were, so the run can go on.
    if (found !== expected && theirs.error && ours.error)
      this.differences.push(`${this.#trace.at(-2) ?? ''}\n  theirs ${expected}\n  ours   ${found}`);
    else assert.equal(found, expected);
    if (!theirs.error) this.#note(command, listOf(before.theirs));
    await this.#compare();
    return !this.#pair.isReferenceGone && !this.#pair.hasParted;
  }

  async #compare(): Promise<void> {
    const jobs = await this.#pair.settle(this.#source.endless);
    if (this.#pair.isReferenceGone || this.#pair.hasParted) return;
    assert.deepEqual(jobs.ours, jobs.theirs);
    const events = this.#pair.takeEvents();
    // A slow job may have ended on one side since.
    await this.#pair.settle(this.#source.endless);
    if (this.#pair.isReferenceGone || this.#pair.hasParted) return;
    assert.deepEqual(events.ours, events.theirs);
    for (const [query, describe] of [
      ['query-block-jobs', describeJob],
      ['query-named-block-nodes', describeNode],
      ['query-block-exports', describeExport],
    ] as const) {
      const { theirs, ours } = await this.#pair.execute(query);
      if (this.#pair.isReferenceGone) return;
      assert.equal(theirs.error, undefined, query);
      assertSame(describeAll(ours, describe), describeAll(theirs, describe), query);
    }
  }

  /** A job may end early: then nobody knows what of its target's old content is left. */
  #note({ name, args }: Command, nodes: readonly Json[]): void {
    if (name === 'transaction')
      for (const { type, data } of args['actions'] as Array<{ type: string; data: Json }>)
        this.#note({ name: type, args: data }, nodes);
    if (name === 'block-commit' || name === 'block-stream')
      for (const { file } of nodes) this.#uncertain.add(String(file));
    const target = nodes.find((node) => node['node-name'] === args['target']);
    if (target) this.#uncertain.add(String(target['file']));
  }

  async #finish(): Promise<boolean> {
    const { jobs } = await this.#state();
    for (const { device } of jobs) await this.#pair.execute('block-job-cancel', { device, force: true });
    await this.#pair.end();
    for (const file of readdirSync(this.#pair.folders.theirs).filter((name) => name.endsWith('.qcow2')))
      this.#compareFile(file);
    return true;
  }

  #compareFile(file: string): void {
    const [theirs, ours] = [this.#pair.folders.theirs, this.#pair.folders.ours].map((folder) =>
      join(folder, file),
    );
    assert.ok(theirs && ours && existsSync(ours), file);
    if (chainOf(this.#pair.folders.theirs, file).some((name) => this.#uncertain.has(name))) return;
    const { status, stdout, stderr } = spawnSync(
      'qemu-img',
      ['compare', '-f', 'qcow2', '-F', 'qcow2', theirs, ours],
      {
        encoding: 'utf8',
      },
    );
    assert.equal(status, 0, `${file}: ${stdout}${stderr}`);
  }
}

/** An image and all that it shows. */
function chainOf(folder: string, file: string): string[] {
  const text = run(folder, 'qemu-img', 'info', '--backing-chain', '--output=json', file);
  return (JSON.parse(text) as Json[]).map(({ filename }) => String(filename));
}

function isMeant({ name }: Command, theirs: Answer, ours: Answer): boolean {
  return MEANT.some(
    (entry) =>
      entry.command.test(name) &&
      (entry.theirs === undefined || entry.theirs.test(theirs.error?.desc ?? '')) &&
      (entry.ours === undefined || entry.ours.test(ours.error?.desc ?? '')) &&
      theirs.error?.desc !== ours.error?.desc,
  );
}

async function runSeed(
  context: TestContext,
  seed: number,
  images: string,
  folder: string,
): Promise<string[]> {
  const copy = (cwd: string): void => {
    for (const name of IMAGES) copyFileSync(join(images, `${name}.qcow2`), join(cwd, `${name}.qcow2`));
  };
  const pair = await Pair.start(context, folder, copy);
  const one = new Run(pair, new CommandSource(seed));
  try {
    const whole = await one.all();
    if (ONLY_SEED !== undefined) context.diagnostic(`${one.trace}\n${whole ? '' : 'ended early'}`);
    return one.differences.map((difference) => `FUZZ_SEED=${seed} ${difference}`);
  } catch (error) {
    const what = error instanceof Error ? error.message : String(error);
    throw new Error(`${what}\nFUZZ_SEED=${seed}\n${one.trace}\n${pair.output}`, { cause: error });
  } finally {
    await pair.kill();
  }
}

test('random commands are answered as qemu-storage-daemon answers them', async (context) => {
  if (skipWithout(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const folder = scratch(context);
  const images = join(folder, 'images');
  makeImages(images);
  const end = Date.now() + SECONDS * 1000;
  const differences: string[] = [];
  let seed = Number(ONLY_SEED ?? 1);
  do {
    differences.push(...(await runSeed(context, seed, images, join(folder, `seed${seed}`))));
    seed++;
  } while (ONLY_SEED === undefined && Date.now() < end && seed <= MOST_RUNS);
  assert.equal(differences.join('\n'), '');
  context.diagnostic(`${seed - 1} runs`);
});
