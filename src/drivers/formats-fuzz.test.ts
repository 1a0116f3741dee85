import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../base/error.js';
import { createOn, FORMAT_IMAGES, type FormatImage, formatShelf } from '../../test/kit/format-images.js';
import { seededBelow } from '../../test/kit/crash-states.js';
import type { OpenDisk } from '../../test/kit/recorded-disk.js';

type Below = (limit: number) => number;

/** `FUZZ_RUNS=100000 FUZZ_SEED=N npm test -- formats-fuzz`: longer, and from another seed on. */
const RUNS = Number(process.env['FUZZ_RUNS'] ?? 120);
const FIRST_SEED = Number(process.env['FUZZ_SEED'] ?? 1);
/** What the process may grow by, however many runs. */
const GROWTH_BYTES = 500 * 1024 * 1024;

/** An image with something in it. */
async function soundImage(format: FormatImage): Promise<Buffer> {
  const shelf = formatShelf();
  await createOn(shelf, 'image', format);
  const open = await shelf.open('image', { driver: format.driver.name });
  for (let at = 0; at < format.sizeBytes; at += Math.ceil(format.sizeBytes / 3 / 512) * 512)
    await open.backend.write(at, Buffer.alloc(1024, 0xa5));
  await open.close();
  return shelf.disk('image').contents();
}

/** Values that have a meaning, or nearly so, in some field. */
function interesting(below: Below): bigint {
  switch (below(6)) {
    case 0:
      return 2n ** BigInt(below(64));
    case 1:
      return 2n ** BigInt(below(64)) - 1n;
    case 2:
      return 0xffffffffffffffffn - BigInt(below(70000));
    case 3:
      return BigInt(below(300));
    default:
      return BigInt(below(2 ** 31)) * 512n;
  }
}

/** One to three fields of headers and tables, or the file's length. */
function damaged(format: FormatImage, sound: Buffer, below: Below): Buffer {
  const bytes = Buffer.from(sound);
  for (let i = 1 + below(3); i > 0; i--) {
    const [from, end] = format.metadata[below(format.metadata.length)] ?? [0, 8];
    const value = interesting(below);
    const width = [1, 2, 4, 4, 8, 8][below(6)] ?? 4;
    const at = from + below(Math.max(1, Math.floor((end - from) / width))) * width;
    for (let byte = 0; byte < width && at + byte < bytes.length; byte++) {
      const place = below(4) === 0 ? width - 1 - byte : byte;
      bytes[at + byte] = Number((value / 256n ** BigInt(place)) % 256n);
    }
  }
  if (below(4) > 0 && bytes.length === sound.length) format.seal?.(bytes);
  return below(12) === 0 ? bytes.subarray(0, below(bytes.length + 1)) : bytes;
}

/** Nothing but errors of ours may come out. */
async function tolerant(body: () => Promise<unknown>): Promise<void> {
  try {
    await body();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}

async function use(disk: OpenDisk, below: Below, mayWrite: boolean): Promise<void> {
  const { lengthBytes } = disk.backend;
  const places = [
    0,
    Math.max(0, lengthBytes - 4096),
    ...[1, 2, 3].map(() => Math.floor(lengthBytes / 4) * below(4)),
  ];
  for (const at of places) {
    const length = Math.min(4096, lengthBytes - at);
    if (length <= 0) continue;
    await tolerant(() => disk.read(at, length));
    await tolerant(() => disk.backend.status(at, length));
    if (!mayWrite) continue;
    await tolerant(() => disk.backend.write(at, Buffer.alloc(length, 0x5a)));
    await tolerant(() => disk.backend.writeZeroes(at, length));
    await tolerant(() => disk.backend.flush());
  }
}

for (const format of FORMAT_IMAGES) {
  test(`${format.name}: damaged headers and tables make errors of ours, and nothing else`, async () => {
    const sound = await soundImage(format);
    const before = process.memoryUsage().rss;
    for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
      const below = seededBelow(seed * 7919);
      const bytes = damaged(format, sound, below);
      for (const mode of [{ readOnly: true }, { readOnly: false }, { readOnly: true, forCheck: true }]) {
        try {
          const shelf = formatShelf();
          shelf.put('image', bytes);
          await tolerant(async () => {
            const disk = await shelf.open('image', { driver: format.driver.name, ...mode });
            await use(disk, below, !mode.readOnly);
            if (mode.forCheck)
              await tolerant(async () => disk.node.instance.check?.('none', () => undefined));
            disk.node.instance.info();
            await tolerant(() => disk.close());
          });
          assert.ok(shelf.disk('image').lengthBytes < 64 * 2 ** 20, 'the file grew without bound');
        } catch (error) {
          throw new Error(`seed ${seed}, ${JSON.stringify(mode)}: ${String((error as Error).stack)}`, {
            cause: error,
          });
        }
      }
    }
    assert.ok(process.memoryUsage().rss < before + GROWTH_BYTES, 'memory grew');
  });
}
