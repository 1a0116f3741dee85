import { BlockError } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import { whenOpen } from '../../block/copy-turn.js';
import type { Stretch } from '../../block/dirty-bitmap.js';
import { PIECE_BYTES } from '../copy-window.js';
import type { Job } from '../job.js';
import { JobCancelled } from '../job-errors.js';
import { statusOrData } from '../source-status.js';
import type { ChunkHashes } from './chunk-hashes.js';

/** A chunk that differs as often as this, copied again in between, makes the job fail. */
const ATTEMPTS = 3;

export interface CopyCheckOptions {
  readonly job: Job;
  readonly hashes: ChunkHashes;
  readonly source: BlockBackend;
  readonly target: BlockBackend;
}

/** Runs `body` while nobody changes a stretch of the target. */
export type Hold = (stretch: Stretch, body: () => Promise<void>) => Promise<void>;

/** Reads a copy back, and copies again what is not what was sent. */
export class CopyCheck {
  readonly #options: CopyCheckOptions;
  readonly #buffer: Buffer;
  #hasRepaired = false;

  constructor(options: CopyCheckOptions) {
    this.#options = options;
    this.#buffer = options.job.host.files.buffer(PIECE_BYTES);
  }

  /**
   * Goes once through what was not read back since it was written. Errors: io, for a chunk that stays wrong, or whose
   * content the source does not have any more; those of requests; JobCancelled. `mayRest`: it gives way to others in between.
   */
  async run(hold: Hold, mayRest: boolean): Promise<void> {
    const { job, hashes, target } = this.#options;
    const { pace } = job;
    const { unchecked } = hashes;
    for (let at = hashes.next(0, unchecked); at; at = hashes.next(at.offset + at.lengthBytes, unchecked)) {
      const end = at.offset + at.lengthBytes;
      for (let offset = at.offset; offset < end;) {
        if (mayRest) await pace.checkpoint(() => undefined);
        else if (pace.isCancelled) throw new JobCancelled();
        const lengthBytes = at.isZero ? end - offset : Math.min(end - offset, PIECE_BYTES);
        const piece = { offset, lengthBytes };
        let done = 0;
        await hold(piece, async () => {
          done = await this.#checkFirst(piece);
        });
        offset += done;
      }
    }
    if (!this.#hasRepaired) return;
    this.#hasRepaired = false;
    await this.#ask('write', () => target.flush());
  }

  /** Answers how long the first part is that it looked at. */
  async #checkFirst({ offset, lengthBytes }: Stretch): Promise<number> {
    const { hashes, target } = this.#options;
    if (hashes.isZero(offset)) {
      const status = await whenOpen(target, () => statusOrData(target.node, offset, lengthBytes));
      const whole = Math.min(status.lengthBytes, lengthBytes);
      const alike = whole === lengthBytes ? whole : whole - (whole % hashes.chunkBytes);
      // Guests may have written some of it since.
      const isAllZero = this.#zeroEnd(offset, alike) === offset + alike;
      if (status.zero && alike > 0 && isAllZero) {
        hashes.unchecked.reset(offset, alike);
        return alike;
      }
    }
    const part = { offset, lengthBytes: Math.min(lengthBytes, PIECE_BYTES) };
    hashes.unchecked.reset(part.offset, part.lengthBytes);
    for (const chunk of await this.#differing(target, part)) await this.#repair(chunk);
    return part.lengthBytes;
  }

  #zeroEnd(offset: number, lengthBytes: number): number {
    const { hashes } = this.#options;
    const stretch = hashes.next(offset);
    if (stretch?.offset !== offset || !stretch.isZero) return offset;
    return Math.min(offset + stretch.lengthBytes, offset + lengthBytes);
  }

  async #differing(from: BlockBackend, { offset, lengthBytes }: Stretch): Promise<number[]> {
    const buffer = this.#buffer.subarray(0, lengthBytes);
    await this.#ask('read', () => from.read(offset, buffer));
    return this.#options.hashes.differing(offset, buffer);
  }

  async #repair(offset: number): Promise<void> {
    const { job, hashes, source, target } = this.#options;
    const lengthBytes = hashes.lengthAt(offset / hashes.chunkBytes);
    const chunk = { offset, lengthBytes };
    for (let attempt = 1; attempt < ATTEMPTS; attempt++) {
      const isGone = (await this.#differing(source, chunk)).length > 0;
      job.tellsChunk(chunk, isGone ? 'report' : 'copied-again');
      if (isGone) throw different(chunk, 'and the source does not have any more what was to be copied there');
      await this.#ask('write', () => target.write(offset, this.#buffer.subarray(0, lengthBytes)));
      this.#hasRepaired = true;
      if ((await this.#differing(target, chunk)).length === 0) return;
    }
    job.tellsChunk(chunk, 'report');
    throw different(chunk, `and did so ${ATTEMPTS} times`);
  }

  async #ask(operation: 'read' | 'write', request: () => Promise<void>): Promise<void> {
    const { job, target } = this.#options;
    try {
      await whenOpen(target, request);
    } catch (error) {
      throw job.ioError(operation, error, 'lost');
    }
  }
}

function different({ offset, lengthBytes }: Stretch, how: string): BlockError {
  const text = `The copy differs from what was sent in ${lengthBytes} bytes at ${offset}, ${how}`;
  return new BlockError('io', text, { errno: 'EIO', offset });
}
