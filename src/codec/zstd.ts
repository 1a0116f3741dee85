import type * as Zlib from 'node:zlib';
import { BlockError } from '../base/error.js';
import { defined } from '../base/assert.js';
import { KiB } from '../base/limits.js';
import type { ComputeFunction } from '../host/compute.js';
import { systemZstd } from '../host/zstd-library.js';
import { brokenData } from './broken.js';
import { sizedFor, withinSize } from './deflate.js';
import { codecProgram } from './program.js';
import { zstdFrameBytes } from './zstd-frame.js';

/** What node:zlib has of it from Node 22.15 and 23.8 on. */
interface ZlibWithZstd {
  zstdCompressSync(input: Uint8Array, options: object): Buffer;
  zstdDecompressSync(input: Uint8Array, options: object): Buffer;
  constants: typeof Zlib.constants & { ZSTD_c_compressionLevel: number };
}

/** Answers how many bytes of `output` a frame's content fills; undefined when the frame is broken or makes more. */
type Decoder = (frame: Uint8Array, output: Uint8Array) => number | undefined;

/** Whether node:zlib has zstd: known without loading it. */
const hasNodeZstd = 'zstd' in process.versions;

const zlib = (): ZlibWithZstd => process.getBuiltinModule('node:zlib') as unknown as ZlibWithZstd;

export interface ZstdCompressParameters {
  /** 1 to 22, or zstd's default of 3. */
  level?: number;
}

export const canCompressZstd = (): boolean => hasNodeZstd || systemZstd() !== undefined;

/** Throws 'unsupported' where zstd can only be decompressed. */
export function checkZstdCompress(): void {
  if (!canCompressZstd())
    throw new BlockError(
      'unsupported',
      `zstd compression needs Node.js 22.15 or later (this is ${process.version}) or libzstd.so.1 of the system`,
    );
}

/**
 * Decompresses frame after frame until `output` is full; what follows in `input` is left alone. Answers the bytes of
 * output. Throws 'corrupt' when a frame is broken or makes more than `output` takes. Where node:zlib lacks zstd it is
 * done by the system's library, else by the decoder of the package zstddec (WebAssembly), in threads.
 */
export const zstdDecompress: ComputeFunction<undefined> = {
  program: codecProgram,
  name: 'zstd-decompress',
  maxSyncBytes: 96 * KiB,
  ...(!hasNodeZstd && { prepare: loadDecoder }),
  run(input, output) {
    const decode = hasNodeZstd ? nodeDecoder : defined(loadedDecoder, 'the zstd decoder');
    let doneBytes = 0;
    for (let at = 0; doneBytes < output.byteLength;) {
      const frameBytes = zstdFrameBytes(input.subarray(at));
      if (frameBytes === undefined) {
        if (at > 0) break;
        throw broken();
      }
      const bytes = decode(input.subarray(at, at + frameBytes), output.subarray(doneBytes));
      if (bytes === undefined) throw broken();
      doneBytes += bytes;
      at += frameBytes;
    }
    return doneBytes;
  },
};

/** Answers the compressed length; 0 when that is more than `output` takes. Throws 'unsupported' (checkZstdCompress). */
export const zstdCompress: ComputeFunction<ZstdCompressParameters> = {
  program: codecProgram,
  name: 'zstd-compress',
  maxSyncBytes: 32 * KiB,
  run(input, output, { level = 3 }) {
    checkZstdCompress();
    if (!hasNodeZstd) return defined(systemZstd(), "the system's zstd").compress(input, output, level);
    const params = { [zlib().constants.ZSTD_c_compressionLevel]: level };
    const options = { params, ...sizedFor(output.byteLength) };
    const bytes = withinSize(() => zlib().zstdCompressSync(input, options));
    if (!bytes) return 0;
    output.set(bytes);
    return bytes.byteLength;
  },
};

function broken(cause?: unknown): BlockError {
  return brokenData('not a zstd frame that fits', cause);
}

const nodeDecoder: Decoder = (frame, output) => {
  try {
    const bytes = zlib().zstdDecompressSync(frame, sizedFor(output.byteLength));
    output.set(bytes);
    return bytes.byteLength;
  } catch {
    return undefined;
  }
};

/** Loaded once a thread. */
let loadedDecoder: Decoder | undefined;

async function loadDecoder(): Promise<void> {
  const zstd = systemZstd();
  loadedDecoder ??= zstd ? (frame, output) => zstd.decompress(frame, output) : await packageDecoder();
}

/** The package's, which is loaded as a module is. */
export async function packageDecoder(): Promise<Decoder> {
  const { ZSTDDecoder } = await import('zstddec');
  const decoder = new ZSTDDecoder();
  await decoder.init();
  return (frame, output) => {
    const bytes = decoder.decode(frame, output.byteLength);
    // It answers nothing for what it cannot decode.
    if (bytes.byteLength === 0) return undefined;
    output.set(bytes);
    return bytes.byteLength;
  };
}
