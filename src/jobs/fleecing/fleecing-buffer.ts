import { assert } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { isZero } from '../../base/zero.js';
import type { Stretch } from '../../block/dirty-bitmap.js';
import type { Host } from '../../host/host.js';
import { type BackupNodes, type BackupPlan, copyUnitBytes, type FleecingPlan } from '../plans/backup.js';
import { asError } from '../job-errors.js';
import type { PassedWork } from '../passed/passed-job.js';
import { BufferFile, bufferIsFull, type BufferSize } from './buffer-file.js';

/** Longest stretch that is taken out at a time. */
const MOST_GRANULES = 16;

/** Where a granule is kept; a number apart: it is all zeroes. */
interface Kept {
  readonly file: BufferFile;
  readonly place: number;
}

const ZEROES = 'zeroes';

/** What another process is told, beside which places are in use. A type alias: it is JSON. */
export type PassedBuffer = { peakBytes: number; /** Of each file. */ places: number[] };

/** In the bytes of what is kept, three numbers a granule: its own, its file's (NO_FILE: zeroes) and its place there. */
const KEPT_NUMBERS = 3;
const NO_FILE = -1;

interface BufferOf {
  readonly jobId: string;
  readonly unitBytes: number;
  readonly diskBytes: number;
}

interface AdoptedBuffer extends BufferOf {
  readonly data: PassedBuffer;
  readonly work: PassedWork;
}

/** Old content of a disk, granule by granule, that guests have overwritten and a slow target does not have yet. */
export class FleecingBuffer {
  readonly #files: readonly BufferFile[];
  readonly #unitBytes: number;
  readonly #diskBytes: number;
  /** By the granule's number, in the order in which they came. */
  readonly #kept = new Map<number, Kept | typeof ZEROES>();
  /** On their way to the target. */
  readonly #leaving = new Set<number>();
  readonly #full: () => Error;
  /** The most that they were. */
  peakBytes = 0;

  private constructor(
    files: readonly BufferFile[],
    { unitBytes, diskBytes, full }: { unitBytes: number; diskBytes: number; full: () => Error },
  ) {
    this.#files = files;
    this.#unitBytes = unitBytes;
    this.#diskBytes = diskBytes;
    this.#full = full;
  }

  /** Errors: those of files. */
  static async create(
    host: Host,
    plan: FleecingPlan,
    { jobId, unitBytes, diskBytes }: BufferOf,
  ): Promise<FleecingBuffer> {
    const files = await openAll(foldersOf(plan, unitBytes), ({ folder, size }) =>
      BufferFile.create(host, folder, size),
    );
    const full = (): Error => bufferIsFull(jobId, plan.maxBytes);
    return new FleecingBuffer(files, { unitBytes, diskBytes, full });
  }

  /** That of another process, whose files are this one's from here on. Errors: those of files. */
  static async adopt(
    host: Host,
    plan: FleecingPlan,
    { jobId, unitBytes, diskBytes, data: { peakBytes, places }, work }: AdoptedBuffer,
  ): Promise<FleecingBuffer> {
    const [bytes = new Uint8Array(0)] = work.parts['buffer'] ?? [];
    // A copy, since numbers lie at whole units of theirs.
    const numbers = new Float64Array(new Uint8Array(bytes).buffer);
    const taken = places.map(() => new Set<number>());
    for (let at = 0; at < numbers.length; at += KEPT_NUMBERS)
      taken[numbers[at + 1] ?? NO_FILE]?.add(numbers[at + 2] ?? 0);
    const files = await openAll([...foldersOf(plan, unitBytes).entries()], ([i, { folder, size }]) =>
      BufferFile.adopt(host, folder, {
        ...{ size, fd: work.files?.[i] ?? -1 },
        ...{ places: places[i] ?? 0, taken: taken[i] ?? new Set() },
      }),
    );
    const full = (): Error => bufferIsFull(jobId, plan.maxBytes);
    const buffer = new FleecingBuffer(files, { unitBytes, diskBytes, full });
    buffer.peakBytes = peakBytes;
    for (let at = 0; at < numbers.length; at += KEPT_NUMBERS) {
      const [granule = 0, file = NO_FILE, place = 0] = numbers.subarray(at, at + KEPT_NUMBERS);
      const its = files[file];
      buffer.#kept.set(granule, its ? { file: its, place } : ZEROES);
    }
    return buffer;
  }

