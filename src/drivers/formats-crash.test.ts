import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FORMAT_IMAGES, type FormatImage, createOn, formatShelf } from '../../test/kit/format-images.js';
import { crashStates, drawnCrashStates, seededBelow } from '../../test/kit/crash-states.js';
import type { RecordedDisk } from '../../test/kit/recorded-disk.js';

const SECTOR = 512;

/** Sectors that were written, with what they held in turn; and of each flush that ended, how far they had come. */
class History {
  readonly #values = new Map<number, number[]>();
  readonly #flushed = new Map<string, ReadonlyMap<number, number>>();
  #stamp = 1;

  write(from: number, count: number): Buffer {
    const bytes = Buffer.alloc(count * SECTOR);
    for (let sector = from; sector < from + count; sector++) {
      const stamp = this.#stamp++ % 256 || this.#stamp++;
      bytes.fill(stamp, (sector - from) * SECTOR, (sector - from + 1) * SECTOR);
      const values = this.#values.get(sector) ?? [0];
      values.push(stamp);
      this.#values.set(sector, values);
    }
    return bytes;
  }

  /** Everything so far is durable from the mark of that label on. */
  flushed(label: string): void {
    this.#flushed.set(
      label,
      new Map([...this.#values].map(([sector, values]) => [sector, values.length - 1])),
    );
  }

  get sectors(): number[] {
    return [...this.#values.keys()];
  }

  mayHold(sector: number, bytes: Buffer, marks: readonly string[]): boolean {
    const least = Math.max(0, ...marks.map((mark) => this.#flushed.get(mark)?.get(sector) ?? 0));
    const allowed = (this.#values.get(sector) ?? [0]).slice(least);
    return allowed.includes(bytes[0] ?? -1) && bytes.every((byte) => byte === bytes[0]);
  }
}

interface Run {
  disk: RecordedDisk;
  history: History;
}

/** Writes here and there, a flush now and then, over an image that has been used before. */
async function work(format: FormatImage, seed: number, dropFlush: number | undefined): Promise<Run> {
  const below = seededBelow(seed);
  const history = new History();
  const sectors = format.sizeBytes / SECTOR;
  const made = formatShelf();
  await createOn(made, 'image', format);
  const shelf = formatShelf();
  // What a crash before left behind the end: nobody may ever see it.
  const rest = Buffer.alloc(format.name === 'vhdx' ? 3 * 2 ** 20 : 0, 0xee);
  const disk = shelf.put('image', Buffer.concat([made.disk('image').contents(), rest]));
  disk.dropFlush = (index) => index === dropFlush;
  const open = await shelf.open('image', { driver: format.driver.name });
  for (let flush = 0; flush < 3; flush++) {
    for (let write = 0; write < 3; write++) {
      const from = below(sectors - 8);
      await open.backend.write(from * SECTOR, history.write(from, 1 + below(8)));
    }
    await open.backend.flush();
    history.flushed(`flush ${flush}`);
    disk.mark(`flush ${flush}`);
  }
  await open.close();
  history.flushed('closed');
  disk.mark('closed');
  return { disk, history };
}

async function firstProblem(
  format: FormatImage,
  { disk, history }: Run,
  states = crashStates,
): Promise<string | undefined> {
  for (const { content, marks, survived } of states(disk, seededBelow(1), 2)) {
    const problem = await problemOf(format, content, marks, history).catch((error: unknown) => String(error));
    if (problem !== undefined) return `after [${marks.join(' ')}], survived ${survived}: ${problem}`;
  }
  return undefined;
}

async function problemOf(
  format: FormatImage,
  content: Buffer,
  marks: readonly string[],
  history: History,
): Promise<string | undefined> {
  const shelf = formatShelf();
  shelf.put('image', content);
  const open = await shelf.open('image', { driver: format.driver.name, forCheck: true });
  for (const sector of history.sectors)
    if (!history.mayHold(sector, await open.read(sector * SECTOR, SECTOR), marks))
      return `sector ${sector} holds what it never should`;
  const lines: string[] = [];
  const found = await open.node.instance.check?.('none', (line) => void lines.push(line));
  // Marks of an image that was in use, and of counts that come before what is counted, do no harm.
  const harmless = lines.filter((line) => /not closed correctly|allocated blocks mismatch/.test(line)).length;
  if (found && found.corruptions + found.checkErrors > harmless) return `corrupt: ${lines.join('; ')}`;
  await open.close();
  return undefined;
}

/** A flat disk's data needs no order, and has no tables. */
const ORDERED = FORMAT_IMAGES.filter(({ name }) => name !== 'vpc fixed');

for (const format of FORMAT_IMAGES) {
  test(`${format.name}: whatever a crash leaves, the image is sound and what was flushed is there`, async () => {
    assert.equal(await firstProblem(format, await work(format, 7, undefined), drawnCrashStates), undefined);
  });
}

for (const format of ORDERED) {
  test(`${format.name}: without its flushes a crash shows`, async () => {
    const problems: string[] = [];
    for (let drop = 0; drop < 3; drop++) {
      const problem = await firstProblem(format, await work(format, 7, drop));
      if (problem !== undefined) problems.push(problem);
    }
    assert.ok(problems.length >= 1, `${problems.length} of the first flushes are missed`);
  });
}
