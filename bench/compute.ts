import { randomBytes } from 'node:crypto';
import { deflateRawSync } from 'node:zlib';
import {
  aesCbc,
  aesXts,
  canCompressZstd,
  deflateRaw,
  inflateRaw,
  sha256,
  zstdCompress,
  zstdDecompress,
} from '../src/codec/index.js';
import type { ComputeFunction, ComputeTask } from '../src/host/compute.js';
import { createRealHost } from '../src/host/real.js';
import { halfNoise } from './images.js';
import { median } from './measure.js';

const KiB = 1024;
const SIZES = [512, 4 * KiB, 16 * KiB, 64 * KiB, 1024 * KiB];
/** Runs of one figure. */
const RUNS = 41;
/** Tasks at a time where the rate of all threads is measured. */
const AT_ONCE = 16;

function zstd(bytes: Uint8Array): Uint8Array {
  const output = Buffer.alloc(bytes.byteLength + 100);
  return output.subarray(0, zstdCompress.run(bytes, output, {}));
}

function works(plain: Uint8Array): Array<ComputeTask<never>> {
  const task = <P>(wanted: ComputeFunction<P>, input: Uint8Array, outputBytes: number, parameters: P) =>
    ({
      function: wanted,
      input,
      output: Buffer.alloc(outputBytes),
      parameters,
    }) as unknown as ComputeTask<never>;
  const key = randomBytes(64);
  const sectors = { key, sectorBytes: 512, firstSector: 0, initialVector: 'plain64' } as const;
  const cbc = { ...sectors, key: key.subarray(0, 32) };
  const size = plain.byteLength;
  return [
    task(inflateRaw, deflateRawSync(plain, { windowBits: 12 }), size, { windowBits: 12 }),
    task(deflateRaw, plain, size + 100, { windowBits: 12 }),
    ...(canCompressZstd()
      ? [task(zstdDecompress, zstd(plain), size, undefined), task(zstdCompress, plain, size + 100, {})]
      : []),
    task(sha256, plain, 32, undefined),
    task(aesXts, plain, size, { ...sectors, direction: 'encrypt' }),
    task(aesCbc, plain, size, { ...cbc, direction: 'encrypt' }),
    task(aesCbc, plain, size, { ...cbc, direction: 'decrypt' }),
  ];
}

async function medianUs(body: () => unknown): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i < RUNS; i++) {
    const started = performance.now();
    await body();
    times.push((performance.now() - started) * 1000);
  }
  return median(times);
}

/** What the codecs cost on the event loop and in a thread; no peer does it. It says where `maxSyncBytes` should be. */
export async function benchCompute(): Promise<void> {
  const { compute } = createRealHost();
  const row = (...cells: string[]): void =>
    void process.stdout.write(
      `  ${(cells[0] ?? '').padEnd(20)}${cells
        .slice(1)
        .map((cell) => cell.padStart(12))
        .join('')}\n`,
    );
  process.stdout.write('\ncompute, microseconds; limit: bytes in and out up to which it is done at once\n');
  row('', 'plain bytes', 'at once', 'in a thread', 'of 16, each', 'limit');
  for (const size of SIZES)
    for (const task of works(halfNoise(size))) {
      const { run, name, maxSyncBytes } = { ...task.function, run: task.function.run.bind(task.function) };
      const here = await medianUs(() => run(task.input, task.output, task.parameters));
      const there = await medianUs(() => compute.run(task));
      const tasks = Array.from({ length: AT_ONCE }, () => ({
        ...task,
        output: Buffer.alloc(task.output.byteLength),
      }));
      const many = await medianUs(() => Promise.all(tasks.map((each) => compute.run(each))));
      const isSync = task.input.byteLength + task.output.byteLength <= maxSyncBytes;
      row(
        name,
        String(size),
        here.toFixed(1),
        there.toFixed(1),
        (many / AT_ONCE).toFixed(1),
        isSync ? 'at once' : '',
      );
    }
  await compute.close();
}
