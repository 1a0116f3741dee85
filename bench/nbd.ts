import { join } from 'node:path';
import { makeImage } from './images.js';
import { compare, heading, missing, run, runAsync, seconds } from './measure.js';
import { nbdUri, serveNbd, type Side } from './servers.js';

const MiB = 1024 * 1024;
const DISK_BYTES = 512 * MiB;
const LOADS = [
  ['4 KiB random read, depth 1', 'randread', '4k', 1],
  ['4 KiB random read, depth 32', 'randread', '4k', 32],
  ['4 KiB random write, depth 32', 'randwrite', '4k', 32],
  ['64 KiB sequential read, depth 4', 'read', '64k', 4],
  ['64 KiB sequential write, depth 4', 'write', '64k', 4],
  ['1 MiB sequential read, depth 4', 'read', '1m', 4],
  ['1 MiB sequential write, depth 4', 'write', '1m', 4],
] as const;

/** Requests a second that fio gets done. */
async function fio(uri: string, load: (typeof LOADS)[number], runSeconds: number): Promise<number> {
  const [, kind, size, depth] = load;
  const output = await runAsync('fio', [
    ...['--name=bench', '--ioengine=nbd', `--uri=${uri}`, `--rw=${kind}`, `--bs=${size}`],
    ...[
      `--iodepth=${depth}`,
      '--time_based',
      `--runtime=${runSeconds}`,
      '--output-format=json',
      '--randseed=7',
    ],
  ]);
  const { jobs } = JSON.parse(output.slice(output.indexOf('{'))) as {
    jobs: Array<{ read: { iops: number }; write: { iops: number } }>;
  };
  return (jobs[0]?.read.iops ?? 0) + (jobs[0]?.write.iops ?? 0);
}

/** NBD servers over unix sockets, on a full image in memory. */
export async function benchNbd(folder: string, rounds: number): Promise<void> {
  const lacking = missing('fio', 'qemu-nbd', 'qemu-img', 'nbdcopy');
  if (lacking.length > 0)
    return void process.stdout.write(`nbd: skipped, not installed: ${lacking.join(', ')}\n`);
  for (const format of ['raw', 'qcow2']) {
    heading(`NBD, ${format}`, 'qemu-nbd');
    for (const side of ['peer', 'ours'])
      await makeImage(folder, `${side}.${format}`, format, DISK_BYTES, DISK_BYTES, 'dense');
    const servers = await Promise.all(
      (['peer', 'ours'] as const).map((side) =>
        serveNbd(side, folder, join(folder, `${side}.${format}`), format),
      ),
    );
    try {
      for (const load of LOADS) {
        const measure = (side: Side) => () => fio(nbdUri(side, folder), load, 2);
        await compare(
          { name: load[0], unit: '/s', better: 'more', peer: measure('peer'), ours: measure('ours') },
          rounds,
        );
      }
      const copy = (side: Side) => () => seconds(() => runAsync('nbdcopy', [nbdUri(side, folder), 'null:']));
      await compare(
        { name: 'nbdcopy to null', unit: 's', better: 'less', peer: copy('peer'), ours: copy('ours') },
        rounds,
      );
    } finally {
      for (const server of servers) await server.stop();
    }
    run('rm', ['-f', ...['peer', 'ours'].map((side) => join(folder, `${side}.${format}`))]);
  }
}
