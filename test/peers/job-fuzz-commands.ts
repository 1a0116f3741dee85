import type { Command, State } from './fuzz-commands.js';
import { type Json, THROTTLED } from './fuzz-pair.js';
import { Draws } from './fuzz-runs.js';

const KiB = 1024;
const MiB = 1024 * KiB;
export const JOB_DISK_BYTES = 4 * MiB;
/** Formats by image: a chain of a, b and c, and targets. */
export const JOB_IMAGES = {
  a: 'qcow2',
  b: 'qcow2',
  c: 'qcow2',
  t: 'qcow2',
  u: 'raw',
  w: 'qcow2',
  s: 'raw',
} as const;
/** The guest's disk, over c. */
export const DEVICE = 'v0';

const JOB_IDS = ['j0', 'j1', 'j2'] as const;
const POLICIES = ['report', 'ignore', 'stop', 'enospc', 'auto'] as const;
const ERRNOS = [5, 28, 13] as const;
const SYNCS = ['full', 'full', 'top', 'none', 'incremental', 'bitmap'] as const;
const FAULTS = ['read_aio', 'write_aio'] as const;

export interface JobState extends State {
  /** What the guest's disk shows, jobs' filters apart. */
  active: string;
}

/** Jobs of every kind with every option, most of them plausible, and what is done to jobs, from one seed. */
export class JobSource extends Draws {
  #count = 0;
  /** How far a slow job comes at once is each side's own, and so is whether it meets a fault. */
  #hasFaults = false;