  /** For adopt() in another process; nobody keeps or takes out anything. Errors: unsupported. */
  passed(): { data: PassedBuffer; places: Uint8Array; files: number[] } {
    const numbers = new Float64Array(this.#kept.size * KEPT_NUMBERS);
    let at = 0;
    for (const [granule, kept] of this.#kept) {
      const [file, place] = kept === ZEROES ? [NO_FILE, 0] : [this.#files.indexOf(kept.file), kept.place];
      numbers.set([granule, file, place], at);
      at += KEPT_NUMBERS;
    }
    return {
      data: { peakBytes: this.peakBytes, places: this.#files.map(({ places }) => places) },
      places: new Uint8Array(numbers.buffer),
      files: this.#files.map(({ fd }) => fd),
    };
  }

  get isEmpty(): boolean {
    return this.#kept.size === 0;
  }

  /** What the target lacks of it. */
  get keptBytes(): number {
    let bytes = this.#kept.size * this.#unitBytes;
    const last = Math.floor(this.#diskBytes / this.#unitBytes);
    if (this.#kept.has(last)) bytes -= this.#unitBytes - (this.#diskBytes % this.#unitBytes);
    return bytes;
  }

  /** Bytes of the bounded file that are in use. */
  get usedBytes(): number {
    return this.#files[0]?.usedBytes ?? 0;
  }

  *stretches(): Generator<Stretch> {
    for (const granule of this.#kept.keys()) yield this.#stretchOf(granule);
  }

  #stretchOf(granule: number, count = 1): Stretch {
    const offset = granule * this.#unitBytes;
    return { offset, lengthBytes: Math.min(count * this.#unitBytes, this.#diskBytes - offset) };
  }

  /**
   * Keeps whole granules, or up to the disk's end, none of which it has. Errors: no-space, when there is no room; those of
   * files. Then it keeps nothing of them.
   */
  async keep(offset: number, bytes: Buffer): Promise<void> {
    assert(offset % this.#unitBytes === 0, 'a buffer keeps whole granules');
    const first = offset / this.#unitBytes;
    const kept: Array<Kept | typeof ZEROES> = [];
    try {
      for (let at = 0; at < bytes.length; at += this.#unitBytes)
        kept.push(await this.#keepOne(bytes.subarray(at, at + this.#unitBytes)));
    } catch (error) {
      for (const one of kept) give(one);
      throw error;
    }
    kept.forEach((one, i) => {
      assert(!this.#kept.has(first + i), 'a granule is kept once');
      this.#kept.set(first + i, one);
    });
  }

  async #keepOne(bytes: Buffer): Promise<Kept | typeof ZEROES> {
    if (isZero(bytes)) return ZEROES;
    let failure: Error | undefined;
    for (const file of this.#files) {
      const place = file.take();
      if (place === undefined) continue;
      this.peakBytes = Math.max(this.peakBytes, this.usedBytes);
      try {
        await file.write(place, bytes);
        return { file, place };
      } catch (error) {
        file.give(place);
        failure = asError(error);
      }
    }
    throw failure ?? this.#full();
  }

  /** A stretch that nobody takes to the target yet, the oldest first; done() or putBack() follows. */
  takeOut(): Stretch | undefined {
    for (const granule of this.#kept.keys()) {
      if (this.#leaving.has(granule)) continue;
      let count = 0;
      while (count < MOST_GRANULES && this.#kept.has(granule + count) && !this.#leaving.has(granule + count))
        this.#leaving.add(granule + count++);
      return this.#stretchOf(granule, count);
    }
    return undefined;
  }

  /** What is kept of a stretch that was taken out. Errors: those of files. */
  async read({ offset, lengthBytes }: Stretch, bytes: Buffer): Promise<void> {
    for (let at = 0; at < lengthBytes; at += this.#unitBytes) {
      const kept = this.#kept.get((offset + at) / this.#unitBytes);
      assert(kept !== undefined, 'what is taken out is kept until it is done');
      const part = bytes.subarray(at, Math.min(at + this.#unitBytes, lengthBytes));
      if (kept === ZEROES) part.fill(0);
      else await kept.file.read(kept.place, part);
    }
  }

  /** The target has it. */
  done({ offset, lengthBytes }: Stretch): void {
    for (let at = 0; at < lengthBytes; at += this.#unitBytes) {
      const granule = (offset + at) / this.#unitBytes;
      give(this.#kept.get(granule) ?? ZEROES);
      this.#kept.delete(granule);
      this.#leaving.delete(granule);
    }
  }

  async close(): Promise<void> {
    for (const file of this.#files) await file.close();
  }
}

/** The bounded one, and where what is beyond goes. */
function foldersOf(
  { folder, maxBytes, spillFolder }: FleecingPlan,
  placeBytes: number,
): Array<{ folder: string; size: BufferSize }> {
  return [
    { folder, size: { placeBytes, mostBytes: maxBytes } },
    ...(spillFolder === undefined
      ? []
      : [{ folder: spillFolder, size: { placeBytes, mostBytes: Infinity } }]),
  ];
}

/** All of them or none. */
async function openAll<T>(of: readonly T[], open: (one: T) => Promise<BufferFile>): Promise<BufferFile[]> {
  const files: BufferFile[] = [];
  try {
    for (const one of of) files.push(await open(one));
    return files;
  } catch (error) {
    for (const file of files) await file.close();
    throw error;
  }
}

function give(kept: Kept | typeof ZEROES): void {
  if (kept !== ZEROES) kept.file.give(kept.place);
}

/** For a backup that begins, or goes on from another process, where its plan says so. Errors: those of files; invalid. */
export async function fleecingBufferFor(
  host: Host,
  plan: BackupPlan,
  { device, target }: BackupNodes,
  from?: PassedWork,
): Promise<FleecingBuffer | undefined> {
  const { fleecing, jobId } = plan;
  if (!fleecing) return undefined;
  const of = { jobId, unitBytes: copyUnitBytes(plan, target), diskBytes: device.lengthBytes };
  if (fleecing.maxBytes < of.unitBytes)
    throw new BlockError(
      'invalid',
      `'max-bytes' is less than the ${of.unitBytes} bytes of a cluster of the copy`,
    );
  if (!from) return FleecingBuffer.create(host, fleecing, of);
  const { buffer: data } = from.data['fleecing'] as { buffer: PassedBuffer };
  return FleecingBuffer.adopt(host, fleecing, { ...of, data, work: from });
}
