import { alignDown, alignUp } from '../../base/align.js';
import { errnoError } from '../../base/error.js';
import type { ChildIo } from '../../block/driver.js';
import type { DirtyBitmap } from '../../block/dirty-bitmap.js';
import type { BlockStatus, IoRequest } from '../../block/request.js';
import type { SnapshotAccess } from '../../block/snapshot-access.js';
import type { CopyBeforeWrite } from './point-in-time.js';

export interface CopyBeforeWriteChildren {
  readonly file: () => ChildIo;
  readonly target: () => ChildIo;
}

/** The point in time that a copy-before-write keeps: in the disk itself what is still due, in the target the rest. */
export class KeptSnapshot implements SnapshotAccess {
  readonly lengthBytes: number;
  readonly #children: CopyBeforeWriteChildren;
  readonly #pointInTime: CopyBeforeWrite;
  /** What is kept. */
  readonly #access: DirtyBitmap;
  #isLost = false;

  constructor(
    children: CopyBeforeWriteChildren,
    pointInTime: CopyBeforeWrite,
    access: DirtyBitmap,
    lengthBytes = access.sizeBytes,
  ) {
    this.#children = children;
    this.#pointInTime = pointInTime;
    this.#access = access;
    this.lengthBytes = lengthBytes;
  }

  get isLost(): boolean {
    return this.#isLost;
  }

  /** A guest's change went on that could not be kept from it. */
  lose(): void {
    this.#isLost = true;
  }

  /** How long a first part of a stretch is kept. Errors: EACCES for none. */
  #keptBytes(offset: number, lengthBytes: number): number {
    const kept = this.#access.nextClean(offset, offset + lengthBytes) - offset;
    if (this.#isLost || kept <= 0) throw errnoError('EACCES');
    return kept;
  }

  #assertKept(offset: number, lengthBytes: number): void {
    if (this.#keptBytes(offset, lengthBytes) < lengthBytes) throw errnoError('EACCES');
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    this.#assertKept(offset, lengthBytes);
    for (let done = 0; done < lengthBytes;) {
      const at = offset + done;
      done += await this.#pointInTime.readFirst(at, lengthBytes - done, async (child, length) => {
        request.assertIs(generation);
        const io = this.#children[child]();
        if (!io.tryReadPart(request, from + done, length, at))
          await io.readPart(request, from + done, length, at);
      });
      request.assertIs(generation);
    }
    // It may have been lost, or given away, meanwhile.
    this.#assertKept(offset, lengthBytes);
  }

  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    const kept = this.#keptBytes(offset, lengthBytes);
    let answer: BlockStatus | undefined;
    const length = await this.#pointInTime.readFirst(offset, kept, async (child, part) => {
      const { lengthBytes: alike, zero, data } = await this.#children[child]().chainStatus(offset, part);
      answer = { lengthBytes: Math.min(alike, part), allocated: true, zero, data: data || !zero };
    });
    return answer ?? { lengthBytes: length, allocated: true, zero: false, data: true };
  }

  /** Whole clusters only. */
  async discard(offset: number, lengthBytes: number): Promise<void> {
    const unit = this.#access.granularityBytes;
    const start = alignUp(offset, unit);
    const end = offset + lengthBytes;
    const stop = end === this.lengthBytes ? end : alignDown(end, unit);
    if (stop <= start) return;
    this.#access.reset(start, stop - start);
    await this.#pointInTime.skip(start, stop - start);
    await this.#children.target().discard(start, stop - start);
  }
}
