import assert from 'node:assert/strict';
import { test } from 'node:test';
import { JobBench, seeded } from '../../../test/kit/job-bench.js';
import { type MemoryBehaviour, type MemoryImage, newMemoryImage } from '../../../test/kit/memory-layer.js';
import { KiB, MiB } from '../../base/limits.js';
import { ALL_PERMISSIONS } from '../permissions.js';
import { Flag, IoRequest } from '../request.js';
import { CHECKED } from './layer-maps.js';

const SECTOR = 512;
/** Two pages of 4 KiB granules, and a part of a third. */
const MOST_BYTES = 65 * MiB;
/** Where everything happens: around the borders of pages and the ends of layers. */
const SPOTS = [0, 32 * MiB, 64 * MiB];
const SPOT_BYTES = 96 * KiB;
const NOT_HERE = -1;

/** A layer, and what it is to hold: of each sector a stamp (0 for zeroes), or NOT_HERE. */
interface Modelled {
  image: MemoryImage;
  lengthBytes: number;
  readonly clusterBytes: number;
  readonly sectors: Map<number, number>;
}

class Story {
  readonly bench = new JobBench();
  /** Top first. */
  readonly layers: Modelled[] = [];
  readonly draw: (bound: number) => number;
  #stamp = 0;
  #names = 0;

  constructor(seed: number) {
    this.draw = seeded(seed);
    this.bench.graph.layerMaps.settings = { ...CHECKED, mostPages: 1 + (seed % 3) };
  }

  get top(): Modelled {
    const [top] = this.layers;
    assert.ok(top);
    return top;
  }

