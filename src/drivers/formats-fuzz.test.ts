import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../base/error.js';
import type { DriverDescription } from '../block/driver.js';
import { damaged, type Damageable } from '../../test/kit/damaged-format.js';
import { READ_ONLY_FORMATS, sectorsOf } from '../../test/kit/read-only-formats.js';
import { createOn, FORMAT_IMAGES, type FormatImage, formatShelf } from '../../test/kit/format-images.js';
import { partOf } from '../../test/kit/amount.js';
import { seededBelow } from '../../test/kit/crash-states.js';
import type { OpenDisk } from '../../test/kit/recorded-disk.js';

type Below = (limit: number) => number;

/** `FUZZ_RUNS=100000 FUZZ_SEED=N npm test -- formats-fuzz`: longer, and from another seed on. */
const RUNS = Number(process.env['FUZZ_RUNS'] ?? partOf(120));
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

interface Case extends Damageable {
  readonly driver: DriverDescription;
  readonly sound: Buffer;
  readonly modes: ReadonlyArray<{ readOnly: boolean; forCheck?: boolean }>;
}
/** Nothing but errors of ours may come out. */
async function tolerant(body: () => Promise<unknown>): Promise<void> {
  try {
    await body();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
  }
}

const PLACES = 5;

async function use(disk: OpenDisk, below: Below, mayWrite: boolean): Promise<void> {
  const { lengthBytes } = disk.backend;
  const places = [
    0,
    Math.max(0, lengthBytes - 4096),
    ...[1, 2, 3].map(() => Math.floor(lengthBytes / 4) * below(4)),
  ];
  assert.equal(places.length, PLACES);
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

function check(name: string, prepare: () => Promise<Case>): void {
  test(`${name}: damaged headers and tables make errors of ours, and nothing else`, async () => {
    const { driver, sound, modes, ...format } = await prepare();
    const before = process.memoryUsage().rss;
    for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
      const below = seededBelow(seed * 7919);
      const bytes = damaged(format, sound, below);
      for (const mode of modes) {
        try {
          const shelf = formatShelf();
          shelf.put('image', bytes);
          let blockBytes = 0;
          await tolerant(async () => {
            const disk = await shelf.open('image', { driver: driver.name, ...mode });
            blockBytes = disk.node.instance.info().clusterSizeBytes ?? 0;
            await use(disk, below, !mode.readOnly);
            if (mode.forCheck)
              await tolerant(async () => disk.node.instance.check?.('none', () => undefined));
            disk.node.instance.info();
            await tolerant(() => disk.close());
          });
          // A write takes two blocks at the most, whose size a damaged header may have made a GiB.
          const mostBytes = 64 * 2 ** 20 + 2 * PLACES * blockBytes;
          assert.ok(shelf.disk('image').lengthBytes < mostBytes, 'the file grew without bound');
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

const READING = [{ readOnly: true }, { readOnly: true, forCheck: true }];

for (const format of FORMAT_IMAGES)
  check(format.name, async () => ({
    ...format,
    sound: await soundImage(format),
    modes: [...READING, { readOnly: false }],
  }));
for (const { name, driver, make, metadata } of READ_ONLY_FORMATS)
  check(name, async () => {
    const sound = make(sectorsOf(40, seededBelow(3)));
    return { driver, sound, metadata: metadata(sound), modes: READING };
  });
