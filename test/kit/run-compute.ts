import type { ComputeFunction } from '../../src/host/compute.js';

/** Does it on the spot; answers its number and what it has written. */
export function runHere<P>(
  wanted: ComputeFunction<P>,
  input: Uint8Array,
  outputBytes: number,
  parameters: P,
): { value: number; output: Buffer } {
  const output = Buffer.alloc(outputBytes, 0xee);
  const value = wanted.run(input, output, parameters);
  return { value, output };
}
