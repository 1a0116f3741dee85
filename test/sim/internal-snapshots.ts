import { assert } from '../../src/base/assert.js';
import {
  findByName,
  goToSnapshot,
  showSnapshot,
  snapshotNow,
  snapshotsOf,
} from '../../src/block/internal-snapshots.js';
import type { Node } from '../../src/block/node.js';
import { qcow2Driver } from '../../src/drivers/qcow2/driver.js';
import type { SeededRandom } from '../../src/host/simulated.js';
import { DiskShelf } from '../kit/recorded-disk.js';
import { type Engine, Violation, type World } from './world.js';

/** A snapshot inside an image, by what the image itself holds of it: what is below may change. */
interface Kept {
  content: Buffer;
  /** It may be there or not: its making or its end was interrupted, or failed. */
  isUncertain: boolean;
}

/** What an image holds without its backing file, now or at a snapshot; read from its bytes, apart from the engine. */
async function layerContent(bytes: Buffer, name?: string): Promise<Buffer> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', bytes);
  const disk = await shelf.open('image', { readOnly: true, backing: null });
  if (name !== undefined) await showSnapshot(disk.node, { name });
  const content = await disk.read(0, disk.node.lengthBytes);
  await disk.close();
  return content;
}

async function namesIn(bytes: Buffer): Promise<string[]> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', bytes);
  const disk = await shelf.open('image', { readOnly: true, backing: null });
  const names = (snapshotsOf(disk.node)?.list ?? []).map(({ name }) => name);
  await disk.close();
  return names;
}

/** Takes, goes back to and deletes snapshots inside images, and knows what each has to hold. */
export class SnapshotKeeper {
  readonly #world: World;
  readonly #images = new Map<string, Map<string, Kept>>();
  #taken = 0;

  constructor(world: World) {
    this.#world = world;
  }

  #of(path: string): Map<string, Kept> {
    const known = this.#images.get(path) ?? new Map<string, Kept>();
    this.#images.set(path, known);
    return known;
  }

  /** One step on an image that the guest uses; nobody uses it meanwhile. */
  async step(engine: Engine, node: Node, random: SeededRandom): Promise<void> {
    const { path } = this.#world.imageOf(node);
    const known = [...this.#of(path)].filter(([name]) => findByName(node, name));
    await engine.graph.drained([node], async () => {
      const old = known[random.below(known.length + 1)];
      if (old && random.chance(0.5)) await this.#delete(node, path, old[0]);
      else await this.#take(engine, node, path, random);
    });
  }

  async #take(engine: Engine, node: Node, path: string, random: SeededRandom): Promise<void> {
    const name = `snapshot${this.#taken++}`;
    await node.io.flush();
    const content = await layerContent(this.#bytes(path));
    const kept = { content, isUncertain: true };
    this.#of(path).set(name, kept);
    const vmState = random.chance(0.3) ? { vmState: Buffer.alloc(1 + random.below(20_000), 7) } : {};
    await snapshotsOf(node)?.take({ ...snapshotNow(engine.host.clock, name), ...vmState });
    if (!engine.isAlive) return;
    kept.isUncertain = false;
    await this.#check(path, name, content);
    // The guest is to see no difference: it is the present that it goes back to.
    const id = findByName(node, name)?.id;
    if (id === undefined || random.chance(0.5)) return;
    await goToSnapshot(node, id);
    if (engine.isAlive) assert(content.equals(await layerContent(this.#bytes(path))), `${path} went back`);
  }

  async #delete(node: Node, path: string, name: string): Promise<void> {
    const known = this.#of(path);
    const kept = known.get(name);
    const id = findByName(node, name)?.id;
    if (!kept || id === undefined) return;
    kept.isUncertain = true;
    await snapshotsOf(node)?.delete(id);
    known.delete(name);
  }

  #bytes(path: string): Buffer {
    const bytes = this.#world.simulation.contentOf(path);
    assert(bytes, `${path} is there`);
    return bytes;
  }

  async #check(path: string, name: string, content: Buffer): Promise<void> {
    const found = await layerContent(this.#bytes(path), name);
    if (!found.equals(content)) throw new Violation(`${path}: snapshot ${name} is not what the disk was`);
  }

  /** After a power loss: every snapshot that is to be there is, and is what it was. */
  async judge(path: string): Promise<void> {
    const known = this.#images.get(path);
    if (!known || known.size === 0) return;
    const names = await namesIn(this.#bytes(path));
    for (const [name, { content, isUncertain }] of known) {
      if (names.includes(name)) await this.#check(path, name, content);
      else if (!isUncertain) throw new Violation(`${path}: snapshot ${name} is gone`);
      else known.delete(name);
    }
    for (const name of names) if (!known.has(name)) throw new Violation(`${path}: snapshot ${name} is back`);
  }
}
