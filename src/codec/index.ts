/// <reference types="node" preserve="true" />
export { expandAdc } from './adc.js';
export { type AesParameters, aesCbc, aesCtr, aesEcb, aesXts } from './aes.js';
export { mergeStripes } from './anti-forensic.js';
export { bunzip2 } from './bzip2.js';
export { adler32, crc32, sha256, SHA256_BYTES, sha256Chunks } from './checksum.js';
export { crc32c } from './crc32c.js';
export { deflateRaw, type DeflateParameters, inflateRaw, inflateZlib } from './deflate.js';
export { passwordKey, type PasswordKeyParameters } from './password-key.js';
export type { InitialVector } from './sector-vectors.js';
export {
  canCompressZstd,
  checkZstdCompress,
  zstdCompress,
  type ZstdCompressParameters,
  zstdDecompress,
} from './zstd.js';
