import { checkQcow2 } from '../../src/drivers/qcow2/check/check.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import type { Node } from '../../src/block/node.js';
import type { Fault } from '../../src/host/simulated.js';
import { Filler } from './filler.js';
import { type Allowed, fillSector, GuestDisk, problemOf, SECTOR_BYTES, stampsOf } from './guest-disk.js';
import { judgeBitmaps } from './kept-bitmaps.js';
import { makeImage, Operator, pick } from './operations.js';
import {
  type Engine,
  type Format,
  type Image,
  describe,
  Violation,
  World,
  type WorldOptions,
} from './world.js';
import { Visitors } from './visitors.js';
import { Writers } from './writers.js';

const MAGIC = 'QFI\xfb';

export interface Failure {
  seed: number;
  message: string;
  trace: readonly string[];
}

export interface Outcome {
  /** What was wrong. */
  failure?: Failure;
  /** Requests of guests that were answered. */
  guestRequests: number;
}

/** Runs the scenario of a seed. */
export async function runSeed(seed: number, options: WorldOptions = {}): Promise<Outcome> {
  const world = new World(seed, options);
  const onRejection = (reason: unknown): void => {
    // Nobody is left to hear of what the power interrupts; before that it would end the program.
    if (world.engine) world.fail(`unhandled rejection: ${describe(reason)}`, reason);
  };
  process.on('unhandledRejection', onRejection);
  try {
    await scenario(world);
    return { guestRequests: world.guestRequests };
  } catch (error) {
    const cause = error instanceof Violation && error.cause !== undefined ? error.cause : error;
    const stack = cause instanceof Error ? `\n${cause.stack ?? ''}` : '';
    const failure = { seed, message: describe(error) + stack, trace: world.traced };
    return { failure, guestRequests: world.guestRequests };
  } finally {
    process.off('unhandledRejection', onRejection);
  }
}

async function scenario(world: World): Promise<void> {
  const { random } = world;
  let content = await build(world);
  const boots = 1 + random.below(3);
  for (let boot = 0; boot < boots; boot++) {
    content = await oneBoot(world, content, boot === boots - 1);
  }
}

/** Builds a chain of images, the guest's disk on top. Answers what the guest sees. */
async function build(world: World): Promise<number[]> {
  const { random } = world;
  const engine = world.boot();
  const layers = 1 + random.below(4);
  const most = 200 + random.below(1500);
  let content: number[] = [];
  let below: Image | undefined;
  await world.run(async () => {
    for (let i = 0; i < layers; i++) {
      const isTop = i === layers - 1;
      const format: Format = i === 0 && random.chance(0.4) ? 'raw' : 'qcow2';
      const sectors = isTop || random.chance(0.6) ? most : 1 + random.below(most + 200);
      const image = world.newImage(format, `layer${i}`);
      world.trace(`layer ${image.path}, ${sectors} sectors`);
      await makeImage(engine, image, sectors * SECTOR_BYTES, random, below);
      content = Array.from({ length: sectors }, (_, sector) => content[sector] ?? 0);
      await fill(engine, image, content);
      below = image;
    }
  });
  world.activePath = below?.path;
  world.engine = undefined;
  return content;
}

/** Writes some of a new layer's sectors. */
async function fill(engine: Engine, image: Image, content: number[]): Promise<void> {
  const { world } = engine;
  const { random } = world;
  const node = await engine.opener.openImage(image.path, image.format, { readOnly: false, discard: 'unmap' });
  const guest = await engine.attachGuest(node);
  for (let i = random.below(12); i > 0; i--) {
    const first = random.below(content.length);
    const count = Math.min(1 + random.below(150), content.length - first);
    world.trace(`${image.path} holds ${first}+${count}`);
    const bytes = Buffer.alloc(count * SECTOR_BYTES);
    for (let sector = 0; sector < count; sector++) {
      const stamp = world.stamps.next();
      fillSector(bytes, sector, stamp);
      content[first + sector] = stamp;
    }
    await guest.write(first * SECTOR_BYTES, bytes);
  }
  await guest.flush();
  await detach(engine, node);
}

async function detach(engine: Engine, node: Node): Promise<void> {
  for (const edge of node.parents) await engine.graph.transaction((transaction) => transaction.detach(edge));
  await engine.graph.collect([node]);
}

