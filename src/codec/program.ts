import { fileURLToPath } from 'node:url';
import { dirname, isAbsolute, join } from 'node:path';
import type { ComputeProgram } from '../host/compute.js';

/** Set by the build: where the threads' file is, seen from the file that this module has become part of. */
declare const CODEC_WORKER: string | undefined;

/** The file of this module: its URL, in the program's CommonJS its path. */
const here = isAbsolute(import.meta.url) ? import.meta.url : fileURLToPath(import.meta.url);

/** Where threads find the codecs. */
export const codecProgram: ComputeProgram = {
  path: join(dirname(here), typeof CODEC_WORKER === 'undefined' ? 'worker.ts' : CODEC_WORKER),
};
