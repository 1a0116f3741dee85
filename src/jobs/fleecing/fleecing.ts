import type { BlockBackend } from '../../block/backend.js';
import { type CopyTurn, whenOpen } from '../../block/copy-turn.js';
import type { Stretch } from '../../block/dirty-bitmap.js';
import type { Mover } from '../block-copy.js';
import type { UnitPart } from '../copy-target.js';
import type { CopyWindow } from '../copy-window.js';
import type { FailureFate } from '../job-errors.js';
import type { PassedParts } from '../passed/passed-job.js';
import type { FleecingBuffer, PassedBuffer } from './fleecing-buffer.js';

/** What another process is told. A type alias: it is JSON. */
export type PassedFleecing = {
  buffer: PassedBuffer;
  /** Those of data have their bytes among the parts, in order. */
  carried: Array<{ offset: number; lengthBytes: number; isData: boolean }>;
};

export interface FleecingOptions {
  readonly buffer: FleecingBuffer;
  readonly source: BlockBackend;
  readonly target: BlockBackend;
  readonly mover: Mover;
  readonly window: CopyWindow;
  /** The buffer cannot keep a guest's: the backup is over, and the guest goes on. */
  readonly failed: (error: unknown) => void;
}

/**
 * Between guests and the target of a backup: what is copied is read into memory (the job's, within its window) or into the
 * buffer (guests'), and from then on guests may change it. Nobody's write waits for the target.
 */
export class Fleecing {
  readonly #options: FleecingOptions;
  /** Read, and not in the target. */
  readonly #carried: UnitPart[] = [];
  #carriedBytes = 0;

  constructor(options: FleecingOptions) {
    this.#options = options;
  }

  /** What the target lacks that is not due any more. */
  get pendingBytes(): number {
    return this.#carriedBytes + this.#options.buffer.keptBytes;
  }

  /** For goOnFrom() in another process; nothing is in flight. Errors: unsupported, where files cannot be passed. */
  passed(): { data: PassedFleecing; parts: PassedParts; files: number[] } {
    const { data, places, files } = this.#options.buffer.passed();
    return {
      data: {
        buffer: data,
        carried: this.#carried.map(({ offset, lengthBytes, buffer }) => ({
          ...{ offset, lengthBytes, isData: buffer !== undefined },
        })),
      },
      parts: {
        buffer: [places],
        carried: this.#carried.flatMap(({ lengthBytes, buffer }) => buffer?.subarray(0, lengthBytes) ?? []),
      },
      files,
    };
  }

  /** What was carried there is carried here: goOn() brings it on. */
  goOnFrom({ carried }: PassedFleecing, parts: PassedParts): void {
    const bytes = [...(parts['carried'] ?? [])];
    for (const { isData, ...stretch } of carried) {
      const one = isData ? bytes.shift() : undefined;
      this.#carried.push({ ...stretch, ...(one && { buffer: Buffer.from(one), isOwn: true }) });
      this.#carriedBytes += stretch.lengthBytes;
    }
  }

  /** Begins to bring on what is carried before anything was taken. */
  async goOn(): Promise<void> {
    if (this.#carried.length === 0) return;
    await this.#options.window.room();
    this.#options.window.launch(0, () => this.carry());
  }

  /** Of the bounded part: what is beyond has its own place. */
  info(maxBytes: number): { used: number; peak: number; max: number } {
    const { usedBytes, peakBytes } = this.#options.buffer;
    return { used: usedBytes, peak: peakBytes, max: maxBytes };
  }

  *pending(): Generator<Stretch> {
    yield* this.#carried;
    yield* this.#options.buffer.stretches();
  }

  /** Whole granules that a guest is about to change: to the buffer. Answers how long they are. */
  async keepFor({ offset, lengthBytes }: Stretch, fate: FailureFate): Promise<number> {
    const { buffer, mover, failed } = this.#options;
    const bytes = await mover.readWhole({ offset, lengthBytes }, fate);
    try {
      await buffer.keep(offset, bytes);
    } catch (error) {
      failed(error);
      throw error;
    }
    return lengthBytes;
  }

  /** Granules that the job copies: into memory, from which carry() brings them on. */
  async take(turn: CopyTurn, stretch: Stretch): Promise<number> {
    const parts = await this.#options.mover.take(turn, stretch, 'policy');
    this.#carried.push(...parts);
    this.#carriedBytes += parts.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
    return stretch.lengthBytes;
  }

  /** Brings what was taken to the target, whoever took it. Errors: those of the target; what failed is carried still. */
  async carry(): Promise<void> {
    const { mover, target } = this.#options;
    for (let part = this.#carried.shift(); part; part = this.#carried.shift()) {
      const one = part;
      try {
        await whenOpen(target, () => mover.target.put(one, 'policy'));
        this.#carriedBytes -= one.lengthBytes;
      } catch (error) {
        this.#carried.unshift(one);
        throw error;
      }
    }
  }

  /** Begins to bring something from the buffer to the target; false: nothing is there. After window.room(). */
  launch(): boolean {
    const { buffer, window, mover, target } = this.#options;
    const stretch = buffer.takeOut();
    if (!stretch) return false;
    window.launch(stretch.lengthBytes, async () => {
      const bytes = Buffer.allocUnsafe(stretch.lengthBytes);
      await buffer.read(stretch, bytes);
      await whenOpen(target, () => mover.target.putWhole(stretch.offset, bytes, 'policy'));
      buffer.done(stretch);
    });
    return true;
  }

  /** All that was kept is in the target. */
  async finish(untilRoom: () => Promise<void> | undefined): Promise<void> {
    const { buffer, window } = this.#options;
    while (!buffer.isEmpty || this.#carried.length > 0) {
      await untilRoom();
      if (this.launch()) continue;
      await window.finish();
      await this.carry();
    }
  }

  close(): Promise<void> {
    return this.#options.buffer.close();
  }
}
