import type * as Zlib from 'node:zlib';
import { BlockError } from '../base/error.js';
import { defined } from '../base/assert.js';
import { KiB } from '../base/limits.js';
import type { ComputeFunction } from '../host/compute.js';
import { sizedFor, withinSize } from './deflate.js';
import { codecProgram } from './program.js';
import { zstdFrameBytes } from './zstd-frame.js';

/** What node:zlib has of it from Node 22.15 and 23.8 on. */
interface ZlibWithZstd {
  zstdCompressSync(input: Uint8Array, options: object): Buffer;
  zstdDecompressSync(input: Uint8Array, options: object): Buffer;
  constants: typeof Zlib.constants & { ZSTD_c_compressionLevel: number };
}

/** One frame's content; undefined when it is broken or longer than so many bytes. */
type Decoder = (frame: Uint8Array, mostBytes: number) => Uint8Array | undefined;

/** Whether node:zlib has zstd: known without loading it. */
const hasNodeZstd = 'zstd' in process.versions;

const zlib = (): ZlibWithZstd => process.getBuiltinModule('node:zlib') as unknown as ZlibWithZstd;

export interface ZstdCompressParameters {
  /** 1 to 22, or zstd's default of 3. */
  level?: number;
}

/** Throws 'unsupported' where zstd can only be decompressed. */
export function checkZstdCompress(): void {
  if (!hasNodeZstd)
    throw new BlockError(
      'unsupported',
      `zstd compression needs Node.js 22.15 or later, not ${process.version}`,
    );
}

/**
 * Decompresses frame after frame until `output` is full; what follows in `input` is left alone. Answers the bytes of
 * output. Throws 'corrupt' when a frame is broken or makes more than `output` takes. Where node:zlib lacks zstd it is
 * done by the decoder of the package zstddec (WebAssembly), in threads.
 */
export const zstdDecompress: ComputeFunction<undefined> = {
  program: codecProgram,
  name: 'zstd-decompress',
  maxSyncBytes: 96 * KiB,
  ...(!hasNodeZstd && { prepare: loadPackageDecoder }),
  run(input, output) {
    const decode = hasNodeZstd ? nodeDecoder : defined(packageDecoder, 'the zstd decoder');
    let doneBytes = 0;
    for (let at = 0; doneBytes < output.byteLength;) {
      const frameBytes = zstdFrameBytes(input.subarray(at));
      if (frameBytes === undefined) {
        if (at > 0) break;
        throw broken();
      }
      const bytes = decode(input.subarray(at, at + frameBytes), output.byteLength - doneBytes);
      if (!bytes) throw broken();
      output.set(bytes, doneBytes);
      doneBytes += bytes.byteLength;
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
    const params = { [zlib().constants.ZSTD_c_compressionLevel]: level };
    const options = { params, ...sizedFor(output.byteLength) };
    const bytes = withinSize(() => zlib().zstdCompressSync(input, options));
    if (!bytes) return 0;
    output.set(bytes);
    return bytes.byteLength;
  },
};

function broken(cause?: unknown): BlockError {
  return new BlockError('corrupt', 'Compressed data is broken: not a zstd frame that fits', {
    errno: 'EIO',
    cause,
  });
}

const nodeDecoder: Decoder = (frame, mostBytes) => {
  try {
    return zlib().zstdDecompressSync(frame, sizedFor(mostBytes));
  } catch {
    return undefined;
  }
};

/** Loaded as a module is, once a thread. */
let packageDecoder: Decoder | undefined;

async function loadPackageDecoder(): Promise<void> {
  if (packageDecoder) return;
  const { ZSTDDecoder } = await import('zstddec');
  const decoder = new ZSTDDecoder();
  await decoder.init();
  // It answers nothing for what it cannot decode.
  packageDecoder = (frame, mostBytes) => {
    const bytes = decoder.decode(frame, mostBytes);
    return bytes.byteLength > 0 ? bytes : undefined;
  };
}
