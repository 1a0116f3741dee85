import { join } from 'node:path';
import { makeImage } from './images.js';
import { missing, runAsync } from './measure.js';
import { nbdUri, type Side, StorageDaemon } from './servers.js';

const MiB = 1024 * 1024;

interface FioJob {
  jobname: string;
  read: { clat_ns: { percentile?: Record<string, number> }; iops: number };
  write: { bw: number };
}

/** 99th percentile of 4 KiB reads in milliseconds, beside 1 MiB writes with flushes and a mirror that never ends. */
async function tail(side: Side, folder: string, diskMiB: number, runSeconds: number): Promise<string> {
  const image = join(folder, 'disk.qcow2');
  const socket = join(folder, `${side}.sock`);
  await makeImage(folder, 'disk.qcow2', 'qcow2', diskMiB * MiB, diskMiB * MiB, 'dense');
  await makeImage(folder, 'target.qcow2', 'qcow2', diskMiB * MiB, 0, 'dense');
  const daemon = await StorageDaemon.start(side, folder, [
    ...['--blockdev', `driver=qcow2,node-name=disk,file.driver=file,file.filename=${image}`],
    ...[
      '--blockdev',
      `driver=qcow2,node-name=t,file.driver=file,file.filename=${join(folder, 'target.qcow2')}`,
    ],
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}`],
    ...['--export', 'type=nbd,id=e,node-name=disk,writable=on'],
  ]);
  await daemon.execute('blockdev-mirror', { 'job-id': 'm', device: 'disk', target: 't', sync: 'full' });
  const uri = nbdUri(side, folder);
  const output = await runAsync('fio', [
    ...['--output-format=json', '--time_based', `--runtime=${runSeconds}`, '--ioengine=nbd', `--uri=${uri}`],
    ...['--name=readers', '--rw=randread', '--bs=4k', '--iodepth=4', `--size=${diskMiB / 2}m`],
    ...['--name=writer', '--rw=write', '--bs=1m', '--iodepth=2', '--fsync=16'],
    ...[`--size=${diskMiB / 2}m`, `--offset=${diskMiB / 2}m`],
  ]);
  await daemon.execute('job-cancel', { id: 'm' }).catch(() => undefined);
  await daemon.quit();
  const { jobs } = JSON.parse(output.slice(output.indexOf('{'))) as { jobs: FioJob[] };
  const readers = jobs.find(({ jobname }) => jobname === 'readers');
  const writer = jobs.find(({ jobname }) => jobname === 'writer');
  const p99 = (readers?.read.clat_ns.percentile?.['99.000000'] ?? NaN) / 1e6;
  const written = ((writer?.write.bw ?? 0) / 1024).toFixed(0);
  return `p99 ${p99.toFixed(2)} ms at ${readers?.read.iops.toFixed(0)} reads/s, beside ${written} MiB/s written`;
}

export async function benchLatency(
  place: string,
  folder: string,
  diskMiB: number,
  runSeconds: number,
): Promise<void> {
  const lacking = missing('fio', 'qemu-storage-daemon', 'qemu-img');
  if (lacking.length > 0)
    return void process.stdout.write(`latency: skipped, not installed: ${lacking.join(', ')}\n`);
  process.stdout.write(
    `\n4 KiB reads beside 1 MiB writes, flushes and a mirror; ${place}, ${diskMiB} MiB disk\n`,
  );
  for (const [side, name] of [
    ['peer', 'QEMU'],
    ['ours', 'livedisk'],
  ] as const)
    process.stdout.write(`  ${name.padEnd(10)}${await tail(side, folder, diskMiB, runSeconds)}\n`);
}
