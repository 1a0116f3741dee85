import type { DirtyBitmap } from '../../src/block/dirty-bitmap.js';
import type { Node } from '../../src/block/node.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { addOne, BITMAP_ACTIONS } from '../../src/monitor/bitmaps.js';
import type { SeededRandom } from '../../src/host/simulated.js';
import { SECTOR_BYTES, stampsOf } from './guest-disk.js';
import { describe, type Engine, type Image, Violation } from './world.js';

const NAMES = ['a', 'b', 'c'];

/** Makes, clears and removes bitmaps that images keep, and writes down since when each records. */
export class BitmapUser {
  readonly #engine: Engine;
  readonly #random: SeededRandom;

  constructor(engine: Engine, random: SeededRandom) {
    this.#engine = engine;
    this.#random = random;
  }

  async step(node: Node): Promise<void> {
    const { world, monitor } = this.#engine;
    if (!node.instance.bitmaps) return;
    const image = world.imageOf(node);
    const name = NAMES[this.#random.below(NAMES.length)] ?? '';
    const bitmap = node.findBitmap(name);
    const args = { node: node.name, name };
    if (this.#random.chance(0.5)) {
      // Else the run would end before its timer does it.
      await this.#attempt('retire', args, async () => node.instance.changeLog?.retire());
      return;
    }
    // Without a wait between the stamp and the command: what is written later is recorded.
    if (!bitmap && this.#random.chance(0.6)) await this.#addDurable(image, args);
    else if (!bitmap) {
      const granularity = SECTOR_BYTES * 2 ** this.#random.below(8);
      await this.#attempt('add', args, () => {
        BITMAP_ACTIONS['block-dirty-bitmap-add'](monitor, { ...args, granularity, persistent: true });
        image.bitmaps.set(name, world.stamps.newest);
      });
    } else if (bitmap.inconsistent || this.#random.chance(0.3)) {
      await this.#attempt('remove', args, async () => {
        image.durable.delete(name);
        await (await BITMAP_ACTIONS['block-dirty-bitmap-remove'](monitor, args)).settle();
        if (this.#engine.isAlive) image.bitmaps.delete(name);
      });
    } else {
      await this.#attempt('clear', args, () => {
        BITMAP_ACTIONS['block-dirty-bitmap-clear'](monitor, args);
        image.bitmaps.set(name, world.stamps.newest);
      });
    }
  }

  /** Nothing is known of it before that is answered; then all that is written later is recorded, whatever happens. */
  async #addDurable(image: Image, args: { node: string; name: string }): Promise<void> {
    const { world, monitor } = this.#engine;
    const granularity = SECTOR_BYTES * 2 ** this.#random.below(8);
    await this.#attempt('add, durable', args, async () => {
      image.bitmaps.set(args.name, Infinity);
      await addOne(monitor, { ...args, granularity, persistent: true, 'x-durable': true });
      if (!this.#engine.isAlive) return;
      image.bitmaps.set(args.name, world.stamps.newest);
      image.durable.add(args.name);
    });
  }

  async #attempt(
    verb: string,
    { node, name }: { node: string; name: string },
    body: () => unknown,
  ): Promise<void> {
    await this.#engine.attempt(`bitmap ${name} of ${node}: ${verb}`, async () => void (await body()));
  }
}

/** Each bitmap that is said to be consistent knows of all that was written since it records, as far as it is in this layer. */
export async function judgeBitmaps(engine: Engine, image: Image): Promise<void> {
  let node: Node;
  const file = { driver: 'file', filename: image.path };
  try {
    const options = { driver: 'qcow2', file, backing: null };
    node = await engine.opener.open(options, { readOnly: true });
  } catch (error) {
    throw new Violation(`${image.path} does not open: ${describe(error)}`, { cause: error });
  }
  const backend = engine.graph.createBackend({
    description: 'a reader',
    perm: Permission.consistentRead,
    shared: ALL_PERMISSIONS,
  });
  await engine.graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
  const bytes = Buffer.alloc(node.lengthBytes);
  await backend.read(0, bytes);
  const stamps = stampsOf(bytes);
  for (const bitmap of node.dirtyBitmaps) judgeBitmap(image, bitmap, stamps);
  for (const name of image.durable)
    if (node.findBitmap(name)?.inconsistent !== false)
      throw new Violation(`${image.path} has lost its durable bitmap ${name}`);
  await engine.graph.transaction((transaction) => {
    if (backend.root) transaction.detach(backend.root);
  });
  await engine.graph.collect([node]);
}

function judgeBitmap(image: Image, bitmap: DirtyBitmap, stamps: ReadonlyArray<number | undefined>): void {
  if (bitmap.inconsistent) return;
  const { name = '' } = bitmap;
  const since = image.bitmaps.get(name);
  if (since === undefined) throw new Violation(`${image.path} keeps a bitmap ${name} that was removed`);
  for (const [sector, stamp = 0] of stamps.entries())
    if (stamp > since && !bitmap.isDirty(sector * SECTOR_BYTES))
      throw new Violation(
        `bitmap ${name} of ${image.path} does not know of sector ${sector}, written after ${since}`,
      );
}
