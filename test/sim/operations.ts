import { BlockError } from '../../src/base/error.js';
import { createImage } from '../../src/block/create.js';
import type { NodeOptions } from '../../src/block/driver.js';
import type { Node } from '../../src/block/node.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import type { Job } from '../../src/jobs/job.js';
import { allDrivers } from '../../src/drivers/index.js';
import { Engine as Monitor } from '../../src/monitor/engine.js';
import { snapshotSync } from '../../src/monitor/snapshot.js';
import type { SeededRandom } from '../../src/host/simulated.js';
import { type Allowed, type GuestDisk, problemOf } from './guest-disk.js';
import { BitmapUser } from './kept-bitmaps.js';
import type { Engine, Format, Image } from './world.js';
import { startBackup, startCommit, startMirror, startStream } from '../kit/start-job.js';

/** Cluster sizes of the images, in bytes. */
const CLUSTERS = [512, 1024, 4096, 16384, 65536];
/** Fully random speeds would make a scenario last; 0 is no limit. */
const SPEEDS = [0, 0, 0, 4_000_000, 400_000];

interface Running {
  job: Job;
  /** Told of a good end; the image then holds what it answers. */
  image?: Image;
  allowed?: Allowed;
  /** It was told to complete, or to end as it is. */
  isEnding: boolean;
  /** Looks at the target once the job has ended well. */
  verify?: () => Promise<void>;
}

/** Makes an image as `img create` does; what it does not hold is to show what is below it, where it is an overlay. */
export async function makeImage(
  engine: Engine,
  image: Image,
  sizeBytes: number,
  random: SeededRandom,
  backing?: Image,
  isOverlay = backing !== undefined,
): Promise<void> {
  const options = image.format === 'raw' ? {} : qcow2Options(random, isOverlay);
  await createImage(engine.opener, image.path, image.format, {
    sizeBytes,
    options,
    ...(backing && { backingFile: backing.path, backingFormat: backing.format }),
  });
  if (engine.isAlive) image.isMade = true;
}

function qcow2Options(random: SeededRandom, isOverlay: boolean): NodeOptions {
  const clusterBytes = pick(random, CLUSTERS);
  const isExtended = clusterBytes >= 16384 && random.chance(0.5);
  return {
    'cluster-size': clusterBytes,
    'refcount-bits': 16,
    'extended-l2': isExtended,
    preallocation: !isOverlay && random.chance(0.1) ? 'metadata' : 'off',
  };
}

/** The monitor's user: snapshots and jobs, started and steered at random while the guest runs. */
export class Operator {
  readonly #engine: Engine;
  readonly #disk: GuestDisk;
  readonly #random: SeededRandom;
  readonly #running = new Map<string, Running>();
  /** Nodes that the user added, and removes. */
  readonly #added: Node[] = [];
  #jobs = 0;
  #snapshots = 0;
  readonly #peers: Monitor[] = [];
  readonly #verifying = new Set<Promise<unknown>>();

  constructor(engine: Engine, disk: GuestDisk, random: SeededRandom) {
    this.#engine = engine;
    this.#disk = disk;
    this.#random = random;
  }

