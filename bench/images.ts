import { closeSync, fdatasyncSync, openSync } from 'node:fs';
import { randomFillSync } from 'node:crypto';
import { join } from 'node:path';
import type { NodeOptions } from '../src/block/driver.js';
import { Bench } from '../src/programs/demo/session.js';
import { createRealHost } from '../src/host/real.js';
import { run } from './measure.js';
import type { Peer } from './peer.js';

const MiB = 1024 * 1024;
const CLUSTER = 64 * 1024;

export type Pattern = 'dense' | 'scattered';

/** Half of it noise: compresses to about half, as a system's disk does. */
export function halfNoise(lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes, 'a line of text\n');
  for (let at = 0; at < lengthBytes; at += 256) randomFillSync(bytes, at, Math.min(128, lengthBytes - at));
  return bytes;
}

/** Data in [offset, offset + lengthBytes): all of it, or every other cluster. */
async function fill(
  options: NodeOptions,
  offset: number,
  lengthBytes: number,
  pattern: Pattern,
): Promise<void> {
  const { disk, close } = await new Bench(createRealHost()).open(options, false);
  const buffer = halfNoise(MiB);
  if (pattern === 'dense') {
    for (let at = 0; at < lengthBytes; at += MiB) await disk.write(offset + at, buffer);
  } else {
    for (let at = 0; at < lengthBytes; at += CLUSTER)
      await disk.write(offset + 2 * at, buffer.subarray(at % MiB, (at % MiB) + CLUSTER));
  }
  await disk.flush();
  await close();
}

function fileOptions(format: string, filename: string): NodeOptions {
  return { driver: format, file: { driver: 'file', filename } };
}

/** One image that holds `dataBytes`. */
export async function makeImage(
  peer: Peer,
  folder: string,
  name: string,
  format: string,
  sizeBytes: number,
  dataBytes: number,
  pattern: Pattern,
): Promise<void> {
  run([...peer.argv('qemu-img'), 'create', '-q', '-f', format, join(folder, name), String(sizeBytes)]);
  await fill(fileOptions(format, join(folder, name)), 0, dataBytes, pattern);
}

export const CHAIN = ['a', 'b', 'c', 'd'] as const;

/** [a] <-- [b] <-- [c] <-- [d], each with a quarter of the data, half of it over data of the layer below. */
export async function makeChain(
  peer: Peer,
  folder: string,
  diskBytes: number,
  dataBytes: number,
  pattern: Pattern,
): Promise<void> {
  const part = dataBytes / CHAIN.length;
  for (const [i, name] of CHAIN.entries()) {
    const below = CHAIN[i - 1];
    const backing = below === undefined ? [] : ['-b', `${below}.qcow2`, '-F', 'qcow2'];
    const create = ['create', '-q', '-f', 'qcow2', ...backing, `${name}.qcow2`, String(diskBytes)];
    run([...peer.argv('qemu-img'), ...create], folder);
    const spread = pattern === 'dense' ? 1 : 2;
    await fill(fileOptions('qcow2', join(folder, `${name}.qcow2`)), (i * part * spread) / 2, part, pattern);
  }
}

/** Brings a file to disk. */
export function syncFile(path: string): void {
  const file = openSync(path, 'r+');
  fdatasyncSync(file);
  closeSync(file);
}

/** Takes what is on disk out of the page cache (posix_fadvise(2) DONTNEED). */
export function dropFromCache(path: string): void {
  run(['dd', `if=${path}`, 'iflag=nocache', 'count=0', 'status=none']);
}

/**
 * "tracked.qcow2", the chain's top with a persistent bitmap "since" of what was written after it: a quarter of the data,
 * over what is there. The peer writes, so that the bitmap is as it keeps them.
 */
export function trackTop(peer: Peer, folder: string, dataBytes: number, pattern: Pattern): void {
  const name = 'tracked.qcow2';
  run(['cp', '--sparse=always', 'd.qcow2', name], folder);
  run([...peer.argv('qemu-img'), 'bitmap', '--add', name, 'since'], folder);
  const [step, piece] = pattern === 'dense' ? [MiB, MiB] : [2 * CLUSTER, CLUSTER];
  const writes = Array.from(
    { length: dataBytes / 4 / piece },
    (_, i) => `write -q -P 7 ${i * step} ${piece}\n`,
  );
  run([...peer.argv('qemu-io'), '-f', 'qcow2', name], folder, writes.join(''));
}
