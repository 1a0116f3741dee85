import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import type { JsonValue } from '../src/schema/types.js';
import { makeImage } from './images.js';
import { cpuSecondsOf, disturbance, lookAround, type Quiet } from './machine.js';
import { isSkipped, median, missing, runAsync } from './measure.js';
import type { Peer } from './peer.js';
import { nbdUri, type Side, StorageDaemon } from './servers.js';

const MiB = 1024 * 1024;
/** What users notice. */
const READ_GOAL_MS = 50;
const ANSWER_GOAL_MS = 100;
/** A query is asked so often, and so many wait for answers in the flood of them. */
const QUERY_EVERY_MS = 20;
const FLOOD_DEPTH = 32;

interface Latencies {
  median: number;
  p99: number;
  most: number;
}

/** One run: milliseconds of the guest's reads and of QMP's answers. */
interface Tails {
  reads: Latencies;
  readsPerSecond: number;
  answers: Latencies;
  cpuSeconds: number;
}

interface FioJob {
  jobname: string;
  read: { clat_ns: { max: number; percentile?: Record<string, number> }; iops: number };
}

/** What goes on meanwhile. */
interface Flood {
  name: string;
  /** Of the guest, beside the readers, as options of fio. */
  writer: readonly string[];
  /** A mirror that is never completed. */
  mirror: boolean;
  /** Another client of QMP that does not wait for answers. */
  queries: boolean;
}

const FLOODS: readonly Flood[] = [
  {
    name: '1 MiB writes, flushes, a mirror',
    writer: ['--rw=write', '--bs=1m', '--iodepth=2', '--fsync=16'],
    mirror: true,
    queries: false,
  },
  {
    name: '4 KiB random writes, depth 32',
    writer: ['--rw=randwrite', '--bs=4k', '--iodepth=32'],
    mirror: false,
    queries: false,
  },
  { name: 'queries over QMP, 32 at a time', writer: [], mirror: false, queries: true },
];

function latencies(values: readonly number[]): Latencies {
  const sorted = [...values].sort((a, b) => a - b);
  const p99 = sorted[Math.floor(sorted.length * 0.99)] ?? NaN;
  return { median: median(sorted), p99, most: sorted.at(-1) ?? NaN };
}

/** Asks one thing after the other, in time; answers how long each answer took. */
async function askUntil(ask: () => Promise<JsonValue>, isOver: () => boolean): Promise<number[]> {
  const times: number[] = [];
  while (!isOver()) {
    const started = performance.now();
    await ask();
    const tookMs = performance.now() - started;
    times.push(tookMs);
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, QUERY_EVERY_MS - tookMs)));
  }
  return times;
}

async function floodUntil(ask: () => Promise<JsonValue>, isOver: () => boolean): Promise<void> {
  const one = async (): Promise<void> => {
    while (!isOver()) await ask();
  };
  await Promise.all(Array.from({ length: FLOOD_DEPTH }, one));
}

async function guest(uri: string, diskMiB: number, runSeconds: number, flood: Flood): Promise<FioJob> {
  const half = diskMiB / 2;
  const writer =
    flood.writer.length === 0
      ? []
      : ['--name=writer', ...flood.writer, `--size=${half}m`, `--offset=${half}m`];
  const output = await runAsync([
    ...[
      'fio',
      '--output-format=json',
      '--time_based',
      `--runtime=${runSeconds}`,
      '--ioengine=nbd',
      `--uri=${uri}`,
    ],
    ...['--name=readers', '--rw=randread', '--bs=4k', '--iodepth=4', `--size=${half}m`],
    ...writer,
  ]);
  const { jobs } = JSON.parse(output.slice(output.indexOf('{'))) as { jobs: FioJob[] };
  const readers = jobs.find(({ jobname }) => jobname === 'readers');
  if (!readers) throw new Error(`no readers in ${output}`);
  return readers;
}

