import { alignDown, alignUp } from '../../base/align.js';
import type { ChildIo } from '../../block/driver.js';
import { Flag } from '../../block/request.js';
import { readBytes } from '../tables/read-bytes.js';
import { SECTOR_BYTES, type SectorCipher } from './sector-cipher.js';

/** Where bytes lie encrypted. Sectors there are sectors of what the vectors are made of, too. */
export interface EncryptedPlace {
  readonly child: ChildIo;
  readonly hostOffset: number;
  /** The offset whose sector numbers the vectors are made of. */
  readonly vectorOffset: number;
}

export async function readEncrypted(
  cipher: SectorCipher,
  { child, hostOffset, vectorOffset }: EncryptedPlace,
  buffer: Uint8Array,
): Promise<void> {
  const head = hostOffset % SECTOR_BYTES;
  const length = alignUp(head + buffer.length, SECTOR_BYTES);
  const isWhole = length === buffer.length && hostOffset + length <= child.lengthBytes;
  const first = (vectorOffset - head) / SECTOR_BYTES;
  if (isWhole) {
    if (!child.tryRead(hostOffset, buffer)) await child.read(hostOffset, buffer);
    return cipher.decrypt(first, buffer);
  }
  const sectors = await readBytes(child, hostOffset - head, length);
  await cipher.decrypt(first, sectors);
  buffer.set(sectors.subarray(head, head + buffer.length));
}

/** Of sectors that are written in part the rest is read first: the caller holds them alone. */
export async function writeEncrypted(
  cipher: SectorCipher,
  { child, hostOffset, vectorOffset }: EncryptedPlace,
  bytes: Uint8Array,
): Promise<void> {
  const start = alignDown(hostOffset, SECTOR_BYTES);
  const head = hostOffset - start;
  const length = alignUp(head + bytes.length, SECTOR_BYTES);
  const first = (vectorOffset - head) / SECTOR_BYTES;
  let whole = bytes;
  if (length !== bytes.length) {
    whole = Buffer.alloc(length);
    const last = length - SECTOR_BYTES;
    for (const at of head > 0 && last > 0 ? [0, last] : [head > 0 ? 0 : last]) {
      const sector = await readBytes(child, start + at, SECTOR_BYTES);
      await cipher.decrypt(first + at / SECTOR_BYTES, sector);
      whole.set(sector, at);
    }
    whole.set(bytes, head);
  }
  const encrypted = await cipher.encrypt(first, whole);
  if (!child.tryWrite(start, encrypted, Flag.none)) await child.write(start, encrypted, Flag.none);
}
