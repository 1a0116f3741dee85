import { serveCompute } from '../host/compute-server.js';
import { expandAdc } from './adc.js';
import { aesCbc, aesCtr, aesEcb, aesXts } from './aes.js';
import { mergeStripes } from './anti-forensic.js';
import { bunzip2 } from './bzip2.js';
import { sha256, sha256Chunks } from './checksum.js';
import { deflateRaw, inflateRaw, inflateZlib } from './deflate.js';
import { passwordKey } from './password-key.js';
import { zstdCompress, zstdDecompress } from './zstd.js';

// What a compute thread runs.
const aes = [aesXts, aesCbc, aesEcb, aesCtr];
const keys = [passwordKey, mergeStripes];
const expanders = [inflateZlib, bunzip2, expandAdc];
serveCompute([
  inflateRaw,
  deflateRaw,
  zstdDecompress,
  zstdCompress,
  sha256,
  sha256Chunks,
  ...aes,
  ...keys,
  ...expanders,
]);
