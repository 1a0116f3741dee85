import assert from 'node:assert/strict';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { run, skipWithout } from './daemon.js';
import { type Command, CommandSource, DISK_BYTES, IMAGES, type State } from './fuzz-commands.js';
import {
  assertSame,
  comparable,
  describeAll,
  describeExport,
  describeJob,
  describeNode,
  leaveOutRefused,
} from './fuzz-described.js';
import { type Answer, type Json, listOf, Pair } from './fuzz-pair.js';
import { runSeeds } from './fuzz-runs.js';

const KNOWN_SEEDS = 14;
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
    theirs: /Permission conflict|Block node is read-only/,
    ours: /^(Invalid job ID|Job ID '.*' already in use|Parameter 'speed' expects)/,
    why: "of two mistakes in a backup QEMU tells the graph's first",
  },
  {
    command: /^transaction$/,
    ours: /^Could not create node: Block node is read-only$/,
    why: 'QEMU lets a backup write into the image that a snapshot of the same transaction puts below',
  },
  {
    command: /^block-stream$/,
    theirs: /^Failed to get .* lock$/,
    ours: /^(Invalid job ID|Job ID '.*' already in use)/,
    why: 'QEMU opens the image for writing before it looks at the job',
  },
];

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
  /** Jobs that end only when they are told to. */
  readonly #endless = new Set<string>();
  /** Jobs that were told to end: where they are ready they are not yet where they stay. */
  readonly #ending = new Set<string>();
  /** Overlays that QEMU makes before it refuses the snapshot, and leaves behind. */
  readonly #refusedOverlays = new Set<string>();
  #hadActiveCommit = false;
  steps = 0;

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
    this.steps++;
    this.#trace.push(`${command.name} ${JSON.stringify(command.args)}`);
    const before = await this.#pair.execute('query-named-block-nodes', { flat: true });
    const graph = await this.#referenceGraph(command);
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
    else for (const file of overlaysOf(command)) this.#refusedOverlays.add(file);
    if (theirs.error && graph !== (await this.#referenceGraph(command))) return false;
    await this.#compare(theirs.error !== undefined);
    return !this.#pair.isReferenceGone && !this.#pair.hasParted;
  }

  /**
   * QEMU's, around a transaction: one with a snapshot that fails gives users of the overlay to its base, for good. We leave
   * them where they are, so the sides part.
   */
  async #referenceGraph({ name }: Command): Promise<string> {
    if (name !== 'transaction') return '';
    return JSON.stringify((await this.#pair.execute('x-debug-query-block-graph')).theirs);
  }

  async #compare(isRefused: boolean): Promise<void> {
    const jobs = await this.#pair.settle(this.#endless, this.#ending);
    if (this.#pair.isReferenceGone || this.#pair.hasParted) return;
    assert.deepEqual(jobs.ours, jobs.theirs);
    const events = this.#pair.takeEvents();
    if (isRefused) for (const told of [events.theirs, events.ours]) leaveOutRefused(told);
    // A slow job may have ended on one side since.
    await this.#pair.settle(this.#endless, this.#ending);
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
      if (query === 'query-named-block-nodes' && this.#isLeftWritable(listOf(theirs), listOf(ours))) {
        this.#pair.hasParted = true;
        return;
      }
      assertSame(describeAll(ours, describe), describeAll(theirs, describe), query);
    }
  }

  /** QEMU leaves the base of an active layer's commit writable when the job is cancelled; we make it read-only again. */
  #isLeftWritable(theirs: readonly Json[], ours: readonly Json[]): boolean {
    if (!this.#hadActiveCommit || theirs.length !== ours.length) return false;
    const differing = theirs.filter((node, i) => node['ro'] !== ours[i]?.['ro']);
    return differing.length > 0 && differing.every(({ ro }) => ro === false);
  }

  /** A job may end early: then nobody knows what of its target's old content is left. */
  #note({ name, args }: Command, nodes: readonly Json[]): void {
    for (const action of actionsOf({ name, args })) this.#note(action, nodes);
    const id = args['job-id'];
    if (args['sync'] === 'none' && name === 'blockdev-backup') this.#endless.add(String(id));
    else if (id !== undefined) this.#endless.delete(id as string);
    if (/^(block-)?job-(complete|cancel)$/.test(name)) this.#ending.add(String(args['id'] ?? args['device']));
    else if (id !== undefined) this.#ending.delete(id as string);
    if (name === 'block-commit' && [undefined, args['device']].includes(args['top-node']))
      this.#hadActiveCommit = true;
    if (name === 'block-commit' || name === 'block-stream')
      for (const { file } of nodes) this.#uncertain.add(String(file));
    const target = nodes.find((node) => node['node-name'] === args['target']);
    if (target) this.#uncertain.add(ownFileOf(target));
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
    const { theirs, ours } = this.#pair.folders;
    if (!existsSync(join(ours, file))) {
      assert.ok(this.#refusedOverlays.has(file), file);
      return;
    }
    for (const name of chainOf(theirs, file)) if (this.#uncertain.has(name)) return;
    // Names in images are as their daemon's folder sees them.
    const [expected, found] = [theirs, ours].map((folder) => {
      run(folder, 'qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', file, 'shown.raw');
      return readFileSync(join(folder, 'shown.raw'));
    });
    assert.ok(expected && found);
    const at = expected.length === found.length ? firstDifference(expected, found) : undefined;
    if (!expected.equals(found)) assert.fail(`${file} shows something else at ${at ?? 'its end'}`);
  }
}

function firstDifference(one: Buffer, other: Buffer): number {
  return one.findIndex((byte, i) => byte !== other[i]);
}

function actionsOf({ name, args }: Command): Command[] {
  if (name !== 'transaction') return [];
  const actions = args['actions'] as Array<{ type: string; data: Json }>;
  return actions.map(({ type, data }) => ({ name: type, args: data }));
}

/** The files that snapshots among what is asked are to make. */
function overlaysOf(command: Command): string[] {
  const asked = [command, ...actionsOf(command)].map(({ args }) => args['snapshot-file']);
  return asked.filter((file) => typeof file === 'string');
}

/** The file with a node's own clusters, also of one whose name says what backing file it has instead of the header's. */
function ownFileOf({ file }: Json): string {
  const name = String(file);
  if (!name.startsWith('json:')) return name;
  const { file: own } = JSON.parse(name.slice('json:'.length)) as { file?: { filename?: string } };
  assert.ok(own?.filename !== undefined, name);
  return own.filename;
}

/** An image and all that it may show: names of QEMU's with options of backing files do not open by themselves. */
function chainOf(folder: string, file: string): Set<string> {
  const found = new Set([file]);
  for (const name of found) {
    const text = run(folder, 'qemu-img', 'info', '--output=json', name);
    const { 'backing-filename': below = '' } = JSON.parse(text) as { 'backing-filename'?: string };
    const named = below.startsWith('json:') ? below.matchAll(/"filename": "([^"]*)"/g) : [['', below]];
    for (const [, one = ''] of named) if (one !== '') found.add(one);
  }
  return found;
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

test('random commands are answered as qemu-storage-daemon answers them', async (context) => {
  if (skipWithout(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  await runSeeds(context, KNOWN_SEEDS, makeImages, async (seed, images, folder) => {
    const pair = await Pair.start(context, folder, (cwd) => {
      for (const name of IMAGES) copyFileSync(join(images, `${name}.qcow2`), join(cwd, `${name}.qcow2`));
    });
    return { pair, run: new Run(pair, new CommandSource(seed)) };
  });
});
