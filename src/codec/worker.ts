import { serveCompute } from '../host/compute-server.js';
import { aesCbc, aesXts } from './aes.js';
import { sha256, sha256Chunks } from './checksum.js';
import { deflateRaw, inflateRaw } from './deflate.js';
import { zstdCompress, zstdDecompress } from './zstd.js';

// What a compute thread runs.
serveCompute([inflateRaw, deflateRaw, zstdDecompress, zstdCompress, sha256, sha256Chunks, aesXts, aesCbc]);
