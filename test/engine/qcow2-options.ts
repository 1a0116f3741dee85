import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { createImage } from '../../src/block/create.js';
import type { NodeOptions } from '../../src/block/driver.js';
import { Flag } from '../../src/block/request.js';
import type { TestBed, TestDisk } from '../kit/test-disk.js';

const CLUSTER = 65536;
const SIZE = 16 * CLUSTER;

interface OptionBed extends TestBed {
  with<T>(options: NodeOptions, body: (disk: TestDisk) => T | Promise<T>): Promise<T>;
  refused(options: NodeOptions, message: RegExp): Promise<void>;
}

class Image {
  readonly path: string;
  readonly #bed: OptionBed;

  private constructor(bed: OptionBed) {
    this.#bed = bed;
    this.path = bed.newPath('qcow2');
  }

  static async make(bed: OptionBed, options: NodeOptions = {}): Promise<Image> {
    const image = new Image(bed);
    await createImage(bed.opener, image.path, 'qcow2', { sizeBytes: SIZE, options });
    return image;
  }

  with<T>(options: NodeOptions, body: (disk: TestDisk) => T | Promise<T>): Promise<T> {
    return this.#bed.with(this.options(options), body);
  }

  options(more: NodeOptions): NodeOptions {
    return { driver: 'qcow2', file: { driver: 'file', filename: this.path }, ...more };
  }

  get blocks(): number {
    return statSync(this.path).blocks;
  }
}

/** Blocks of the file after `change` of a full disk, where it was opened with these options. */
async function blocksAfter(
  bed: OptionBed,
  options: NodeOptions,
  change: (disk: TestDisk) => Promise<void>,
): Promise<number> {
  const image = await Image.make(bed);
  await image.with({}, (disk) => disk.write(0, Buffer.alloc(SIZE, 1)));
  await image.with({ discard: 'unmap', ...options }, async (disk) => {
    await change(disk);
    await disk.backend.flush();
  });
  return image.blocks;
}

/** With it off, the file keeps at least this many blocks that it has not with it on. */
async function freesBlocks(
  bed: OptionBed,
  option: string,
  change: (disk: TestDisk) => Promise<void>,
): Promise<void> {
  const on = await blocksAfter(bed, { [option]: true }, change);
  const off = await blocksAfter(bed, { [option]: false }, change);
  assert.ok(on < off, `${option}: ${on} blocks, without it ${off}`);
}

/** An L2 entry that points at the first refcount block. */
async function brokenImage(bed: OptionBed): Promise<Image> {
  const image = await Image.make(bed);
  await image.with({}, (disk) => disk.write(0, Buffer.alloc(CLUSTER, 1)));
  const bytes = readFileSync(image.path);
  const at = (offset: number): number => Number(bytes.readBigUInt64BE(offset) % 2n ** 56n);
  const entry = 0x8000_0000_0000_0000n + BigInt(at(at(48)));
  bytes.writeBigUInt64BE(entry, at(at(40)) + 8);
  writeFileSync(image.path, bytes);
  return image;
}

/** What QEMU's options of qcow2 do that are about discards and about what must not be overwritten. */
export const QCOW2_SHOWS: Record<string, (bed: OptionBed) => Promise<void>> = {
  'lazy-refcounts': async (bed) => {
    const old = await Image.make(bed, { version: 'v2' });
    await bed.refused(old.options({ 'lazy-refcounts': true }), /^Lazy refcounts require a qcow2 image/);
  },
  'discard-no-unref': async (bed) => {
    const image = await Image.make(bed);
    await image.with({ 'discard-no-unref': true, discard: 'unmap' }, async (disk) => {
      const place = async (at: number): Promise<unknown> => (await disk.node.io.status(at, 1)).hostOffset;
      await disk.write(0, Buffer.alloc(SIZE, 1));
      const before = await place(CLUSTER);
      await disk.backend.discard(0, SIZE);
      assert.ok((await disk.readAll()).every((byte) => byte === 0));
      await disk.write(CLUSTER, Buffer.alloc(CLUSTER, 2));
      assert.equal(await place(CLUSTER), before);
    });
  },
  'overlap-check': async (bed) => {
    const broken = await brokenImage(bed);
    const write = (disk: TestDisk): Promise<void> => disk.write(CLUSTER, Buffer.alloc(512, 3));
    const kept = readFileSync(broken.path);
    await broken.with({ 'overlap-check': 'none' }, write);
    writeFileSync(broken.path, kept);
    await broken.with({ 'overlap-check': { template: 'all', 'refcount-block': false } }, write);
    writeFileSync(broken.path, kept);
    await broken.with({ 'overlap-check': { template: 'none', 'refcount-block': true } }, (disk) =>
      assert.rejects(write(disk), { message: /overlaps with refcount block/ }),
    );
  },
  'pass-discard-request': (bed) =>
    freesBlocks(bed, 'pass-discard-request', (disk) => disk.backend.writeZeroes(0, SIZE, Flag.mayUnmap)),
  'pass-discard-snapshot': (bed) =>
    freesBlocks(bed, 'pass-discard-snapshot', async ({ backend, node }) => {
      const { snapshots } = node.instance;
      assert.ok(snapshots);
      await snapshots.take({ name: 'one', dateSec: 0, dateNsec: 0, clockNs: 0n, icount: -1n });
      await backend.writeZeroes(0, SIZE, Flag.mayUnmap);
      await backend.flush();
      await snapshots.delete(snapshots.list[0]?.id ?? '');
    }),
  'pass-discard-other': (bed) =>
    freesBlocks(bed, 'pass-discard-other', async ({ backend }) => {
      await backend.writeZeroes(0, SIZE, Flag.mayUnmap);
      // Half as large when it is compressed.
      for (let i = 0; i < 8; i++) {
        const bytes = randomBytes(CLUSTER).map((byte) => byte % 16);
        await backend.write(i * CLUSTER, bytes, Flag.compressed);
      }
      await backend.flush();
      await backend.write(0, Buffer.alloc(8 * CLUSTER, 2));
    }),
};