async function tails(
  peer: Peer,
  side: Side,
  folder: string,
  diskMiB: number,
  runSeconds: number,
  flood: Flood,
): Promise<Tails> {
  const [image, target] = [join(folder, 'disk.qcow2'), join(folder, 'target.qcow2')];
  await makeImage(peer, folder, 'disk.qcow2', 'qcow2', diskMiB * MiB, diskMiB * MiB, 'dense');
  await makeImage(peer, folder, 'target.qcow2', 'qcow2', diskMiB * MiB, 0, 'dense');
  const daemon = await StorageDaemon.start(peer, side, folder, [
    ...['--blockdev', `driver=qcow2,node-name=disk,file.driver=file,file.filename=${image}`],
    ...['--blockdev', `driver=qcow2,node-name=t,file.driver=file,file.filename=${target}`],
    ...['--nbd-server', `addr.type=unix,addr.path=${join(folder, `${side}.sock`)}`],
    ...['--export', 'type=nbd,id=e,node-name=disk,writable=on'],
  ]);
  const second = await daemon.secondClient();
  if (flood.mirror)
    await daemon.execute('blockdev-mirror', { 'job-id': 'm', device: 'disk', target: 't', sync: 'full' });
  const cpuBefore = cpuSecondsOf(daemon.pid);
  let isOver = false;
  const asking = askUntil(
    () => daemon.execute('query-jobs'),
    () => isOver,
  );
  const flooding = flood.queries
    ? floodUntil(
        () => second.execute('query-named-block-nodes', {}),
        () => isOver,
      )
    : undefined;
  const { read } = await guest(nbdUri(side, folder), diskMiB, runSeconds, flood);
  isOver = true;
  const answers = latencies(await asking);
  await flooding;
  const cpuSeconds = cpuSecondsOf(daemon.pid) - cpuBefore;
  if (flood.mirror) await daemon.execute('job-cancel', { id: 'm' }).catch(() => undefined);
  await daemon.quit();
  const percentile = (name: string): number => (read.clat_ns.percentile?.[name] ?? NaN) / 1e6;
  const reads = {
    median: percentile('50.000000'),
    p99: percentile('99.000000'),
    most: read.clat_ns.max / 1e6,
  };
  return { reads, readsPerSecond: read.iops, answers, cpuSeconds };
}

/** Of several runs the medians, but of the most the most. */
function joined(runs: readonly Latencies[]): Latencies {
  return {
    median: median(runs.map((run) => run.median)),
    p99: median(runs.map((run) => run.p99)),
    most: Math.max(...runs.map((run) => run.most)),
  };
}

function cells({ median: middle, p99, most }: Latencies): string {
  return [middle, p99, most].map((ms) => ms.toFixed(2).padStart(9)).join('');
}

function row(name: string, side: string, figures: Latencies, goalMs: number, more: string): void {
  const verdict =
    figures.most <= goalMs
      ? `within ${goalMs} ms`
      : figures.p99 <= goalMs
        ? `p99 within ${goalMs} ms`
        : `OVER ${goalMs} ms`;
  process.stdout.write(`  ${name.padEnd(16)}${side.padEnd(14)}${cells(figures)}   ${verdict}${more}\n`);
}

/** How long a guest's reads and QMP's answers take, in milliseconds, while others keep the daemon busy. */
export async function benchLatency(
  peer: Peer,
  place: string,
  folder: string,
  {
    diskMiB,
    runSeconds,
    rounds,
    only,
  }: { diskMiB: number; runSeconds: number; rounds: number; only: string },
): Promise<void> {
  if (isSkipped('latency', [...peer.lacks('qemu-storage-daemon', 'qemu-img'), ...missing('fio')])) return;
  for (const flood of FLOODS.filter(({ name }) => name.includes(only))) {
    process.stdout.write(`\nlatency beside ${flood.name}; ${place}, ${diskMiB} MiB disk; milliseconds\n`);
    process.stdout.write(
      `${' '.repeat(32)}${['median', 'p99', 'most'].map((cell) => cell.padStart(9)).join('')}\n`,
    );
    const runs: Record<Side, Tails[]> = { peer: [], ours: [] };
    const looks: Quiet[] = [];
    for (let round = 0; round < rounds; round++)
      for (const side of round % 2 === 0 ? (['peer', 'ours'] as const) : (['ours', 'peer'] as const)) {
        looks.push(await lookAround());
        runs[side].push(await tails(peer, side, folder, diskMiB, runSeconds, flood));
      }
    for (const [side, name] of [
      ['peer', peer.name()],
      ['ours', 'livedisk'],
    ] as const) {
      const of = runs[side];
      const rate = median(of.map(({ readsPerSecond }) => readsPerSecond)).toFixed(0);
      const cpu = median(of.map(({ cpuSeconds }) => cpuSeconds)).toFixed(1);
      row(
        '4 KiB read',
        name,
        joined(of.map(({ reads }) => reads)),
        READ_GOAL_MS,
        `, ${rate} reads/s, CPU ${cpu} s`,
      );
      row('QMP answer', name, joined(of.map(({ answers }) => answers)), ANSWER_GOAL_MS, '');
    }
    const disturbed = disturbance(looks);
    if (disturbed !== '') process.stdout.write(`  ${disturbed}\n`);
  }
}
