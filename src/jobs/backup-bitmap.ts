import { assert } from '../base/assert.js';
import { DirtyBitmap, type Stretch } from '../block/dirty-bitmap.js';
import type { Node } from '../block/node.js';
import type { BitmapMode } from './plans/backup.js';

/** The user's bitmap of what a backup copies: meanwhile, a successor records. */
export function holdBitmap(source: Node, bitmap: DirtyBitmap): void {
  bitmap.busy = true;
  bitmap.successor = new DirtyBitmap(bitmap.sizeBytes, bitmap.granularityBytes);
  bitmap.successor.enabled = bitmap.enabled;
  source.dirtyBitmaps.push(bitmap.successor);
}

/** What a held bitmap has, and what records beside it. */
export function heldBits(bitmap: DirtyBitmap): { held?: Uint8Array; successor?: DirtyBitmap } {
  const { successor } = bitmap;
  return successor ? { held: bitmap.bytes(), successor } : {};
}

/** As it was in another process, of which the bitmap came with both. */
export function holdBitmapAgain(
  source: Node,
  bitmap: DirtyBitmap,
  { held, recorded, records }: { held: Uint8Array; recorded: Uint8Array; records: boolean },
): void {
  bitmap.resetAll();
  bitmap.deserialise(0, held);
  holdBitmap(source, bitmap);
  if (!bitmap.successor) return;
  bitmap.successor.enabled = records;
  bitmap.successor.deserialise(0, recorded);
}

export interface BackupEnd {
  readonly mode: BitmapMode | undefined;
  readonly hasSucceeded: boolean;
  /** Of a backup that failed: what it copied is in the target for good. */
  readonly isDurable: boolean;
  /** What was not copied. */
  readonly due: DirtyBitmap;
  /** The same, of what was not due any more. */
  readonly left: readonly Stretch[];
}

/** What the user's bitmap holds after the job, by bitmap-mode. */
export function settleBitmap(
  source: Node,
  bitmap: DirtyBitmap,
  { mode, hasSucceeded, isDurable, due, left }: BackupEnd,
): void {
  const { successor } = bitmap;
  if (!successor) return;
  const replace = mode === 'always' ? hasSucceeded || isDurable : mode === 'on-success' && hasSucceeded;
  if (replace) {
    bitmap.resetAll();
    if (!hasSucceeded) {
      bitmap.merge(due);
      for (const { offset, lengthBytes } of left) bitmap.set(offset, lengthBytes);
    }
  }
  bitmap.merge(successor);
  bitmap.successor = undefined;
  forgetBitmap(source, successor);
  if (replace) source.changeLog?.shrunk();
  bitmap.busy = false;
}

/** A bitmap of a job's own records no more. */
export function forgetBitmap({ dirtyBitmaps }: Node, bitmap: DirtyBitmap): void {
  const index = dirtyBitmaps.indexOf(bitmap);
  assert(index >= 0, "a job's bitmap is on its node");
  dirtyBitmaps.splice(index, 1);
}