  /** Which nodes there are when the machine starts; one of them has faults, sometimes. */
  nodes(): Json[] {
    const names = Object.keys(JOB_IMAGES);
    const faulty = this.chance(2) ? this.pick(names, 'a') : undefined;
    this.#hasFaults = faulty !== undefined;
    return names.map((image) => this.#image(image, image, image === faulty));
  }

  #image(image: string, name: string, isFaulty = false): Json {
    const backing = { a: null, b: 'a', c: 'b' }[image];
    const format = JOB_IMAGES[image as keyof typeof JOB_IMAGES];
    const file = { driver: 'file', filename: `${image}.img` };
    return {
      ...{ driver: format, 'node-name': name },
      ...(backing !== undefined && { backing }),
      file: isFaulty ? { driver: 'blkdebug', image: file, 'inject-error': [this.#fault()] } : file,
    };
  }

  /** Several at a time would meet the requests of a window in an order of their own; where new data lies is each side's own. */
  #fault(): Json {
    return { event: this.pick(FAULTS, 'read_aio'), errno: this.pick(ERRNOS, 5), once: true };
  }

  next(state: JobState): Command {
    const makers: ReadonlyArray<readonly [number, () => Command]> = [
      [5, () => this.#stream(state)],
      [5, () => this.#commit(state)],
      [5, () => this.#mirror(state)],
      [3, () => this.#driveMirror(state)],
      [5, () => this.#backup(state)],
      [3, () => this.#driveBackup(state)],
      [state.jobs.length > 0 ? 26 : 3, () => this.#verb(state)],
      [8, () => this.#io()],
      [6, () => this.#bitmap(state)],
      [3, () => this.#transaction(state)],
      [1, () => this.#snapshotSync(state)],
      [2, () => ({ name: 'blockdev-del', args: { 'node-name': this.#node(state) } })],
      [
        3,
        () => ({ name: 'blockdev-add', args: this.#image(this.pick(['t', 'u', 'w'], 't'), this.#newName()) }),
      ],
      [1, () => ({ name: 'block_resize', args: { 'node-name': this.#node(state), size: 5 * MiB } })],
      [1, () => this.#pull(state)],
    ];
    return this.weighted(makers);
  }

  #node({ nodes }: State): string {
    if (this.chance(30)) return this.pick(['nope', '', DEVICE], '');
    const names = nodes.map((node) => String(node['node-name'])).filter((name) => !name.startsWith('#'));
    return this.pick(names, 'none');
  }

  /** The guest's disk mostly. */
  #source(state: JobState): string {
    if (this.chance(8)) return this.#node(state);
    return this.chance(6) ? this.pick(['b', 'a'], 'c') : state.active;
  }

  #target(state: JobState): string {
    return this.chance(5) ? this.#node(state) : this.pick(['t', 'u', 'w', 's'], 't');
  }

  #newName(): string {
    return `n${this.#count++}`;
  }

  #job(): Json {
    return {
      'job-id': this.chance(40) ? '0j' : this.pick(JOB_IDS, 'j0'),
      ...this.some({ 'auto-finalize': false, 'auto-dismiss': false }, 3),
      ...this.some({ 'filter-node-name': this.chance(10) ? 'a' : this.#newName() }, 4),
    };
  }

  /** A job that is to stay where it is, sometimes. */
  #speed(): Json {
    if (this.chance(30)) return { speed: -1 };
    return this.chance(3) && !this.#hasFaults ? { speed: THROTTLED } : {};
  }

  #policy(): string {
    return this.pick(POLICIES, 'report');
  }

  #stream(state: JobState): Command {
    const args = {
      ...{ device: this.#source(state), ...this.#job(), ...this.#speed() },
      ...this.some({ 'base-node': this.#node(state), bottom: this.#node(state), base: 'a.img' }, 5),
      ...this.some({ 'backing-file': this.pick(['a.img', 'x.img'], '') }, 8),
      ...this.some({ 'on-error': this.#policy() }, 2),
    };
    return { name: 'block-stream', args };
  }

  #commit(state: JobState): Command {
    const args = {
      ...{ device: this.#source(state), ...this.#job(), ...this.#speed() },
      ...this.some({ 'base-node': this.#node(state), base: 'a.img', top: 'b.img' }, 5),
      ...this.some({ 'top-node': this.pick(['b', 'c', 'a'], 'b') }, 2),
      ...this.some({ 'backing-file': this.pick(['a.img', 'x.img'], '') }, 8),
      ...this.some({ 'on-error': this.#policy() }, 2),
    };
    return { name: 'block-commit', args };
  }

  #howMirrored(state: JobState): Json {
    return {
      ...{ ...this.#job(), ...this.#speed(), sync: this.pick(SYNCS, 'full') },
      ...this.some({ 'copy-mode': this.pick(['background', 'write-blocking'], '') }, 3),
      ...this.some({ 'on-source-error': this.#policy(), 'on-target-error': this.#policy() }, 2),
      ...this.some({ replaces: this.#source(state), 'buf-size': this.pick([0, 65536, -1], 0) }, 10),
      ...this.some({ granularity: this.pick([512, 4096, 65536, 1000], 512) }, 6),
    };
  }

  #mirror(state: JobState): Command {
    const args = { device: this.#source(state), target: this.#target(state), ...this.#howMirrored(state) };
    return { name: 'blockdev-mirror', args };
  }

  #drive(state: JobState): Json {
    const isNew = !this.chance(4);
    const target = isNew ? `${this.#newName()}.img` : this.pick(['t.img', 'u.img'], '');
    return {
      ...{ device: this.#source(state), target },
      ...(isNew ? this.some({ mode: 'absolute-paths' }, 4) : { mode: 'existing' }),
      ...this.some({ format: this.pick(['qcow2', 'raw', 'vdi'], 'raw') }, 2),
    };
  }

  #driveMirror(state: JobState): Command {
    const args = { ...this.#drive(state), ...this.#howMirrored(state) };
    const more = this.some({ unmap: false, 'node-name': this.#newName() }, 3);
    return { name: 'drive-mirror', args: { ...args, ...more } };
  }

  #howBackedUp(): Json {
    return {
      ...{ ...this.#job(), ...this.#speed(), sync: this.pick(SYNCS, 'full') },
      ...this.some({ bitmap: 'b0', 'bitmap-mode': this.pick(['on-success', 'never', 'always'], '') }, 3),
      ...this.some({ 'on-source-error': this.#policy(), 'on-target-error': this.#policy() }, 2),
      ...this.some({ compress: true, 'x-perf': { 'max-workers': this.pick([1, 4], 1) } }, 6),
    };
  }

  #backup(state: JobState): Command {
    const args = { device: this.#source(state), target: this.#target(state), ...this.#howBackedUp() };
    return { name: 'blockdev-backup', args };
  }

  #driveBackup(state: JobState): Command {
    return { name: 'drive-backup', args: { ...this.#drive(state), ...this.#howBackedUp() } };
  }

  #verb({ jobs }: State): Command {
    const job = jobs.length > 0 ? this.pick(jobs, {}) : undefined;
    const id = job && !this.chance(20) ? String(job['device']) : this.pick(JOB_IDS, 'j0');
    const verbs = [
      'cancel',
      'complete',
      'complete',
      'pause',
      'resume',
      'resume',
      'finalize',
      'dismiss',
      'set-speed',
    ];
    const verb = this.pick(verbs, 'cancel');
    const isOfBlockJobs = verb === 'set-speed' || this.chance(2);
    if (!isOfBlockJobs) return { name: `job-${verb}`, args: { id } };
    const args = ['finalize', 'dismiss'].includes(verb) ? { id } : { device: id };
    const slow = this.#hasFaults ? 0 : THROTTLED;
    const speed = { speed: this.pick([0, 0, slow, -1], 0) };
    const more = verb === 'set-speed' ? speed : verb === 'cancel' ? this.some({ force: true }, 2) : {};
    return { name: `block-job-${verb}`, args: { ...args, ...more } };
  }

  /** What the guest does. */
  #io(): Command {
    const at = 64 * this.random.below(JOB_DISK_BYTES / (64 * KiB));
    const length = Math.min(this.pick([1, 64, 100, 512], 64), JOB_DISK_BYTES / KiB - at);
    const pattern = 1 + this.random.below(200);
    const [line] = [
      this.pick(
        [
          `write -P ${pattern} ${at}k ${length}k`,
          `write -P ${pattern} ${at}k ${length}k`,
          `write -z ${at}k ${length}k`,
          `write -zu ${at}k ${length}k`,
          `discard ${at}k ${length}k`,
          'flush',
        ],
        'flush',
      ),
    ];
    const args = { 'command-line': `qemu-io -d ${DEVICE}/virtio-backend "${line}"` };
    return { name: 'human-monitor-command', args };
  }

  #bitmap(state: JobState): Command {
    const verb = this.pick(['add', 'add', 'add', 'remove', 'clear', 'disable', 'enable', 'merge'], 'add');
    const node = this.#source(state);
    const name = this.pick(['b0', 'b0', 'b1'], 'b0');
    if (verb === 'merge') {
      const bitmaps = this.chance(2) ? ['b1'] : ['b1', { node: this.#source(state), name: 'b0' }];
      return { name: 'block-dirty-bitmap-merge', args: { node, target: 'b0', bitmaps } };
    }
    const more = verb === 'add' ? this.some({ persistent: true, disabled: true, granularity: 65536 }) : {};
    return { name: `block-dirty-bitmap-${verb}`, args: { node, name, ...more } };
  }

  #snapshotSync(state: JobState): Command {
    const overlay = this.#newName();
    const args = { 'node-name': this.#source(state), 'snapshot-file': `${overlay}.img`, format: 'qcow2' };
    return { name: 'blockdev-snapshot-sync', args: { ...args, 'snapshot-node-name': overlay } };
  }

  #transaction(state: JobState): Command {
    const one = (): Json => {
      const makers = [
        () => this.#backup(state),
        () => this.#driveBackup(state),
        () => this.#bitmap(state),
        () => this.#bitmap(state),
        () => this.#snapshotSync(state),
        () => ({ name: 'abort', args: {} }),
      ];
      const { name, args } = this.pick(makers, () => ({ name: 'abort', args: {} }))();
      return { type: name, data: args };
    };
    const actions = Array.from({ length: 1 + this.random.below(3) }, one);
    const properties = { 'completion-mode': this.pick(['grouped', 'individual'], 'grouped') };
    return { name: 'transaction', args: { actions, ...this.some({ properties }, 2) } };
  }

  /** What reads a disk at one moment. */
  #pull(state: JobState): Command {
    const args = {
      ...{ driver: 'copy-before-write', 'node-name': this.#newName() },
      ...{ file: this.#node(state), target: this.#target(state) },
    };
    return { name: 'blockdev-add', args };
  }
}
