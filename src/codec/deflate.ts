import { assert } from '../base/assert.js';
import type { ComputeFunction } from '../host/compute.js';
import { KiB } from '../base/limits.js';
import { brokenData } from './broken.js';
import { codecProgram } from './program.js';

/** Raw deflate (RFC 1951): no header, no checksum. */
export interface DeflateParameters {
  /** Log 2 of the window's bytes, 9 to 15. qcow2 uses 12. */
  windowBits: number;
  /** 1 to 9, or -1: zlib's default. */
  level?: number;
}

const zlib = (): typeof import('node:zlib') => process.getBuiltinModule('node:zlib');

/** zlib's most: its answer differs from that of its default of 8, and qcow2's other writers use it. */
const MEMORY_LEVEL = 9;

/**
 * Decompresses one stream; what follows it in `input` is left alone. Answers the bytes of output. Throws 'corrupt' when
 * the stream is broken, ends early, or makes more than `output` takes.
 */
export const inflateRaw: ComputeFunction<Pick<DeflateParameters, 'windowBits'>> = {
  program: codecProgram,
  name: 'inflate-raw',
  maxSyncBytes: 24 * KiB,
  run: (input, output, { windowBits }) =>
    decoded(output, () => zlib().inflateRawSync(input, { windowBits, ...sizedFor(output.byteLength) })),
};

/** The same of a zlib stream (RFC 1950), whose checksum must be right. */
export const inflateZlib: ComputeFunction<undefined> = {
  program: codecProgram,
  name: 'inflate-zlib',
  maxSyncBytes: 24 * KiB,
  run: (input, output) => decoded(output, () => zlib().inflateSync(input, sizedFor(output.byteLength))),
};

function decoded(output: Uint8Array, decode: () => Buffer): number {
  try {
    const bytes = decode();
    output.set(bytes);
    return bytes.byteLength;
  } catch (cause) {
    throw brokenData(textOf(cause), cause);
  }
}

/** Answers the compressed length; 0 when that is more than `output` takes. */
export const deflateRaw: ComputeFunction<DeflateParameters> = {
  program: codecProgram,
  name: 'deflate-raw',
  maxSyncBytes: 9 * KiB,
  run(input, output, { windowBits, level = -1 }) {
    const options = { windowBits, level, memLevel: MEMORY_LEVEL, ...sizedFor(output.byteLength) };
    const bytes = withinSize(() => zlib().deflateRawSync(input, options));
    if (!bytes) return 0;
    output.set(bytes);
    return bytes.byteLength;
  },
};

/** Output in one piece, and an error past it. One byte more, or zlib begins a second piece to see that there is none. */
export function sizedFor(outputBytes: number): { chunkSize: number; maxOutputLength: number } {
  assert(outputBytes > 0, 'a codec needs room for its output');
  return { chunkSize: Math.max(64, outputBytes + 1), maxOutputLength: outputBytes };
}

/** What a function of node:zlib answers; undefined when that is longer than its maxOutputLength. */
export function withinSize(compress: () => Buffer): Buffer | undefined {
  try {
    return compress();
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ERR_BUFFER_TOO_LARGE') return undefined;
    throw error;
  }
}

function textOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
