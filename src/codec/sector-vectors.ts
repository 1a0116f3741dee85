/**
 * A sector's initial vector, made of its number: its low 32 bits (`plain`), all 64 bits (`plain64`), or those encrypted
 * by a hash of the key (`essiv`), little-endian, then zeroes. As LUKS and dm-crypt name them. The hash's length must be
 * that of an AES key.
 */
export type InitialVector = 'plain' | 'plain64' | 'essiv-md5' | 'essiv-sha256';

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
  if (kind === 'essiv-md5') return encrypted(vectors, key, 'md5');
  return kind === 'essiv-sha256' ? encrypted(vectors, key, 'sha256') : vectors;
}

function encrypted(vectors: Uint8Array, key: Uint8Array, hash: string): Uint8Array {
  const { createCipheriv, createHash } = process.getBuiltinModule('node:crypto');
  const salt = createHash(hash).update(key).digest();
  return createCipheriv(`aes-${salt.length * 8}-ecb`, salt, null)
    .setAutoPadding(false)
    .update(vectors);
}
