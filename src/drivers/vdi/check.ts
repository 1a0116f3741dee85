import { Bitmap } from '../../base/bitmap.js';
import type { ChildIo, ImageCheck } from '../../block/driver.js';
import { nothingFound } from '../tables/check-result.js';
import { eachUint32 } from '../tables/read-bytes.js';
import { BLOCK_BYTES, type VdiHeader } from './header.js';
import { DISCARDED } from './table.js';

/** Looks whether each block of the data area is used once, and as many as the header says. */
export async function checkVdi(
  file: ChildIo,
  header: VdiHeader,
  say: (line: string) => void,
): Promise<ImageCheck> {
  const { blocks } = header;
  const result = nothingFound();
  const used = new Bitmap(blocks);
  let allocated = 0;
  await eachUint32(file, header.mapOffset, blocks, true, (entry, index) => {
    if (entry >= DISCARDED) return;
    if (entry >= blocks) {
      say(`ERROR: block index ${index} out of range, is ${entry}`);
      result.corruptions++;
      return;
    }
    allocated++;
    if (used.get(entry)) {
      say(`ERROR: block index ${index} also used by another, is ${entry}`);
      result.corruptions++;
    }
    used.set(entry, entry + 1);
    if (header.dataOffset + entry * BLOCK_BYTES < file.lengthBytes) return;
    say(`ERROR: block index ${index} lies behind the end of the file, is ${entry}`);
    result.corruptions++;
  });
  if (allocated !== header.allocatedBlocks) {
    say(`ERROR: allocated blocks mismatch, is ${allocated}, should be ${header.allocatedBlocks}`);
    result.corruptions++;
  }
  return result;
}
