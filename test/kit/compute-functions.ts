import { fileURLToPath } from 'node:url';
import { BlockError } from '../../src/base/error.js';
import type { ComputeFunction, ComputeProgram } from '../../src/host/compute.js';

const program: ComputeProgram = { path: fileURLToPath(new URL('compute-worker.ts', import.meta.url)) };

/** Adds a number to each byte. */
export const add: ComputeFunction<number> = {
  program,
  name: 'add',
  maxSyncBytes: 64,
  run(input, output, summand) {
    for (const [i, byte] of input.entries()) output[i] = (byte + summand) % 256;
    return output.byteLength;
  },
};

export const refuse: ComputeFunction<undefined> = {
  program,
  name: 'refuse',
  maxSyncBytes: 0,
  run() {
    throw new BlockError('corrupt', 'these bytes are wrong', { errno: 'EIO' });
  },
};

/** Says that it runs by the first number of the output, and ends when the second is not zero any more. */
export const hold: ComputeFunction<undefined> = {
  program,
  name: 'hold',
  maxSyncBytes: 0,
  run(_input, output) {
    const words = new Int32Array(output.buffer, output.byteOffset, 2);
    Atomics.store(words, 0, 1);
    Atomics.notify(words, 0);
    Atomics.wait(words, 1, 0);
    return 0;
  },
};

/** Ends the thread that runs it. Where there is no thread, a fault must strike before. */
export const crash: ComputeFunction<undefined> = {
  program,
  name: 'crash',
  maxSyncBytes: 0,
  run() {
    process.exit(3);
  },
};

/** Can run only when something has been loaded. */
let isPrepared = false;
export const prepared: ComputeFunction<undefined> = {
  program,
  name: 'prepared',
  maxSyncBytes: 1000,
  async prepare() {
    isPrepared = true;
  },
  run(_input, output) {
    output[0] = isPrepared ? 1 : 0;
    return 1;
  },
};
