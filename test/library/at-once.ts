import { createSimulatedHost, SeededRandom, type Simulation } from '../../src/host/simulated.js';
import { type Disk, createEngine, type Engine, type Session } from '../../src/index.js';
import { BlockError } from '../../src/base/error.js';
import { QmpError } from '../../src/wire/qmp/registry.js';
import type { JsonObject } from '../../src/schema/types.js';

export const DISK_BYTES = 1024 * 1024;
const NAMES = ['low', 'mid', 'top', 'a', 'b', 'c'];
const IDS = ['x', 'y'];

/** Calls and commands of one engine, made at once and without a look at what the others do. */
export class AtOnce {
  readonly #random: SeededRandom;
  readonly #simulation: Simulation;
  readonly unexpected: unknown[] = [];
  readonly log: string[] = [];
  engine!: Engine;
  #images = 0;
  readonly #disks: Disk[] = [];
  readonly #sessions: Session[] = [];

  constructor(seed: number) {
    this.#random = new SeededRandom(seed);
    this.#simulation = createSimulatedHost({ seed, stuckAfterMs: 3000 });
  }

  run(steps: number): Promise<void> {
    return this.#simulation.run(() => this.#run(steps));
  }

  get simulation(): Simulation {
    return this.#simulation;
  }

  async #run(steps: number): Promise<void> {
    this.engine = await createEngine({
      host: this.#simulation.host,
      kind: this.#random.chance(0.5) ? 'machine' : 'storage-daemon',
      onUnexpectedError: (error) => this.unexpected.push(error),
    });
    await this.#chain();
    for (let i = 0; i < steps; i++) {
      const works = Array.from({ length: 1 + this.#random.below(3) }, () => this.#start());
      if (this.#random.chance(0.6)) await Promise.all(works);
      else await this.#simulation.host.clock.sleep(this.#random.below(20));
      if (this.#random.chance(0.05)) break;
    }
    const closing = this.#random.chance(0.5);
    const last = closing ? [this.#start(), this.#start(), this.#start()] : [];
    if (closing && this.#random.chance(0.5)) await this.#simulation.host.clock.sleep(this.#random.below(10));
    await this.engine.close().catch((error: unknown) => this.#judge('close', error));
    await Promise.all(last);
    const { graph } = this.engine;
    if (graph.nodes.size > 0)
      this.unexpected.push(new Error(`nodes left: ${[...graph.nodes.keys()].join()}`));
    if (graph.backends.size > 0) this.unexpected.push(new Error(`backends left`));
    await this.#reopen();
  }

  /** Nothing of the engine holds an image. */
  async #reopen(): Promise<void> {
    const engine = await createEngine({ host: this.#simulation.host });
    for (const filename of this.#simulation.paths()) {
      const driver = filename.endsWith('raw') ? 'raw' : 'qcow2';
      const backing = driver === 'qcow2' ? { backing: null } : {};
      await engine
        .addNode({ driver, 'node-name': 'n', file: { driver: 'file', filename }, ...backing })
        .then(() => engine.execute('blockdev-del', { 'node-name': 'n' }))
        .catch((error: unknown) => {
          if (/" lock|internal/.test(String(error))) this.unexpected.push(error);
        });
    }
    await engine.close();
  }

  async #chain(): Promise<void> {
    const { engine } = this;
    let backing: { filename: string; format: string } | undefined;
    for (const name of ['low', 'mid', 'top']) {
      const filename = `/tmp/${name}.qcow2`;
      await engine.createImage({
        filename,
        format: 'qcow2',
        sizeBytes: DISK_BYTES,
        ...(backing && { backing }),
      });
      backing = { filename, format: 'qcow2' };
      await engine.addNode({
        ...{
          driver: 'qcow2',
          'node-name': name,
          file: { driver: 'file', filename, 'node-name': `${name}-file` },
        },
        ...(name === 'low' ? {} : { backing: name === 'mid' ? 'low' : 'mid' }),
      });
    }
    const disk = await engine.openDisk('low', { writable: true });
    await disk.write(0, Buffer.alloc(DISK_BYTES / 2, 5));
    await disk.close();
  }

  #pick<T>(of: readonly T[]): T {
    return of[this.#random.below(of.length)] as T;
  }

  #name(): string {
    return this.#random.chance(0.6)
      ? this.#pick([...[...this.engine.graph.nodes.keys()].slice(-12), 'a'])
      : this.#pick(NAMES);
  }

  #judge(what: string, error: unknown): void {
    this.log.push(`  ${what}: ${String(error)}`);
    const isTold = error instanceof BlockError || error instanceof QmpError;
    const text = String(error);
    if (isTold && !/internal|assert/i.test(text)) return;
    this.unexpected.push(new Error(`${what}: ${text}`, { cause: error }));
  }

  #start(): Promise<void> {
    const [what, work] = this.#choose();
    this.log.push(what);
    return work()
      .then(() => void this.log.push(`  done ${what}`))
      .catch((error: unknown) => this.#judge(what, error));
  }

  #command(name: string, args: JsonObject = {}): [string, () => Promise<unknown>] {
    const session =
      this.#sessions.length > 0 && this.#random.chance(0.2) ? this.#pick(this.#sessions) : undefined;
    const run = (): Promise<unknown> => (session ?? this.engine).execute(name as 'query-block', args);
    return [`${session ? `${session.id}: ` : ''}${name} ${JSON.stringify(args)}`, run];
  }

  #newFile(format = 'qcow2'): string {
    return `/tmp/i${this.#images++}.${format}`;
  }

  #file(): JsonObject {
    const filename = this.#pick(this.#simulation.paths());
    const named = this.#random.chance(0.3) ? { 'node-name': `${this.#name()}-f` } : {};
    const file = { driver: 'file', filename };
    if (this.#random.chance(0.3))
      return {
        driver: 'blkdebug',
        image: file,
        ...named,
        'x-delay': [{ iotype: this.#pick(['read', 'write', 'flush']), 'delay-ms': 30 }],
      };
    return { ...file, ...named };
  }

  #node(): JsonObject {
    const name = this.#name();
    const below = this.#random.chance(0.5) ? this.#name() : this.#file();
    switch (this.#random.below(8)) {
      case 0:
        return { driver: 'raw', 'node-name': name, file: below };
      case 1:
        return { driver: 'throttle', 'node-name': name, 'throttle-group': this.#pick(IDS), file: below };
      case 2:
        return { driver: 'copy-on-read', 'node-name': name, file: below };
      case 3:
        return {
          driver: 'blkdebug',
          'node-name': name,
          image: below,
          'x-delay': [{ iotype: 'write', 'delay-ms': 40 }],
        };
      case 4:
        return { driver: 'quorum', 'node-name': name, 'vote-threshold': 1, children: [below, this.#name()] };
      case 5:
        return { driver: 'null-co', 'node-name': name, size: DISK_BYTES };
      case 6:
        return { driver: 'copy-before-write', 'node-name': name, file: this.#name(), target: this.#name() };
      default: {
        const backing = this.#random.chance(0.4)
          ? { backing: this.#random.chance(0.3) ? null : this.#name() }
          : {};
        return {
          driver: 'qcow2',
          'node-name': name,
          file: this.#file(),
          ...backing,
          'read-only': this.#random.chance(0.3),
        };
      }
    }
  }

  #choose(): [string, () => Promise<unknown>] {
    const { engine } = this;
    const random = this.#random;
    const one = this.#name();
    const two = this.#name();
    const id = this.#pick(IDS);
    const common = {
      'job-id': id,
      ...(random.chance(0.3) ? { 'auto-dismiss': false } : {}),
      ...(random.chance(0.2) ? { 'auto-finalize': false } : {}),
      ...(random.chance(0.3) ? { speed: 100_000 } : {}),
    };
    switch (random.below(46)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        const options = this.#node();
        return [`addNode ${JSON.stringify(options)}`, () => engine.addNode(options)];
      }
      case 4:
      case 5:
        return this.#command('blockdev-add', this.#node());
      case 6:
      case 7:
      case 8:
        return this.#command('blockdev-del', { 'node-name': one });
      case 9:
      case 10:
        return [
          `openDisk ${one}`,
          async () =>
            void this.#disks.push(
              await engine.openDisk(one, { writable: random.chance(0.7), shareWrite: random.chance(0.8) }),
            ),
        ];
      case 11:
      case 12:
      case 13:
      case 14:
        return this.#disk();
      case 15: {
        const filename = this.#newFile(this.#pick(['raw', 'qcow2']));
        const format = filename.endsWith('raw') ? 'raw' : 'qcow2';
        return [
          `createImage ${filename}`,
          () => engine.createImage({ filename, format, sizeBytes: DISK_BYTES }),
        ];
      }
      case 16:
        return [`addDevice ${one} ${id}`, () => engine.addDevice(one, { id })];
      case 17:
        return engine.kind === 'machine' ? this.#command('device_del', { id }) : this.#command('query-jobs');
      case 18:
        return [`device close ${id}`, async () => engine.devices.get(id)?.close()];
      case 19:
        return this.#command('blockdev-snapshot-sync', {
          'node-name': one,
          'snapshot-file': this.#newFile(),
          'snapshot-node-name': two,
        });
      case 20:
        return this.#command('blockdev-snapshot', { node: one, overlay: two });
      case 21:
        return this.#command('block-stream', {
          ...common,
          device: one,
          ...(random.chance(0.5) ? { 'base-node': two } : {}),
        });
      case 22:
        return this.#command('block-commit', {
          ...common,
          device: one,
          ...(random.chance(0.5) ? { 'top-node': two } : {}),
        });
      case 23:
      case 24:
        return this.#command('blockdev-mirror', {
          ...common,
          device: one,
          target: two,
          sync: this.#pick(['full', 'top', 'none']),
          'copy-mode': this.#pick(['background', 'write-blocking']),
        });
      case 25:
        return this.#command('blockdev-backup', {
          ...common,
          device: one,
          target: two,
          sync: this.#pick(['full', 'top', 'none']),
        });
      case 26:
        return this.#command('blockdev-create', {
          'job-id': id,
          options: {
            driver: 'qcow2',
            size: DISK_BYTES,
            file: random.chance(0.5) ? one : { ...this.#file(), 'node-name': two },
          },
        });
      case 27:
        return this.#command(this.#pick(['block-job-cancel', 'block-job-complete']), { device: id });
      case 28:
        return this.#command(
          this.#pick([
            'job-cancel',
            'job-dismiss',
            'job-finalize',
            'job-complete',
            'job-pause',
            'job-resume',
          ]),
          { id },
        );
      case 29:
        return this.#command('block-job-cancel', { device: id, force: true });
      case 30:
        return this.#command('block-dirty-bitmap-add', {
          node: one,
          name: id,
          persistent: random.chance(0.6),
        });
      case 31:
        return this.#command(
          this.#pick(['block-dirty-bitmap-remove', 'block-dirty-bitmap-clear', 'block-dirty-bitmap-disable']),
          { node: one, name: id },
        );
      case 32:
        return this.#command('transaction', {
          actions: [
            { type: 'block-dirty-bitmap-add', data: { node: one, name: id } },
            {
              type: 'blockdev-snapshot-sync',
              data: {
                'node-name': two,
                'snapshot-file': this.#newFile(),
                'snapshot-node-name': this.#name(),
              },
            },
          ],
        });
      case 33:
        return this.#command('object-add', {
          'qom-type': 'throttle-group',
          id,
          limits: { 'iops-total': 1000 },
        });
      case 34:
        return this.#command('object-del', { id });
      case 35:
        return random.chance(0.6)
          ? this.#command('nbd-server-start', { addr: { type: 'unix', data: { path: `/tmp/s${id}` } } })
          : this.#command('nbd-server-stop');
      case 36:
        return this.#command('block-export-add', {
          type: 'nbd',
          id,
          'node-name': one,
          writable: random.chance(0.5),
          ...(random.chance(0.3) ? { bitmaps: [id] } : {}),
        });
      case 37:
        return this.#command('block-export-del', { id, mode: this.#pick(['safe', 'hard']) });
      case 38:
        return this.#session(id);
      case 39:
        return this.#command(
          this.#pick([
            'query-block',
            'query-named-block-nodes',
            'query-blockstats',
            'x-debug-query-block-graph',
            'query-jobs',
            'query-block-jobs',
            'query-block-exports',
            'x-point-list',
            'x-session-list',
          ]),
        );
      case 40: {
        const options = this.#node();
        return this.#command('blockdev-reopen', { options: [options] });
      }
      case 41:
        return random.chance(0.5)
          ? this.#command('blockdev-set-active', { 'node-name': one, active: random.chance(0.7) })
          : ([
              `${one} (in)activate`,
              () =>
                random.chance(0.5)
                  ? engine.inactivate(engine.graph.node(one))
                  : engine.activate(engine.graph.node(one)),
            ].map((x) => (typeof x === 'string' ? x : async () => x())) as [string, () => Promise<unknown>]);
      case 42:
        return this.#command('block_resize', { 'node-name': one, size: DISK_BYTES * (1 + random.below(2)) });
      case 43:
        return random.chance(0.5)
          ? this.#command('x-point-create', { name: id, disks: [one] })
          : this.#command('x-point-delete', { name: id });
      case 44:
        return this.#command('x-blockdev-change', {
          parent: one,
          ...(random.chance(0.5) ? { node: two } : { child: 'children.0' }),
        });
      default:
        return this.#command('block-set-write-threshold', { 'node-name': one, 'write-threshold': 1000 });
    }
  }

  #disk(): [string, () => Promise<unknown>] {
    const disk = this.#disks.length > 0 ? this.#pick(this.#disks) : undefined;
    if (!disk) return this.#command('query-jobs');
    const offset = this.#random.below(DISK_BYTES - 70_000);
    switch (this.#random.below(5)) {
      case 0:
        return ['disk write', () => disk.write(offset, Buffer.alloc(70_000, 3))];
      case 1:
        return ['disk read', () => disk.read(offset, Buffer.alloc(70_000))];
      case 2:
        return ['disk flush', () => disk.flush()];
      case 3:
        return [
          'disk extents',
          async () => {
            for await (const _ of disk.extents()) continue;
          },
        ];
      default:
        return ['disk close', () => disk.close()];
    }
  }

  #session(id: string): [string, () => Promise<unknown>] {
    const session = this.#sessions.length > 0 ? this.#pick(this.#sessions) : undefined;
    switch (this.#random.below(3)) {
      case 0:
        return session ? [`close session ${session.id}`, () => session.close()] : this.#command('query-jobs');
      case 1:
        return session ? [`renew session ${session.id}`, () => session.renew()] : this.#command('query-jobs');
      default:
        return [
          `openSession ${id}`,
          async () =>
            void this.#sessions.push(
              await this.engine.openSession(id, this.#random.chance(0.5) ? { lease: 1 } : {}),
            ),
        ];
    }
  }
}
