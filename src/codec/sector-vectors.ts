/**
 * A sector's initial vector, made of its number: its low 32 bits (`plain`), all 64 bits (`plain64`), or those encrypted
 * by the hash of the key (`essiv-sha256`), little-endian, then zeroes. As LUKS and dm-crypt name them.
 */
export type InitialVector = 'plain' | 'plain64' | 'essiv-sha256';

export const IV_BYTES = 16;

/** One after the other, those of so many sectors. */
export function sectorVectors(
  kind: InitialVector,
  key: Uint8Array,
  firstSector: number,
  sectorCount: number,
): Uint8Array {
  const vectors = new Uint8Array(sectorCount * IV_BYTES);
  const view = new DataView(vectors.buffer);
  for (let i = 0; i < sectorCount; i++) {
    const sector = firstSector + i;
    view.setUint32(i * IV_BYTES, sector % 2 ** 32, true);
    if (kind !== 'plain') view.setUint32(i * IV_BYTES + 4, Math.floor(sector / 2 ** 32), true);
  }
  return kind === 'essiv-sha256' ? encrypted(vectors, key) : vectors;
}

function encrypted(vectors: Uint8Array, key: Uint8Array): Uint8Array {
  const { createCipheriv, createHash } = process.getBuiltinModule('node:crypto');
  const salt = createHash('sha256').update(key).digest();
  return createCipheriv('aes-256-ecb', salt, null).setAutoPadding(false).update(vectors);
}
