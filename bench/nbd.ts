import { join } from 'node:path';
import { makeImage } from './images.js';
import { cpuSecondsOf } from './machine.js';
import {
  compare,
  heading,
  isSkipped,
  missing,
  type Rounds,
  run,
  runAsync,
  type Sample,
  seconds,
} from './measure.js';
import type { Peer } from './peer.js';
import { nbdUri, serveNbd, type Server, type Side } from './servers.js';

const MiB = 1024 * 1024;
const DISK_BYTES = 512 * MiB;
const LOAD_SECONDS = 2;
/** Name, kind, size and depth. */
type Load = readonly [string, string, string, number];
const LOADS: readonly Load[] = [
  ['4 KiB random read, depth 1', 'randread', '4k', 1],
  ['4 KiB random read, depth 32', 'randread', '4k', 32],
  ['4 KiB random write, depth 32', 'randwrite', '4k', 32],
  ['64 KiB sequential read, depth 4', 'read', '64k', 4],
  ['64 KiB sequential write, depth 4', 'write', '64k', 4],
  ['1 MiB sequential read, depth 4', 'read', '1m', 4],
  ['1 MiB sequential write, depth 4', 'write', '1m', 4],
];

/** Requests a second that fio gets done. */
export async function fio(uri: string, load: Load, runSeconds: number): Promise<number> {
  const [, kind, size, depth] = load;
  const output = await runAsync([
    'fio',
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
export async function benchNbd(peer: Peer, folder: string, rounds: Rounds): Promise<void> {
  if (isSkipped('nbd', [...peer.lacks('qemu-nbd', 'qemu-img'), ...missing('fio', 'nbdcopy')])) return;
  for (const format of ['raw', 'qcow2']) {
    heading(`NBD, ${format}`, peer.name(), 'us each');
    for (const side of ['peer', 'ours'])
      await makeImage(peer, folder, `${side}.${format}`, format, DISK_BYTES, DISK_BYTES, 'dense');
    const serve = (side: Side): Promise<Server> =>
      serveNbd(peer, side, folder, join(folder, `${side}.${format}`), format);
    const servers = { peer: await serve('peer'), ours: await serve('ours') };
    const cpuOf = async (side: Side, work: () => Promise<number>): Promise<Sample> => {
      const cpuBefore = cpuSecondsOf(servers[side].pid);
      const figure = await work();
      return { figure, cpu: cpuSecondsOf(servers[side].pid) - cpuBefore };
    };
    try {
      for (const load of LOADS) {
        const measure = (side: Side) => async (): Promise<Sample> => {
          const { figure, cpu } = await cpuOf(side, () => fio(nbdUri(side, folder), load, LOAD_SECONDS));
          return { figure, cpu: (1e6 * cpu) / (figure * LOAD_SECONDS) };
        };
        await compare(
          { name: load[0], unit: '/s', better: 'more', peer: measure('peer'), ours: measure('ours') },
          rounds,
        );
      }
      heading(`NBD, ${format}, all of it`, peer.name());
      for (const connections of ['1', '4']) {
        const copy = (side: Side) => () => {
          const argv = ['nbdcopy', '--connections', connections, nbdUri(side, folder), 'null:'];
          return cpuOf(side, () => seconds(() => runAsync(argv)));
        };
        const name = `nbdcopy to null, connections: ${connections}`;
        await compare({ name, unit: 's', better: 'less', peer: copy('peer'), ours: copy('ours') }, rounds);
      }
    } finally {
      await servers.peer.stop();
      await servers.ours.stop();
    }
    run(['rm', '-f', ...['peer', 'ours'].map((side) => join(folder, `${side}.${format}`))]);
  }
}
