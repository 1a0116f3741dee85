import { type Json, THROTTLED } from './fuzz-pair.js';
import { Draws } from './fuzz-runs.js';

/** What the reference has at the moment. */
export interface State {
  nodes: Json[];
  /** query-block-jobs. */
  jobs: Json[];
  exports: Json[];
}

export interface Command {
  name: string;
  args: Json;
}

export const IMAGES = ['a', 'b', 'c', 't0', 't1', 't2', 's'];
const MiB = 1024 * 1024;
export const DISK_BYTES = 8 * MiB;
const JOB_IDS = ['j0', 'j1', 'j2'];

/** Plausible commands, most of them right, from one seed. */
export class CommandSource extends Draws {
  #count = 0;

  /** The nodes that most commands are about. */
  begin(): Command[] {
    return [
      { name: 'nbd-server-start', args: { addr: { type: 'unix', data: { path: 'nbd.sock' } } } },
      ...['a', 'b', 'c'].map((image, i) => this.#add(image, image, { backing: ['a', 'b'][i - 1] ?? null })),
      ...['t0', 't1', 't2', 's'].map((image) => this.#add(image, image, {})),
    ];
  }

  #add(image: string, name: string, more: Json): Command {
    const file = { driver: 'file', filename: `${image}.qcow2` };
    return { name: 'blockdev-add', args: { driver: 'qcow2', 'node-name': name, file, ...more } };
  }

  next(state: State): Command {
    const makers: ReadonlyArray<readonly [number, () => Command]> = [
      [3, () => this.#addAny(state)],
      [2, () => ({ name: 'blockdev-del', args: { 'node-name': this.#node(state) } })],
      [3, () => ({ name: 'blockdev-snapshot-sync', args: this.#snapshotSync(state) })],
      [3, () => ({ name: 'blockdev-snapshot', args: this.#snapshot(state) })],
      [4, () => this.#stream(state)],
      [4, () => this.#commit(state)],
      [4, () => this.#mirror(state)],
      [5, () => this.#backup(state)],
      [14, () => this.#verb(state)],
      [2, () => this.#export(state)],
      [1, () => ({ name: 'block_resize', args: this.#resize(state) })],
      [1, () => this.#changeBacking(state)],
      [2, () => ({ name: 'transaction', args: this.#transaction(state) })],
      [4, () => this.#bitmap(state)],
      [1, () => this.#rare(state)],
      [6, () => this.#wide(state)],
    ];
    return this.weighted(makers);
  }

  #node({ nodes }: State): string {
    if (this.chance(25)) return this.pick(['nope', '', '#block1'], '');
    const names = nodes.map((node) => String(node['node-name'])).filter((name) => !name.startsWith('#'));
    return this.pick(names, 'none');
  }

  #newName(state: State): string {
    return this.chance(12) ? this.pick([this.#node(state), '1x', 'a b'], '') : `n${this.#count++}`;
  }

  #addAny(state: State): Command {
    const image = this.pick(IMAGES, 'a');
    const backing = this.pick<unknown>([null, this.#node(state), undefined], null);
    const more = {
      ...(backing !== undefined && { backing }),
      ...this.some({ 'read-only': true }),
    };
    return this.#add(image, this.#newName(state), more);
  }

  #snapshotSync(state: State): Json {
    const overlay = `o${this.#count++}`;
    const args = { 'node-name': this.#node(state), 'snapshot-file': `${overlay}.qcow2`, format: 'qcow2' };
    if (this.chance(15)) return args;
    return { ...args, 'snapshot-node-name': this.chance(10) ? this.#node(state) : overlay };
  }

  #snapshot(state: State): Json {
    return { node: this.#node(state), overlay: this.#node(state) };
  }

  #job(state: State): Json {
    const id = this.chance(30) ? '0j' : this.pick(JOB_IDS, 'j0');
    return {
      'job-id': id,
      ...this.some({ 'auto-finalize': false, 'auto-dismiss': false }, 4),
      ...this.some({ 'filter-node-name': this.#newName(state) }, 4),
    };
  }

  /** A job that is to stay where it is, sometimes. */
  #speed(): Json {
    if (this.chance(20)) return { speed: -1 };
    return this.chance(2) ? { speed: THROTTLED } : {};
  }

  #stream(state: State): Command {
    const below = this.some({ 'base-node': this.#node(state), bottom: this.#node(state) }, 4);
    const args = { device: this.#node(state), ...this.#job(state), ...this.#speed(), ...below };
    return { name: 'block-stream', args };
  }

  #commit(state: State): Command {
    const device = this.#node(state);
    const rest = this.some({ 'base-node': this.#node(state) }, 2);
    // The commit of an active layer is a mirror, which may have copied all before its speed is looked at.
    const top = this.chance(2) ? { 'top-node': this.#node(state) } : {};
    const speed = 'top-node' in top && top['top-node'] !== device ? this.#speed() : {};
    return { name: 'block-commit', args: { device, ...this.#job(state), ...rest, ...top, ...speed } };
  }

  #sync(kinds: readonly string[]): string {
    return this.pick(kinds, 'full');
  }

  #mirror(state: State): Command {
    const args = {
      ...{ device: this.#node(state), target: this.#node(state), ...this.#job(state) },
      sync: this.#sync(['full', 'full', 'top', 'none', 'incremental']),
      ...this.some({ replaces: this.#node(state), speed: -1, granularity: 1000 }, 15),
      ...this.some({ 'copy-mode': 'write-blocking' }),
    };
    return { name: 'blockdev-mirror', args };
  }

  #backup(state: State): Command {
    const sync = this.#sync(['full', 'full', 'top', 'none', 'incremental']);
    const args = {
      ...{ device: this.#node(state), target: this.#node(state), ...this.#job(state), sync },
      ...(sync === 'none' ? {} : this.#speed()),
      ...this.some({ bitmap: 'bits', 'bitmap-mode': 'on-success' }, 12),
    };
    return { name: 'blockdev-backup', args };
  }

  #verb({ jobs }: State): Command {
    const [job] = jobs.length > 0 ? [this.pick(jobs, {})] : [];
    const id = job && !this.chance(20) ? String(job['device']) : this.pick(JOB_IDS, 'j0');
    const verb = this.pick(
      [
        'cancel',
        'cancel',
        'complete',
        'complete',
        'pause',
        'resume',
        'finalize',
        'finalize',
        'dismiss',
        'set-speed',
      ],
      'cancel',
    );
    const isOfBlockJobs = verb === 'set-speed' || this.chance(2);
    if (!isOfBlockJobs) return { name: `job-${verb}`, args: { id } };
    const args = ['finalize', 'dismiss'].includes(verb) ? { id } : { device: id };
    const more =
      verb === 'set-speed'
        ? { speed: this.chance(10) ? -1 : 0 }
        : verb === 'cancel'
          ? this.some({ force: true }, 2)
          : {};
    return { name: `block-job-${verb}`, args: { ...args, ...more } };
  }

  #export(state: State): Command {
    if (this.chance(2)) {
      const { id } = this.pick(state.exports, { id: 'e0' });
      return { name: 'block-export-del', args: { id, ...this.some({ mode: 'hard' }, 2) } };
    }
    const node = this.#node(state);
    const id = this.chance(10) ? 'e 1' : `e${this.random.below(3)}`;
    const args = { type: 'nbd', id, 'node-name': node, name: id, ...this.some({ writable: true }, 2) };
    return { name: 'block-export-add', args };
  }

  #resize(state: State): Json {
    const size = this.pick([DISK_BYTES, -1, DISK_BYTES + MiB], DISK_BYTES);
    return { [this.chance(8) ? 'device' : 'node-name']: this.#node(state), size };
  }

  #changeBacking(state: State): Command {
    const args = {
      device: this.#node(state),
      'image-node-name': this.#node(state),
      'backing-file': 'a.qcow2',
    };
    return { name: 'change-backing-file', args };
  }

  #bitmap(state: State): Command {
    const verb = this.pick(['add', 'add', 'remove', 'clear', 'disable', 'enable', 'merge'], 'add');
    const node = this.#node(state);
    if (verb === 'merge') {
      const other = { node: this.#node(state), name: 'bits' };
      const bitmaps = this.chance(2) ? [other] : ['bits', other];
      return { name: 'block-dirty-bitmap-merge', args: { node, target: 'bits', bitmaps } };
    }
    const args = { node, name: this.chance(10) ? 'none' : 'bits' };
    return { name: `block-dirty-bitmap-${verb}`, args };
  }

  #rare(state: State): Command {
    const name = this.#node(state);
    const id = this.pick(JOB_IDS, 'j0');
    const options = { driver: this.pick(['qcow2', 'qcow2', 'raw'], 'raw') };
    const children = this.some(
      { child: this.pick(['file', 'backing', 'none'], ''), node: this.#node(state) },
      2,
    );
    return this.pick<Command>(
      [
        { name: 'x-blockdev-change', args: { parent: name, ...children } },
        {
          name: 'x-blockdev-set-iothread',
          args: { 'node-name': name, iothread: null, ...this.some({ force: true }) },
        },
        { name: 'x-blockdev-amend', args: { 'job-id': id, 'node-name': name, options } },
      ],
      { name: 'query-jobs', args: {} },
    );
  }

  /** Commands and arguments beside those of daily use. */
  #wide(state: State): Command {
    const node = this.#node(state);
    const name = this.pick(['one', 'two', ''], 'one');
    const options = { driver: 'qcow2', 'node-name': node };
    const id = this.pick(['e0', 'e1', 'e2'], 'e0');
    const makers: ReadonlyArray<() => Command> = [
      () => ({ name: 'blockdev-snapshot-internal-sync', args: { device: node, name } }),
      () => ({
        name: 'blockdev-snapshot-delete-internal-sync',
        args: { device: node, ...this.some({ name, id: '1' }, 2) },
      }),
      () => ({ name: 'blockdev-reopen', args: { options: [this.#reopened(options, state)] } }),
      () => ({
        name: 'block-set-write-threshold',
        args: { 'node-name': node, 'write-threshold': this.pick([0, MiB], 0) },
      }),
      () => ({
        name: 'nbd-server-add',
        args: { device: node, name: id, ...this.some({ writable: true }, 2) },
      }),
      () => ({ name: 'nbd-server-remove', args: { name: id, ...this.some({ mode: 'hard' }, 2) } }),
      () => ({ name: 'block-export-add', args: this.#wideExport(id, node) }),
      () => this.#wideJob(state),
      () => ({ name: 'block-dirty-bitmap-add', args: this.#wideBitmap(node) }),
      () => ({ name: 'x-debug-block-dirty-bitmap-sha256', args: { node, name: 'bits' } }),
    ];
    return this.pick(makers, () => ({ name: 'query-jobs', args: {} }))();
  }

  #reopened(options: Json, state: State): Json {
    const backing = this.pick<unknown>([null, this.#node(state), undefined], null);
    return {
      ...options,
      ...(backing !== undefined && { backing }),
      ...this.some({ 'read-only': true, driver: 'raw', 'lazy-refcounts': true }, 6),
    };
  }

  #wideExport(id: string, node: string): Json {
    const bitmaps = this.pick<unknown>([['bits'], [{ node, name: 'bits' }], ['none']], []);
    return {
      ...{ type: 'nbd', id, 'node-name': node },
      ...this.some({ bitmaps, 'allocation-depth': true, writethrough: true, description: 'd', name: 'x' }, 2),
    };
  }

  #wideBitmap(node: string): Json {
    const granularity = this.pick([65536, 512, 1000, 0], 65536);
    return { node, name: 'bits', ...this.some({ granularity, persistent: true, disabled: true }, 2) };
  }

  /** Jobs with arguments that say how, or that are wrong. */
  #wideJob(state: State): Command {
    const device = this.#node(state);
    const job = { device, ...this.#job(state) };
    const target = this.#node(state);
    return this.pick<() => Command>(
      [
        () => ({
          name: 'block-stream',
          args: {
            ...job,
            ...this.some({ 'on-error': 'ignore', 'backing-file': 'a.qcow2', base: 'a.qcow2' }, 2),
          },
        }),
        () => ({
          name: 'block-commit',
          args: {
            ...job,
            ...this.some(
              { 'on-error': 'stop', 'backing-file': 'a.qcow2', base: 'a.qcow2', top: 'b.qcow2' },
              2,
            ),
          },
        }),
        () => ({
          name: 'blockdev-mirror',
          args: {
            ...{ ...job, target, sync: 'full' },
            ...this.some(
              {
                'on-source-error': 'ignore',
                'on-target-error': 'report',
                granularity: 65536,
                'buf-size': -1,
              },
              3,
            ),
          },
        }),
        () => ({
          name: 'blockdev-backup',
          args: {
            ...{ ...job, target, sync: this.#sync(['bitmap', 'full', 'incremental']), bitmap: 'bits' },
            ...this.some({ 'bitmap-mode': this.pick(['never', 'always', 'on-success'], 'never') }, 2),
            ...this.some({ compress: true, 'x-perf': { 'max-workers': this.pick([0, 1], 1) } }, 4),
          },
        }),
      ],
      () => ({ name: 'query-jobs', args: {} }),
    )();
  }

  #transaction(state: State): Json {
    if (!this.chance(4)) return { actions: this.#actions(state) };
    // A job that stays where it is would keep the other one from its end.
    const job = (): Json => {
      const sync = this.#sync(['full', 'top']);
      const data = { device: this.#node(state), target: this.#node(state), ...this.#job(state), sync };
      return { type: 'blockdev-backup', data };
    };
    const actions = this.chance(4) ? [job(), { type: 'abort', data: {} }] : [job(), job()];
    return { actions, properties: { 'completion-mode': 'grouped' } };
  }

  #actions(state: State): Json[] {
    const one = (): Json => {
      const command = this.pick(
        [
          () => ({ name: 'blockdev-snapshot-sync', args: this.#snapshotSync(state) }),
          () => ({ name: 'blockdev-snapshot', args: this.#snapshot(state) }),
          () => this.#backup(state),
          () => this.#bitmap(state),
          () => ({ name: 'abort', args: {} }),
        ],
        () => ({ name: 'abort', args: {} }),
      )();
      return { type: command.name, data: command.args };
    };
    return [one(), one()];
  }
}
