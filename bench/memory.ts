import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { isSkipped, missing, run, runAsync } from './measure.js';
import type { Peer } from './peer.js';
import { nbdUri, serveNbd } from './servers.js';

const MiB = 1024 * 1024;
const SETTLE_MS = 500;

/** Most memory that a process has had, in MiB. */
export function peakMiB(pid: number): number {
  const [, kib] = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? [];
  return Number(kib) / 1024;
}

export async function bareMiB(): Promise<number> {
  const bare: ChildProcess = spawn(process.execPath, ['-e', 'setInterval(() => undefined, 1e6)']);
  await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
  const peak = peakMiB(bare.pid ?? 0);
  bare.kill();
  return peak;
}

/** Peak memory above the bare runtime's, of a daemon with one qcow2 disk; 64 MiB is the goal. */
export async function benchMemory(peer: Peer, folder: string): Promise<void> {
  if (isSkipped('memory', [...peer.lacks('qemu-img'), ...missing('fio')])) return;
  const bare = await bareMiB();
  process.stdout.write(`\nmemory of node: ${bare.toFixed(0)} MiB; above it, with one disk, at most:\n`);
  for (const [name, sizeMiB, load] of [
    ['idle', 8192, undefined],
    ['4 KiB random writes, depth 32, 8 GiB', 8192, ['--rw=randwrite', '--bs=4k', '--iodepth=32']],
    ['1 MiB reads and writes, depth 8, 1 GiB', 1024, ['--rw=randrw', '--bs=1m', '--iodepth=8']],
    ['4 KiB random writes, depth 32, 512 GiB', 512 * 1024, ['--rw=randwrite', '--bs=4k', '--iodepth=32']],
  ] as const) {
    const image = join(folder, 'memory.qcow2');
    run([...peer.argv('qemu-img'), 'create', '-q', '-f', 'qcow2', image, String(sizeMiB * MiB)]);
    const server = await serveNbd(peer, 'ours', folder, image, 'qcow2');
    if (load)
      await runAsync([
        'fio',
        ...['--name=bench', '--ioengine=nbd', `--uri=${nbdUri('ours', folder)}`, ...load],
        ...['--time_based', '--runtime=4', '--norandommap', '--randseed=7'],
      ]);
    const above = peakMiB(server.pid) - bare;
    await server.stop();
    run(['rm', image]);
    process.stdout.write(`  ${name.padEnd(42)}${above.toFixed(0).padStart(6)} MiB\n`);
  }
}