  async work(steps: number): Promise<void> {
    const { clock } = this.#engine.host;
    for (let i = 0; i < steps && this.#engine.isAlive; i++) {
      await this.#step();
      if (!this.#engine.isAlive) return;
      await clock.sleep(this.#random.below(this.#random.chance(0.2) ? 300 : 30));
    }
  }

  /** Lets every job end, one way or the other. */
  async finish(): Promise<void> {
    const { clock } = this.#engine.host;
    while (this.#running.size > 0 && this.#engine.isAlive) {
      for (const running of [...this.#running.values()]) await this.#bringToEnd(running);
      await clock.sleep(10);
    }
    await Promise.all(this.#verifying);
    for (const node of this.#added.splice(0)) await this.#remove(node);
  }

  async #bringToEnd({ job }: Running): Promise<void> {
    const engine = this.#engine;
    await engine.attempt(`end ${job.id} (${job.status})`, async () => {
      if (job.status === 'paused' || job.status === 'standby') await tolerate(() => job.resume());
      else if (job.status === 'pending') job.finalize();
      else if (job.status === 'concluded') job.dismiss();
      else if (job.isReady && job.limit.isLimited) job.setSpeed(0);
      else if (job.isReady) await this.#end(job);
      else if (job.status === 'running') job.setSpeed(0);
    });
  }

  async #step(): Promise<void> {
    const random = this.#random;
    if (this.#running.size > 0 && random.chance(0.7)) {
      await this.#steer(pick(random, [...this.#running.values()]));
      return;
    }
    // Of a disk on another engine no layer could be opened after a power loss.
    const isRemote = this.#top().driver.name === 'nbd';
    if (!isRemote && random.chance(0.15)) return new BitmapUser(this.#engine, random).step(this.#top());
    switch (isRemote ? 5 + random.below(4) : random.below(10)) {
      case 0:
      case 1:
        return this.#snapshot();
      case 2:
        return this.#stream();
      case 3:
        return this.#commit();
      case 4:
        return this.#activeCommit();
      case 5:
        return this.#mirror();
      case 6:
        return this.#mirrorToPeer();
      case 7:
        return this.#lookBack();
      case 9:
        return this.#snapshotInside();
      default:
        return this.#backup();
    }
  }

  // ---- the chain

  /** The guest's node, filters of jobs skipped. */
  #top(): Node {
    const { guest } = this.#engine;
    if (!guest) throw new Error('no guest');
    return guest.node.skipFilters();
  }

  #chain(): Node[] {
    return [...this.#top().chain()].filter((node) => !node.isFilter);
  }

  async #snapshot(): Promise<void> {
    const random = this.#random;
    const engine = this.#engine;
    const old = this.#top();
    const image = engine.world.newImage('qcow2', 'overlay');
    await engine.attempt(`snapshot ${old.filename} <- ${image.path}`, async () => {
      const isExisting = random.chance(0.5);
      if (isExisting) await makeImage(engine, image, old.lengthBytes, random, engine.world.imageOf(old));
      const done = await snapshotSync(engine.monitor, {
        'node-name': old.name,
        'snapshot-node-name': `snapshot${this.#snapshots++}`,
        'snapshot-file': image.path,
        format: 'qcow2',
        mode: isExisting ? 'existing' : 'absolute-paths',
      });
      if (engine.isAlive) image.isMade = true;
      await done.settle?.();
    });
  }

  /** A snapshot inside the guest's image: taken, gone back to at once, or deleted. */
  async #snapshotInside(): Promise<void> {
    const engine = this.#engine;
    const node = this.#top();
    if (node.driver.name !== 'qcow2') return;
    await engine.attempt(`snapshot inside ${node.filename}`, async () => {
      node.assertNotBlocked();
      await engine.world.snapshots.step(engine, node, this.#random);
    });
  }

  // ---- jobs

  #newJob(): { jobId: string; speed: number; autoFinalize: boolean } {
    const random = this.#random;
    return {
      jobId: `job${this.#jobs++}`,
      speed: pick(random, SPEEDS),
      autoFinalize: random.chance(0.7),
    };
  }

  #follow(running: Running): void {
    const { job } = running;
    const engine = this.#engine;
    this.#running.set(job.id, running);
    void job.concluded.then(() => {
      this.#running.delete(job.id);
      if (!engine.isAlive) return;
      const end = engine.ends.get(job.id) ?? 'no event';
      const { image, allowed } = running;
      if (end === 'ok' && image && allowed) image.allowed = allowed;
      if (end === 'ok' && running.verify) this.#verify(running.verify());
      const { faulty, tight } = engine.world;
      // Of 512 bytes, what an image says of its bitmaps and a long name of its backing file may be too much.
      const isFull = /No room in the qcow2 header/.test(end);
      const isAllowed = faulty || isFull || (tight && /No space left on device/.test(end));
      if (end !== 'ok' && end !== 'cancelled' && !isAllowed) engine.world.fail(`${job.id} failed: ${end}`);
    });
  }

  async #stream(): Promise<void> {
    const random = this.#random;
    const chain = this.#chain();
    const at = random.chance(0.6) ? 0 : random.below(chain.length);
    const node = chain[at];
    const below = chain.slice(at + 2);
    if (!node) return;
    const base = below.length > 0 && random.chance(0.6) ? pick(random, below) : undefined;
    const { engine, args } = { engine: this.#engine, args: this.#newJob() };
    await engine.attempt(`${args.jobId} stream ${node.filename} base ${base?.filename}`, async () => {
      const job = await startStream(engine, { ...args, node, ...(base && { base }) });
      this.#follow({ job, isEnding: false });
    });
  }

  async #commit(): Promise<void> {
    const random = this.#random;
    const chain = this.#chain();
    if (chain.length < 3) return;
    const at = 1 + random.below(chain.length - 2);
    const top = chain[at];
    const base = pick(random, chain.slice(at + 1));
    const device = this.#top();
    if (!top) return;
    const { engine, args } = { engine: this.#engine, args: this.#newJob() };
    await engine.attempt(`${args.jobId} commit ${top.filename} into ${base.filename}`, async () => {
      this.#follow({ job: await startCommit(engine, { ...args, device, top, base }), isEnding: false });
    });
  }

  async #activeCommit(): Promise<void> {
    const chain = this.#chain();
    const top = this.#top();
    if (chain.length < 2) return;
    const base = pick(this.#random, chain.slice(1));
    const { engine, args } = { engine: this.#engine, args: this.#newJob() };
    await engine.attempt(`${args.jobId} active commit into ${base.filename}`, async () => {
      const job = await startCommit(engine, { ...args, device: top, top, base });
      this.#follow({ job, isEnding: false });
    });
  }

  async #mirror(): Promise<void> {
    const random = this.#random;
    const engine = this.#engine;
    const device = this.#top();
    const hasBacking = device.backingNode() !== undefined;
    const isTop = hasBacking && random.chance(0.4);
    const format: Format = !isTop && random.chance(0.3) ? 'raw' : 'qcow2';
    const image = engine.world.newImage(format, 'mirror');
    const args = this.#newJob();
    const copyMode = random.chance(0.3) ? ('write-blocking' as const) : ('background' as const);
    await engine.attempt(
      `${args.jobId} mirror ${isTop ? 'top' : 'full'} ${copyMode} to ${image.path}`,
      async () => {
        const below = isTop ? device.backingNode() : undefined;
        const backing = below && engine.world.imageOf(below);
        await makeImage(engine, image, device.lengthBytes, random, backing);
        const target = await this.#openTarget(image, isTop);
        // A target with a backing file is judged only as a part of the guest's chain.
        await this.#startOn(device, target, isTop ? undefined : image, () =>
          startMirror(engine, {
            ...args,
            device,
            target,
            sync: isTop ? 'top' : 'full',
            targetIsNew: true,
            copyMode,
            ...(isTop && { targetBacking: 'source-chain' as const }),
          }),
        );
      },
    );
  }

