import { type DirtyBitmap, roundOut } from '../block/dirty-bitmap.js';
import type { Node } from '../block/node.js';

/**
 * What a target may have lost of a point in time is due again, except where guests have changed it since: there nobody has it.
 * Both bitmaps have the same granules.
 */
export function dueAgain(target: Node, due: DirtyBitmap, changed: DirtyBitmap): void {
  for (const { offset, lengthBytes } of target.instance.takeDoubtful?.() ?? []) {
    if (offset >= due.sizeBytes) continue;
    const whole = roundOut(offset, lengthBytes, due.granularityBytes);
    const end = Math.min(whole.offset + whole.lengthBytes, due.sizeBytes);
    for (let at = changed.nextClean(whole.offset, end); at < end; at = changed.nextClean(at, end)) {
      const next = changed.nextDirty(at, end)?.offset ?? end;
      due.set(at, next - at);
      at = next;
    }
  }
}
