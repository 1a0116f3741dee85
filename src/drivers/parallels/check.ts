import type { ChildIo, ImageCheck, RepairMode } from '../../block/driver.js';
import { nothingFound } from '../tables/check-result.js';
import { readBytes } from '../tables/read-bytes.js';
import { FieldAt, HEADER_BYTES, type ParallelsHeader } from './header.js';

const PIECE_ENTRIES = 65536;

/** Errors: io. Findings in QEMU's words; what is repaired is durable on return. */
export async function checkParallels(
  file: ChildIo,
  header: ParallelsHeader,
  repair: RepairMode,
  say: (line: string) => void,
): Promise<ImageCheck> {
  const result = nothingFound(header.clusters);
  const fixes = repair === 'all';
  const verb = (isFixed: boolean): string => (isFixed ? 'Repairing' : 'ERROR');
  if (header.isInUse) {
    say(`${verb(fixes)} image was not closed correctly`);
    result.corruptions++;
    if (fixes) result.corruptionsFixed++;
  }
  await checkTable(file, header, result, fixes, say);
  const fileBytes = file.lengthBytes;
  if (fileBytes > result.imageEndOffset) {
    const leakedBytes = fileBytes - result.imageEndOffset;
    const isFixed = repair !== 'none';
    say(`${verb(isFixed)} space leaked at the end of the image ${leakedBytes}`);
    const count = Math.ceil(leakedBytes / header.clusterBytes);
    result.leaks += count;
    if (isFixed) {
      await file.truncate(result.imageEndOffset);
      result.leaksFixed += count;
    }
  }
  if (fixes && header.isInUse) await file.write(FieldAt.inUse, Buffer.alloc(4), 0);
  if (repair !== 'none') await file.flush();
  return result;
}

/** Clusters outside the file are given up. */
async function checkTable(
  file: ChildIo,
  { clusters, clusterBytes, unitBytes, dataOffset }: ParallelsHeader,
  result: ImageCheck,
  fixes: boolean,
  say: (line: string) => void,
): Promise<void> {
  let [before, end] = [0, 0];
  for (let first = 0; first < clusters; first += PIECE_ENTRIES) {
    const count = Math.min(PIECE_ENTRIES, clusters - first);
    const at = HEADER_BYTES + first * 4;
    const entries = await readBytes(file, at, count * 4);
    let isChanged = false;
    for (let i = 0; i < count; i++) {
      const offset = entries.readUInt32LE(i * 4) * unitBytes;
      if (offset === 0) {
        before = 0;
        continue;
      }
      if (offset >= file.lengthBytes) {
        say(`${fixes ? 'Repairing' : 'ERROR'} cluster ${first + i} is outside image`);
        result.corruptions++;
        if (fixes) {
          before = 0;
          entries.writeUInt32LE(0, i * 4);
          isChanged = true;
          result.corruptionsFixed++;
          continue;
        }
      }
      result.allocatedClusters++;
      end = Math.max(end, offset + clusterBytes);
      if (before !== 0 && before + clusterBytes !== offset) result.fragmentedClusters++;
      before = offset;
    }
    if (isChanged) await file.write(at, entries, 0);
  }
  result.imageEndOffset = end === 0 ? dataOffset : end;
}