/** The guest runs until the power goes or the machine is shut down; then all images are judged. */
async function oneBoot(world: World, content: readonly number[], isLast: boolean): Promise<number[]> {
  const { random } = world;
  const engine = world.boot();
  const disk = new GuestDisk(world.stamps, content);
  const isCut = random.chance(0.8);
  const heal = random.chance(0.25) ? injectFaults(world) : undefined;
  const longest = pick(random, [60, 300, 1200, 4000]);
  world.power = { cutAt: isCut ? world.simulation.operationCount + 10 + random.below(longest) : undefined };
  const end = await world.run(() => work(engine, disk));
  heal?.();
  world.faulty = false;
  world.tight = undefined;
  world.simulation.limitSpace(undefined);
  if (end === 'done') world.cutPower();
  world.simulation.reboot();
  return judge(world, end === 'done' && !heal ? disk.allowedNow() : disk.allowedAfterPowerLoss(), isLast);
}

/** Errors that begin at a random moment, on some operation of some image. */
function injectFaults(world: World): () => void {
  const { random } = world;
  world.faulty = true;
  const heals: Array<() => void> = [];
  for (let i = 1 + random.below(3); i > 0; i--) {
    const fault: Fault = {
      op: pick(random, [
        'read',
        'write',
        'write',
        'flush',
        'punchHole',
        'zeroRange',
        'truncate',
        'copyFrom',
        'create',
      ]),
      errno: random.chance(0.5) ? 'EIO' : 'ENOSPC',
      once: random.chance(0.7),
      afterCount: random.below(200),
      ...(random.chance(0.3) && { path: pick(random, [...world.images.keys()]) }),
    };
    world.trace(`fault ${JSON.stringify(fault)}`);
    heals.push(world.simulation.injectFault(fault));
  }
  return () => heals.forEach((heal) => heal());
}

async function work(engine: Engine, disk: GuestDisk): Promise<void> {
  const { world } = engine;
  const { random } = world;
  const node = await openActive(engine, false);
  if (!node) return;
  engine.guest = await engine.attachGuest(node, random.chance(0.7));
  const visitors = new Visitors(engine, random.fork());
  const writers = new Writers(engine, disk, random.fork(), visitors);
  const operator = new Operator(engine, disk, random.fork());
  const filler = random.chance(0.3) ? new Filler(engine, random.fork()) : undefined;
  filler?.start();
  writers.start(1 + random.below(4));
  if (random.chance(0.6)) visitors.start();
  await operator.work(3 + random.below(30));
  await operator.finish();
  await writers.stop();
  await visitors.stop();
  await filler?.stop();
  // With space again nothing fails, and nothing that was answered is missing.
  if (engine.isAlive) world.tight = undefined;
  await shutDown(engine, disk);
  await operator.closePeers();
}

/** Compares the whole disk, then closes it. */
async function shutDown(engine: Engine, disk: GuestDisk): Promise<void> {
  const { guest, world } = engine;
  if (!guest || !engine.isAlive) return;
  await engine.attempt('shut down', async () => {
    const bytes = Buffer.alloc(disk.lengthBytes);
    await guest.read(0, bytes);
    const problem = problemOf(bytes, disk.allowedNow());
    if (problem !== undefined) world.fail(`at the end: ${problem}`);
    const { node } = guest;
    world.activePath = world.imageOf(node).path;
    await detach(engine, node);
    if (engine.graph.nodes.size > 0 && !world.faulty)
      world.fail(
        `nodes are left: ${[...engine.graph.nodes.values()].map((left) => left.filename).join(' ')}`,
      );
  });
}

/** The disk that the guest was on, as a user who knows its name opens it. */
async function openActive(engine: Engine, readOnly: boolean): Promise<Node | undefined> {
  const { world } = engine;
  const image = world.images.get(world.activePath ?? '');
  if (!image) throw new Error('no active image');
  try {
    return await engine.opener.openImage(image.path, image.format, { readOnly, discard: 'unmap' });
  } catch (error) {
    if (!engine.isAlive) return undefined;
    if (world.faulty) return undefined;
    throw new Violation(`the active image ${image.path} does not open: ${describe(error)}`, { cause: error });
  }
}