  /** Live storage migration: into an image that another engine exports over the network. */
  async #mirrorToPeer(): Promise<void> {
    const random = this.#random;
    const engine = this.#engine;
    const device = this.#top();
    const image = engine.world.newImage(random.chance(0.3) ? 'raw' : 'qcow2', 'remote');
    const args = this.#newJob();
    const copyMode = random.chance(0.3) ? ('write-blocking' as const) : ('background' as const);
    await engine.attempt(`${args.jobId} mirror ${copyMode} over NBD to ${image.path}`, async () => {
      await makeImage(engine, image, device.lengthBytes, random);
      const path = `/tmp/nbd${this.#peers.length}`;
      await this.#export(image, path);
      const server = { type: 'unix', path };
      const reconnects = random.chance(0.5);
      const target = await engine.opener.open(
        { driver: 'nbd', server, export: 'disk', ...(reconnects && { 'reconnect-delay': 60 }) },
        { readOnly: false, discard: 'unmap' },
      );
      engine.world.exported.set(target.filename, image);
      const { world } = engine;
      // Where it connects again, nothing of it is seen.
      const cut = (): void => world.simulation.cutConnections({ type: 'unix', path });
      if (random.chance(0.3) && (world.faulty || reconnects))
        for (let i = random.below(3); i >= 0; i--) engine.host.clock.setTimer(random.below(400), cut);
      await this.#startOn(device, target, image, () =>
        startMirror(engine, { ...args, device, target, sync: 'full', targetIsNew: true, copyMode }),
      );
    });
  }

  /** Another engine of the same machine opens an image and serves it. */
  async #export(image: Image, path: string): Promise<void> {
    const { host } = this.#engine;
    const peer = new Monitor({ host, drivers: allDrivers, kind: 'storage-daemon' });
    this.#peers.push(peer);
    const node = await peer.opener.openImage(image.path, image.format, { readOnly: false, discard: 'unmap' });
    await peer.exports.startServer({ type: 'unix', path });
    await peer.exports.add({ id: 'export', node, name: 'disk', writable: true });
  }

  /** After the guest has let go of its disk. */
  async closePeers(): Promise<void> {
    const engine = this.#engine;
    if (!engine.isAlive) return;
    for (const peer of this.#peers) await engine.attempt('close a peer', () => peer.close());
  }

  #verify(verification: Promise<unknown>): void {
    this.#verifying.add(verification);
    void verification.finally(() => this.#verifying.delete(verification));
  }

  async #backup(): Promise<void> {
    const random = this.#random;
    const engine = this.#engine;
    const device = this.#top();
    if (device.backingNode() && random.chance(0.3)) return this.#backupTop(device);
    const image = engine.world.newImage(random.chance(0.3) ? 'raw' : 'qcow2', 'backup');
    const args = this.#newJob();
    await engine.attempt(`${args.jobId} backup to ${image.path}`, async () => {
      await makeImage(engine, image, device.lengthBytes, random);
      const target = await this.#openTarget(image, false);
      const low = this.#disk.position();
      const running = await this.#startOn(device, target, image, () =>
        startBackup(engine, { ...args, device, target, sync: 'full' }),
      );
      running.allowed = this.#disk.allowedBetween(low, this.#disk.newest());
    });
  }

  /** sync=top into an image over the same backing file: through that it shows the whole moment of the start. */
  async #backupTop(device: Node): Promise<void> {
    const engine = this.#engine;
    const image = engine.world.newImage('qcow2', 'top-backup');
    const args = this.#newJob();
    await engine.attempt(`${args.jobId} backup of the top to ${image.path}`, async () => {
      const target = await this.#openAbove(image, device, device.backingNode());
      const low = this.#disk.position();
      const running = await this.#startOn(device, target, undefined, () =>
        startBackup(engine, { ...args, device, target, sync: 'top' }),
      );
      const allowed = this.#disk.allowedBetween(low, this.#disk.newest());
      running.verify = async () => {
        await this.#compare(target, allowed);
        await this.#drop(target);
      };
    });
  }

  /** sync=none into an image over the disk itself: that shows the moment of the start while the guest writes on. */
  async #lookBack(): Promise<void> {
    const random = this.#random;
    const engine = this.#engine;
    const device = this.#top();
    const image = engine.world.newImage('qcow2', 'moment');
    const args = this.#newJob();
    await engine.attempt(`${args.jobId} look back through ${image.path}`, async () => {
      const target = await this.#openAbove(image, device, device);
      const low = this.#disk.position();
      const { job } = await this.#startOn(device, target, undefined, () =>
        startBackup(engine, { ...args, device, target, sync: 'none' }),
      );
      const allowed = this.#disk.allowedBetween(low, this.#disk.newest());
      for (let i = 1 + random.below(3); i > 0 && engine.isAlive; i--) {
        await engine.host.clock.sleep(random.below(200));
        if (job.status === 'running') await this.#compare(target, allowed, () => job.status === 'running');
      }
      if (job.status === 'running') await job.cancel({ force: true, softOnReady: false });
      await job.concluded;
      await this.#drop(target);
    });
  }

  /** A new qcow2 image, the user's, over a node that is open already. */
  async #openAbove(image: Image, device: Node, backing: Node | undefined): Promise<Node> {
    const engine = this.#engine;
    await makeImage(engine, image, device.lengthBytes, this.#random, undefined, true);
    const options = { backing: backing?.name ?? null };
    const target = await engine.opener.openImage(
      image.path,
      'qcow2',
      { readOnly: false, discard: 'unmap' },
      options,
    );
    target.monitorOwned = true;
    this.#added.push(target);
    return target;
  }

  /** Reads a node that is to show a moment of the disk; it counts if `holds` says afterwards that it still does. */
  async #compare(node: Node, allowed: Allowed, holds: () => boolean = () => true): Promise<void> {
    const engine = this.#engine;
    await engine.attempt(`compare ${node.filename}`, async () => {
      const reader = engine.graph.createBackend({
        description: 'a reader',
        perm: Permission.consistentRead,
        shared: ALL_PERMISSIONS,
      });
      await engine.graph.transaction((change) => void change.attach(reader, 'root', node));
      const bytes = Buffer.alloc(this.#disk.lengthBytes);
      await reader.read(0, bytes);
      const problem = engine.isAlive && holds() ? problemOf(bytes, allowed) : undefined;
      if (problem !== undefined) engine.world.fail(`${node.filename}: ${problem}`);
      const { root } = reader;
      if (root) await engine.graph.transaction((change) => change.detach(root));
    });
  }

  /** Opened for the job, which closes it, or added by the user, who removes it. */
  async #openTarget(image: Image, withoutBacking: boolean): Promise<Node> {
    const options = withoutBacking ? { backing: null } : {};
    const { opener } = this.#engine;
    const node = await opener.openImage(
      image.path,
      image.format,
      { readOnly: false, discard: 'unmap' },
      options,
    );
    if (this.#random.chance(0.4)) {
      node.monitorOwned = true;
      this.#added.push(node);
    }
    return node;
  }

  /** On a target that was opened for it; refused when the guest has moved to another disk meanwhile. */
  async #startOn(
    device: Node,
    target: Node,
    image: Image | undefined,
    start: () => Promise<Job>,
  ): Promise<Running> {
    try {
      if (this.#top() !== device) throw new BlockError('busy', 'the guest is on another disk by now');
      const running: Running = { job: await start(), isEnding: false, ...(image && { image }) };
      this.#follow(running);
      return running;
    } catch (error) {
      if (!this.#engine.isAlive) throw error;
      await this.#drop(target);
      await this.#engine.graph.collect([target]);
      throw error;
    }
  }

  /** The same, long before the end. */
  async #drop(node: Node): Promise<void> {
    const index = this.#added.indexOf(node);
    if (index < 0 || !this.#engine.isAlive) return;
    this.#added.splice(index, 1);
    await this.#remove(node);
  }

  /** blockdev-del, unless the node is in use. */
  async #remove(node: Node): Promise<void> {
    const engine = this.#engine;
    node.monitorOwned = false;
    await engine.attempt(`remove ${node.filename}`, () => engine.graph.collect([node]));
  }

  // ---- verbs

  async #steer(running: Running): Promise<void> {
    const random = this.#random;
    const { job } = running;
    const engine = this.#engine;
    if (job.isReady && random.chance(0.5)) {
      await engine.attempt(`end ${job.id}`, () => this.#end(job));
      return;
    }
    const verb = random.below(10);
    await engine.attempt(`steer ${job.id} (${job.status}) ${verb}`, async () => {
      if (verb < 2) job.pause();
      else if (verb < 6) job.resume();
      else if (verb < 8) job.setSpeed(pick(random, SPEEDS));
      else if (job.status === 'pending') job.finalize();
      else if (random.chance(0.3)) await job.cancel({ force: true, softOnReady: false });
    });
  }

  /** A READY job takes over, or ends where it is. */
  async #end(job: Job): Promise<void> {
    const running = this.#running.get(job.id);
    if (!running || running.isEnding) return;
    if (this.#random.chance(0.6)) {
      job.complete();
      running.isEnding = true;
      return;
    }
    running.isEnding = true;
    const low = this.#disk.position();
    try {
      await job.cancel({ force: false, softOnReady: true });
    } catch (error) {
      running.isEnding = false;
      throw error;
    }
    if (running.image) running.allowed = this.#disk.allowedBetween(low, this.#disk.newest());
  }
}

export function pick<T>(random: SeededRandom, list: readonly T[]): T {
  const found = list[random.below(list.length)];
  if (found === undefined) throw new Error('nothing to choose from');
  return found;
}

/** A verb that no longer fits, since the job went on meanwhile. */
async function tolerate(verb: () => void): Promise<void> {
  try {
    verb();
  } catch {
    // The next round sees what it does now.
  }
}
