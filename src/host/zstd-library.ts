import { loadKoffi } from './koffi.js';

/** The system's zstd. Neither function throws. */
export interface ZstdLibrary {
  /** Makes one frame; its length, or 0 when it does not fit into `output`. `level`: 1 to 22. */
  compress(input: Uint8Array, output: Uint8Array, level: number): number;
  /** The length of a frame's content; undefined when it is broken or does not fit into `output`. */
  decompress(frame: Uint8Array, output: Uint8Array): number | undefined;
}

const NAME = 'libzstd.so.1';
let loaded: { library: ZstdLibrary | undefined } | undefined;

/** Looked for once a thread; undefined where the system has none. */
export function systemZstd(): ZstdLibrary | undefined {
  loaded ??= { library: loadZstd(NAME) };
  return loaded.library;
}

/** For tests. */
export function loadZstd(name: string): ZstdLibrary | undefined {
  const koffi = loadKoffi();
  try {
    // Its own symbols first: a program may have other versions of them.
    const zstd = koffi.load(name, { deep: true });
    // Each call makes what it works in and gives it back: nothing would when the thread is ended.
    const compress = zstd.func(
      'size_t ZSTD_compress(void *output, size_t room, void *input, size_t n, int level)',
    );
    const decompress = zstd.func('size_t ZSTD_decompress(void *output, size_t room, void *input, size_t n)');
    // Its errors are negative numbers, which as a size_t are more than there is room.
    const within = (value: unknown, output: Uint8Array): number | undefined => {
      const length = Number(value);
      return length <= output.byteLength ? length : undefined;
    };
    return {
      compress: (input, output, level) =>
        within(compress(output, output.byteLength, input, input.byteLength, level), output) ?? 0,
      decompress: (frame, output) =>
        within(decompress(output, output.byteLength, frame, frame.byteLength), output),
    };
  } catch {
    return undefined;
  }
}