// ---- after the power loss

async function judge(world: World, allowed: Allowed, isLast: boolean): Promise<number[]> {
  const engine = world.boot();
  let content: number[] = [];
  await world.run(async () => {
    for (const image of [...world.images.values()]) await judgeImage(engine, image);
    const node = await openActive(engine, true);
    if (!node) throw new Error('the active image did not open');
    content = await judgeContent(engine, node, allowed, `the guest's disk ${node.filename}`);
    await detachAll(engine, node);
  });
  world.engine = undefined;
  if (isLast) return content;
  // What a crash has left half-made is of no more use.
  for (const [path, image] of world.images) if (!image.isMade) world.images.delete(path);
  return content;
}

async function detachAll(engine: Engine, node: Node): Promise<void> {
  await detach(engine, node);
}

/** Any image is sound; one that a job has finished holds what the job promised. */
async function judgeImage(engine: Engine, image: Image): Promise<void> {
  const { world } = engine;
  const bytes = world.simulation.contentOf(image.path);
  if (!bytes) {
    if (image.isMade) throw new Violation(`${image.path} is gone`);
    return;
  }
  const isQcow2 = bytes.toString('latin1', 0, 4) === MAGIC;
  if (image.format === 'qcow2') {
    if (isQcow2 && isDirty(bytes)) await repair(engine, image);
    if (isQcow2) {
      await judgeMetadata(engine, image);
      await judgeBitmaps(engine, image);
    } else if (image.isMade) throw new Violation(`${image.path} is no qcow2 image any more`);
  }
  if (isQcow2) await world.snapshots.judge(image.path);
  if (!image.allowed) return;
  const node = await openImage(engine, image);
  await judgeContent(engine, node, image.allowed, image.path);
  await detach(engine, node);
}

/** Many refcounts were about to change: whoever opens the image for writing repairs it first. */
function isDirty(bytes: Buffer): boolean {
  return bytes.readUInt32BE(4) >= 3 && bytes.readUInt32BE(76) % 2 === 1;
}

async function repair(engine: Engine, image: Image): Promise<void> {
  const mode = { readOnly: false, discard: 'unmap' } as const;
  try {
    await detach(engine, await engine.opener.openImage(image.path, image.format, mode, { backing: null }));
  } catch (error) {
    throw new Violation(`${image.path} cannot be repaired: ${describe(error)}`, { cause: error });
  }
}

async function openImage(engine: Engine, image: Image): Promise<Node> {
  try {
    return await engine.opener.openImage(image.path, image.format, { readOnly: true });
  } catch (error) {
    throw new Violation(`${image.path} does not open: ${describe(error)}`, { cause: error });
  }
}

async function judgeMetadata(engine: Engine, image: Image): Promise<void> {
  const file = await engine.opener.open({ driver: 'file', filename: image.path }, { readOnly: true });
  const backend = await reader(engine, file);
  try {
    const root = backend.root;
    if (!root) throw new Error('no root');
    const found = await checkQcow2(root);
    if (found.corruptions + found.checkErrors > 0)
      throw new Violation(`${image.path} is corrupt: ${found.messages.slice(0, 5).join('; ')}`);
  } catch (error) {
    if (error instanceof Violation) throw error;
    throw new Violation(`${image.path} cannot be checked: ${describe(error)}`, { cause: error });
  }
  await detach(engine, file);
}

async function reader(engine: Engine, node: Node): Promise<NonNullable<Engine['guest']>> {
  const backend = engine.graph.createBackend({
    description: 'a reader',
    perm: Permission.consistentRead,
    shared: ALL_PERMISSIONS,
  });
  await engine.graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
  return backend;
}

/** Answers the stamps that are there. */
async function judgeContent(engine: Engine, node: Node, allowed: Allowed, what: string): Promise<number[]> {
  const backend = await reader(engine, node);
  const bytes = Buffer.alloc(node.lengthBytes);
  await backend.read(0, bytes);
  if (bytes.length < allowed.sectorCount * SECTOR_BYTES) throw new Violation(`${what} is too short`);
  const problem = problemOf(bytes, allowed);
  if (problem !== undefined) throw new Violation(`${what}: ${problem}`);
  return stampsOf(bytes).map((stamp) => stamp ?? 0);
}
