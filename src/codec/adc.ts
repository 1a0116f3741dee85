import { KiB } from '../base/limits.js';
import type { ComputeFunction } from '../host/compute.js';
import { brokenData } from './broken.js';
import { codecProgram } from './program.js';

/**
 * Decompresses Apple Data Compression, as libyal's "Mac OS disk image types" describes it: literal bytes, and copies of what
 * came before, of 64 KiB at most. Answers the bytes of output. Throws 'corrupt' when the data is broken, ends early, or makes
 * more than `output` takes.
 */
export const expandAdc: ComputeFunction<undefined> = {
  program: codecProgram,
  name: 'expand-adc',
  maxSyncBytes: 24 * KiB,
  run(input, output) {
    let filled = 0;
    for (let at = 0; at < input.length;) {
      const control = input[at] ?? 0;
      if (control >= 0x80) {
        const length = control - 0x7f;
        if (at + 1 + length > input.length || filled + length > output.length) throw brokenData();
        output.set(input.subarray(at + 1, at + 1 + length), filled);
        at += 1 + length;
        filled += length;
        continue;
      }
      const isLong = control >= 0x40;
      const [second = 0, third = 0] = input.subarray(at + 1, at + 3);
      at += isLong ? 3 : 2;
      const length = isLong ? control - 0x40 + 4 : (control >> 2) + 3;
      const distance = 1 + (isLong ? second * 256 + third : (control & 3) * 256 + second);
      if (at > input.length || distance > filled || filled + length > output.length) throw brokenData();
      // What is copied may be what this has just copied.
      for (let end = filled + length; filled < end; filled++) output[filled] = output[filled - distance] ?? 0;
    }
    return filled;
  },
};