  #behaviour(): MemoryBehaviour {
    return {
      isLate: () => this.draw(3) === 0,
      delay: async () => {
        for (let i = this.draw(3); i > 0; i--) await Promise.resolve();
      },
    };
  }

  #lengthBytes(): number {
    const spot = SPOTS[this.draw(SPOTS.length)] ?? 0;
    return this.draw(2) === 0 ? MOST_BYTES : spot + SECTOR * (1 + this.draw(SPOT_BYTES / SECTOR));
  }

  async push(): Promise<void> {
    const clusterBytes = (this.draw(4) === 0 ? 2 : 4 * 2 ** this.draw(3)) * KiB;
    const lengthBytes = this.#lengthBytes();
    const backing = this.layers[0]?.image.node;
    const behaviour = this.#behaviour();
    const options = { lengthBytes, clusterBytes, behaviour, ...(backing && { backing }) };
    const image = await newMemoryImage(this.bench.graph, `layer${this.#names++}`, options);
    this.layers.unshift({ image, lengthBytes, clusterBytes, sectors: new Map() });
    this.#permitAll();
  }

  /** Whoever writes in this test asks nobody. */
  #permitAll(): void {
    for (const { image } of this.layers) image.node.child('file').perm = ALL_PERMISSIONS;
  }

  async remove(index: number): Promise<void> {
    const above = this.layers[index - 1];
    const below = this.layers[index + 1];
    assert.ok(above);
    await this.bench.graph.transaction((transaction) => {
      const edge = above.image.node.child('backing');
      if (below) transaction.retarget(edge, below.image.node);
      else transaction.detach(edge);
    });
    this.layers.splice(index, 1);
    this.#permitAll();
  }

  /** The stamp that a reader of layers from `first` on sees. */
  seen(sector: number, first = 0): number {
    for (const layer of this.layers.slice(first)) {
      if (sector * SECTOR >= layer.lengthBytes) return 0;
      const stamp = layer.sectors.get(sector) ?? NOT_HERE;
      if (stamp !== NOT_HERE) return stamp;
    }
    return 0;
  }

  /** Which layer decides it; the number of layers: none. */
  decider(sector: number): number {
    const index = this.layers.findIndex(
      ({ lengthBytes, sectors }) => sector * SECTOR >= lengthBytes || sectors.has(sector),
    );
    return index < 0 ? this.layers.length : index;
  }

  /** Sectors somewhere within a layer; none where it has none there. */
  range(layer: Modelled): { first: number; count: number } {
    const spot = (SPOTS[this.draw(SPOTS.length)] ?? 0) / SECTOR;
    const first = spot + this.draw(SPOT_BYTES / SECTOR);
    const most = Math.min(layer.lengthBytes / SECTOR - first, 1 + this.draw(48));
    return { first, count: Math.max(0, most) };
  }

  async write(index: number, zeroes: boolean): Promise<void> {
    const layer = this.layers[index];
    assert.ok(layer);
    const { first, count } = this.range(layer);
    if (count === 0) return;
    const stamp = zeroes ? 0 : ++this.#stamp;
    const after = new Map<number, number>();
    const unit = layer.clusterBytes / SECTOR;
    const end = Math.ceil((first + count) / unit) * unit;
    for (let at = Math.floor(first / unit) * unit; at < end; at++) {
      const isOwn = at >= first && at < first + count;
      after.set(at, isOwn ? stamp : at * SECTOR < layer.lengthBytes ? this.seen(at, index) : 0);
    }
    const { io } = layer.image.node;
    const reads = [this.read(after), this.read(after)];
    const bytes = bytesOf(stamp, count);
    if (zeroes) await io.writeZeroes(first * SECTOR, bytes.length, Flag.mayUnmap);
    else {
      const request = IoRequest.ofBuffer(bytes);
      if (!io.tryWrite(request, 0, bytes.length, first * SECTOR, false))
        await io.write(request, 0, bytes.length, first * SECTOR, Flag.none);
    }
    for (const [sector, value] of after) layer.sectors.set(sector, value);
    await Promise.all(reads);
  }

  /** Of what a layer loses it has nothing when it grows again. */
  async resize(index: number): Promise<void> {
    const layer = this.layers[index];
    assert.ok(layer);
    const lengthBytes = this.#lengthBytes();
    const { clusterBytes, image, sectors } = layer;
    const clusters = Math.ceil(lengthBytes / clusterBytes);
    for (const cluster of [...image.layer.table.keys()])
      if (cluster >= clusters) image.layer.table.delete(cluster);
    for (const sector of [...sectors.keys()])
      if (sector * SECTOR >= clusters * clusterBytes) sectors.delete(sector);
    await image.node.io.truncate(lengthBytes);
    layer.lengthBytes = lengthBytes;
  }

  /** Reads somewhere, while a layer may get what `after` says: each sector is what it was or what it becomes. */
  async read(after?: ReadonlyMap<number, number>): Promise<void> {
    const { top } = this;
    const { first, count } = this.range(top);
    if (count === 0) return;
    const before = Array.from({ length: count }, (_, i) => this.seen(first + i));
    const request = IoRequest.ofBuffer(Buffer.alloc(count * SECTOR, 0xaa));
    const { io } = top.image.node;
    if (this.draw(2) === 0 || !io.tryRead(request, 0, count * SECTOR, first * SECTOR))
      await io.read(request, 0, count * SECTOR, first * SECTOR);
    const bytes = request.gather(0, count * SECTOR);
    for (let i = 0; i < count; i++) {
      const at = i * SECTOR;
      const found = Buffer.from(bytes).readUInt32LE(at);
      const isRight =
        found === before[i] || (after?.has(first + i) === true && found === after.get(first + i));
      assert.ok(isRight, `sector ${first + i} is ${found}, not ${before[i]}`);
    }
  }

  async compareStatus(): Promise<void> {
    const { top } = this;
    const { first, count } = this.range(top);
    const last = this.draw(this.layers.length);
    for (let at = first; at < first + count;) {
      const left = (first + count - at) * SECTOR;
      const { node } = top.image;
      const status = await node.statusThroughChain(at * SECTOR, left, this.layers[last]?.image.node);
      const sectors = status.lengthBytes / SECTOR;
      for (let sector = at; sector < at + sectors; sector++) {
        const decider = this.decider(sector);
        const depth = Math.min(decider, last);
        assert.equal(status.allocated, decider <= last, `sector ${sector}: allocated`);
        assert.equal(status.depth, depth, `sector ${sector}: depth`);
        assert.equal(status.node, this.layers[depth]?.image.node);
        if (status.zero) assert.equal(this.seen(sector), 0);
      }
      at += sectors;
    }
  }

  async step(): Promise<void> {
    const any = this.draw(this.layers.length);
    const kind = this.draw(20);
    if (kind < 8) return this.read();
    if (kind < 13) return this.write(any, false);
    if (kind < 15) return this.write(any, true);
    if (kind < 17) return this.compareStatus();
    if (kind === 17) return this.resize(any);
    if (kind === 18 && this.layers.length < 9) return this.push();
    if (this.layers.length > 3 && any > 0) return this.remove(any);
  }
}

