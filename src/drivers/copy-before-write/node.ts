import { alignDown } from '../../base/align.js';
import { NEVER_HELD } from '../../block/copy-turn.js';
import { MiB } from '../../base/limits.js';
import type { DirtyBitmap, Stretch } from '../../block/dirty-bitmap.js';
import { Flag } from '../../block/request.js';
import type { PassedMemory } from '../../host/passing.js';
import type { SnapshotAccess } from '../../block/snapshot-access.js';
import { PassThrough } from '../pass-through/pass-through.js';
import { CopyBitmaps } from './bitmaps.js';
import { type CopyBeforeWriteChildren, KeptSnapshot } from './kept-snapshot.js';
import { CopyBeforeWrite, type CopyBeforeWriteOptions } from './point-in-time.js';

/** Most that is copied at a time. */
const PIECE_BYTES = MiB;

export interface CopyBeforeWriteSettings {
  readonly clusterBytes: number;
  /** What the point in time is kept of; absent: all. */
  readonly bitmap?: DirtyBitmap | undefined;
  readonly breaks: CopyBeforeWriteOptions['breaks'];
  readonly timeout?: CopyBeforeWriteOptions['timeout'];
  /** Of another process's, in the place of a point in time that begins now. */
  readonly memory?: PassedMemory | undefined;
}

/** Of the node, besides its options and bitmaps. */
interface Memory {
  sizeBytes: number;
  /** Of what is kept. */
  shownBytes: number;
  isLost: boolean;
}

function memoryOf({ data }: PassedMemory): Memory {
  return data as Memory;
}

/** A point in time that begins now. */
function newBitmaps(
  lengthBytes: number,
  { clusterBytes, bitmap }: Pick<CopyBeforeWriteSettings, 'clusterBytes' | 'bitmap'>,
): CopyBitmaps {
  const bitmaps = new CopyBitmaps(lengthBytes, clusterBytes);
  const { due, access } = bitmaps;
  if (bitmap) due.merge(bitmap);
  else due.setAll();
  access.merge(due);
  return bitmaps;
}

/**
 * Keeps what the disk held when the node was opened: before something is changed, it goes to the target. Others read
 * that moment through snapshotAccess.
 */
export class CopyBeforeWriteNode extends PassThrough {
  readonly #children: CopyBeforeWriteChildren;
  readonly #bitmaps: CopyBitmaps;
  readonly snapshotAccess: SnapshotAccess;
  readonly #pointInTime: CopyBeforeWrite;
  readonly #kept: KeptSnapshot;

  constructor(children: CopyBeforeWriteChildren, settings: CopyBeforeWriteSettings) {
    super(children.file);
    this.#children = children;
    const { clusterBytes, breaks, timeout, memory } = settings;
    this.#bitmaps = memory
      ? CopyBitmaps.from(memoryOf(memory).sizeBytes, clusterBytes, memory.parts)
      : newBitmaps(children.file().lengthBytes, settings);
    const { due, access } = this.#bitmaps;
    const pointInTime = new CopyBeforeWrite({
      due,
      sides: { source: NEVER_HELD, target: NEVER_HELD },
      copy: (_turn, stretch) => this.#copyFirst(stretch),
      breaks,
      failed: () => snapshot.lose(),
      timeout,
    });
    const shownBytes = memory && memoryOf(memory).shownBytes;
    const snapshot = new KeptSnapshot(children, pointInTime, access, shownBytes);
    this.snapshotAccess = this.#kept = snapshot;
    this.#pointInTime = pointInTime;
    this.gate = pointInTime;
    if (!memory || !memoryOf(memory).isLost) return;
    pointInTime.giveUp();
    snapshot.lose();
  }

  get memory(): PassedMemory {
    const { isLost, lengthBytes: shownBytes } = this.#kept;
    const data: Memory = { sizeBytes: this.#bitmaps.due.sizeBytes, shownBytes, isLost };
    return { data, parts: this.#bitmaps.parts };
  }

  get isWorking(): boolean {
    return this.#pointInTime.isCopying;
  }

  /** Those that the node has from the beginning. */
  get copyBitmaps(): readonly DirtyBitmap[] {
    const { due, written, access } = this.#bitmaps;
    return [due, written, access];
  }

  /** Whole clusters, or up to the end of the disk. */
  async #copyFirst({ offset, lengthBytes }: Stretch): Promise<number> {
    const { file, target } = this.#children;
    const unit = this.#bitmaps.due.granularityBytes;
    const length = Math.min(lengthBytes, Math.max(unit, alignDown(PIECE_BYTES, unit)));
    if (await this.#isAllZero(offset, length)) {
      await target().writeZeroes(offset, length, Flag.mayUnmap);
      return length;
    }
    const buffer = Buffer.allocUnsafe(length);
    if (!file().tryRead(offset, buffer)) await file().read(offset, buffer);
    if (!target().tryWrite(offset, buffer, Flag.none)) await target().write(offset, buffer, Flag.none);
    return length;
  }

  /** Where it cannot be had, it counts as data, and what is wrong with that shows when it is read. */
  async #isAllZero(offset: number, lengthBytes: number): Promise<boolean> {
    try {
      const status = await this.#children.file().chainStatus(offset, lengthBytes);
      return status.zero && status.lengthBytes >= lengthBytes;
    } catch {
      return false;
    }
  }

  /** What is cut off is copied first. */
  override async truncate(lengthBytes: number): Promise<void> {
    const lost = Math.min(this.lengthBytes, this.#bitmaps.due.sizeBytes) - lengthBytes;
    const cut = { kind: 'discard', offset: lengthBytes, lengthBytes: lost } as const;
    const forward = (): Promise<void> => super.truncate(lengthBytes);
    if (lost > 0) await this.#pointInTime.run(cut, forward);
    else await forward();
  }
}