function bytesOf(stamp: number, sectors: number): Buffer {
  const bytes = Buffer.alloc(sectors * SECTOR);
  for (let at = 0; at < bytes.length; at += SECTOR) bytes.writeUInt32LE(stamp, at);
  return bytes;
}

test('a merged map is right whatever happens to its layers', async () => {
  for (let seed = 0; seed < 24; seed++) {
    const story = new Story(seed);
    for (let i = 2 + story.draw(6); i > 0; i--) await story.push();
    for (let step = 0; step < 120; step++) await story.step();
  }
});

test('a few layers have a map where all its pages have room, many have one in any case', async () => {
  const bench = new JobBench();
  const disk = async (name: string, layers: number): Promise<MemoryImage> => {
    let top = await newMemoryImage(bench.graph, `${name}0`, {
      lengthBytes: MOST_BYTES,
      clusterBytes: 4 * KiB,
    });
    for (let i = 1; i < layers; i++)
      top = await newMemoryImage(bench.graph, `${name}${i}`, {
        ...{ lengthBytes: MOST_BYTES, clusterBytes: 4 * KiB, backing: top.node },
      });
    return top;
  };
  bench.graph.layerMaps.settings = { ...CHECKED, mostPages: 5, manyLayers: 6 };
  const [few, other, many] = [await disk('a', 4), await disk('b', 4), await disk('c', 7)];
  const map = few.node.io.layerMap;
  assert.equal(map?.pageCount, 3);
  assert.equal(other.node.io.layerMap, undefined);
  assert.ok(many.node.io.layerMap);
  assert.equal(few.node.io.layerMap, map);
});

test('an overlay takes over what the map of the image below it knows, and looks at that image alone', async () => {
  const bench = new JobBench();
  const push = (name: string, below?: MemoryImage): Promise<MemoryImage> =>
    newMemoryImage(bench.graph, name, {
      ...{ lengthBytes: MOST_BYTES, clusterBytes: 4 * KiB, ...(below && { backing: below.node }) },
    });
  // As many pages as a map has: there is no room for another one beside it.
  bench.graph.layerMaps.settings = { ...CHECKED, mostPages: 3, manyLayers: 20 };
  const images = [await push('a0')];
  for (let i = 1; i < 5; i++) images.push(await push(`a${i}`, images.at(-1)));
  const looks: string[] = [];
  for (const { node } of images) {
    node.child('file').perm = ALL_PERMISSIONS;
    const { io } = node;
    const mapAll = io.mapAll.bind(io);
    io.mapAll = (...args) => {
      looks.push(node.name);
      return mapAll(...args);
    };
  }
  const write = async (index: number, at: number): Promise<void> => {
    const request = IoRequest.ofBuffer(Buffer.alloc(8 * KiB, index + 1));
    await images[index]?.node.io.write(request, 0, 8 * KiB, at, Flag.none);
  };
  const valueAt = async ({ node }: MemoryImage, at: number): Promise<number> => {
    const request = IoRequest.ofBuffer(Buffer.alloc(SECTOR, 0xaa));
    await node.io.read(request, 0, SECTOR, at);
    return request.gather(0, SECTOR)[0] ?? 0;
  };
  for (const [index, at] of [0, 4, 8, 12].entries()) await write(index, at * KiB);
  const [former] = images.slice(-1);
  assert.ok(former);
  assert.equal(await valueAt(former, 64 * KiB), 0);
  assert.deepEqual(looks.splice(0), ['a3', 'a2', 'a1', 'a0']);
  const overlay = await push('overlay', former);
  assert.ok(overlay.node.io.layerMap);
  // Changes of layers above and below what is known already.
  await write(4, 4 * KiB);
  await write(1, 64 * KiB);
  const values = [];
  for (const at of [0, 4, 8, 12, 16, 64, 80]) values.push(await valueAt(overlay, at * KiB));
  assert.deepEqual(values, [1, 5, 5, 4, 4, 2, 0]);
  assert.deepEqual(looks, ['a4']);
});
