import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { JsonObject } from '../src/schema/types.js';
import { CHAIN, dropFromCache, makeChain, type Pattern, syncFile, trackTop } from './images.js';
import { cpuSecondsOf, touchMemory } from './machine.js';
import { compare, heading, isSkipped, type Rounds, run, type Sample, seconds } from './measure.js';
import type { Peer } from './peer.js';
import { serveNbd, type Side, StorageDaemon } from './servers.js';

const MiB = 1024 * 1024;

interface JobWork {
  name: string;
  command: string;
  args: JsonObject;
  /** An image that must exist, empty, before the job. */
  target?: { name: string; format: string };
  /** READY comes, and complete must be asked for. */
  completes?: boolean;
  /** QEMU writes all of the target, zeroes too. */
  fillsTarget?: boolean;
  /** The top layer has a persistent bitmap, in which a quarter of the data is dirty. */
  hasBitmap?: boolean;
  /** The target is raw behind the peer's NBD server, for both sides. */
  isTargetRemote?: boolean;
  /** What stands over the disk, and an image that it needs, empty. */
  filters?: { image: string; nodes: readonly JsonObject[] };
}

const WORKS: readonly JobWork[] = [
  { name: 'stream, all into the top', command: 'block-stream', args: { device: 'd' } },
  {
    name: 'commit, two middle layers into the base',
    command: 'block-commit',
    args: { device: 'd', 'top-node': 'c', 'base-node': 'a' },
  },
  {
    name: 'commit of the active layer',
    command: 'block-commit',
    args: { device: 'd', 'base-node': 'a' },
    completes: true,
  },
  ...(['qcow2', 'raw'] as const).flatMap((format): JobWork[] => [
    {
      name: `mirror to ${format}`,
      command: 'blockdev-mirror',
      args: { device: 'd', target: 't', sync: 'full' },
      target: { name: `t.${format}`, format },
      completes: true,
    },
    {
      name: `backup to ${format}`,
      command: 'blockdev-backup',
      args: { device: 'd', target: 't', sync: 'full' },
      target: { name: `t.${format}`, format },
      fillsTarget: format === 'raw',
    },
  ]),
  {
    name: 'mirror to qcow2, write-blocking',
    command: 'blockdev-mirror',
    args: { device: 'd', target: 't', sync: 'full', 'copy-mode': 'write-blocking' },
    target: { name: 't.qcow2', format: 'qcow2' },
    completes: true,
  },
  {
    name: 'mirror to NBD',
    command: 'blockdev-mirror',
    args: { device: 'd', target: 't', sync: 'full' },
    target: { name: 't.raw', format: 'raw' },
    isTargetRemote: true,
    completes: true,
  },
  {
    name: 'backup of what a bitmap tells',
    command: 'blockdev-backup',
    args: { device: 'd', target: 't', sync: 'incremental', bitmap: 'since' },
    target: { name: 't.qcow2', format: 'qcow2' },
    hasBitmap: true,
  },
  {
    name: 'backup, compressed',
    command: 'blockdev-backup',
    args: { device: 'd', target: 't', sync: 'full', compress: true },
    target: { name: 't.qcow2', format: 'qcow2' },
  },
  {
    name: 'backup with fleecing',
    command: 'blockdev-backup',
    args: { device: 'point', target: 't', sync: 'full' },
    target: { name: 't.qcow2', format: 'qcow2' },
    filters: {
      image: 'fleece.qcow2',
      nodes: [
        {
          driver: 'qcow2',
          'node-name': 'fleece',
          file: { driver: 'file', filename: 'fleece.qcow2' },
        },
        { driver: 'copy-before-write', 'node-name': 'before', file: 'd', target: 'fleece' },
        { driver: 'snapshot-access', 'node-name': 'point', file: 'before' },
      ],
    },
  },
];

/** The chain as nodes a, b, c, d, all named, so that both daemons can be told the same. */
function chainOptions(folder: string): string[] {
  return CHAIN.flatMap((name, i) => {
    const backing = i === 0 ? '' : `,backing=${CHAIN[i - 1]}`;
    const file = `file.driver=file,file.filename=${join(folder, `${name}.qcow2`)}`;
    return ['--blockdev', `driver=qcow2,node-name=${name},${file}${backing}`];
  });
}

/** Answers the names of all images that the job may write, in `folder`. */
function prepareImages(
  peer: Peer,
  template: string,
  folder: string,
  { target, filters, hasBitmap }: JobWork,
  diskBytes: number,
): string[] {
  const top = hasBitmap ? 'tracked.qcow2' : 'd.qcow2';
  for (const name of CHAIN)
    run([
      'cp',
      '--sparse=always',
      join(template, name === 'd' ? top : `${name}.qcow2`),
      join(folder, `${name}.qcow2`),
    ]);
  const create = (format: string, name: string): string =>
    run([...peer.argv('qemu-img'), 'create', '-q', '-f', format, name, String(diskBytes)], folder);
  if (target) create(target.format, target.name);
  if (filters) create('qcow2', filters.image);
  return [
    ...CHAIN.map((name) => `${name}.qcow2`),
    ...(target ? [target.name] : []),
    ...(filters ? [filters.image] : []),
  ];
}

function targetOptions(
  { name, format }: NonNullable<JobWork['target']>,
  folder: string,
  { isTargetRemote }: JobWork,
): string {
  const node = `driver=${format},node-name=t`;
  return isTargetRemote
    ? `${node},file.driver=nbd,file.server.type=unix,file.server.path=${join(folder, 'peer.sock')},file.export=disk`
    : `${node},file.driver=file,file.filename=${join(folder, name)}`;
}

/** Seconds from the command until everything is on disk, and of those how many after the completion was told. */
async function runJob(
  peer: Peer,
  side: Side,
  template: string,
  folder: string,
  work: JobWork,
  diskBytes: number,
  isCold: boolean,
): Promise<Sample> {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  const images = prepareImages(peer, template, folder, work, diskBytes);
  for (const image of images) {
    syncFile(join(folder, image));
    if (isCold) dropFromCache(join(folder, image));
  }
  touchMemory(work.fillsTarget ? diskBytes : diskBytes / 2);
  const { target, filters } = work;
  const remote =
    target && work.isTargetRemote
      ? await serveNbd(peer, 'peer', folder, target.name, target.format)
      : undefined;
  const node = target === undefined ? [] : ['--blockdev', targetOptions(target, folder, work)];
  const daemon = await StorageDaemon.start(peer, side, folder, [...chainOptions(folder), ...node]);
  for (const options of filters?.nodes ?? []) await daemon.execute('blockdev-add', options);
  const cpuBefore = cpuSecondsOf(daemon.pid);
  let syncSeconds = 0;
  const figure = await seconds(async () => {
    await daemon.execute(work.command, { 'job-id': 'job', ...work.args });
    if (work.completes) {
      await daemon.event('BLOCK_JOB_READY');
      await daemon.execute('block-job-complete', { device: 'job' });
    }
    const data = await daemon.event('BLOCK_JOB_COMPLETED');
    if (data['error'] !== undefined) throw new Error(`${work.name}: ${JSON.stringify(data)}`);
    syncSeconds = await seconds(async () => {
      for (const image of images) if (existsSync(join(folder, image))) syncFile(join(folder, image));
    });
  });
  const cpu = cpuSecondsOf(daemon.pid) - cpuBefore;
  await daemon.quit();
  await remote?.stop();
  return { figure, cpu, syncSeconds };
}

/**
 * Each job against qemu-storage-daemon, from the command to the last byte on disk: the daemons flush, then all images are
 * synced. `only`: those whose pattern and
 * name ('scattered: backup to raw') contain it.
 */
export async function benchJobs(
  peer: Peer,
  place: string,
  folder: string,
  dataMiB: number,
  { rounds, only, isCold }: { rounds: Rounds; only: string; isCold: boolean },
): Promise<void> {
  if (isSkipped('jobs', peer.lacks('qemu-storage-daemon', 'qemu-img'))) return;
  const diskBytes = 4 * dataMiB * MiB;
  for (const pattern of ['dense', 'scattered'] as const satisfies readonly Pattern[]) {
    const works = WORKS.filter(({ name }) => `${pattern}: ${name}`.includes(only));
    if (works.length === 0) continue;
    heading(`jobs, ${place}, ${dataMiB} MiB ${pattern}`, peer.name());
    const template = join(folder, 'template');
    mkdirSync(template);
    await makeChain(peer, template, diskBytes, dataMiB * MiB, pattern);
    if (works.some(({ hasBitmap }) => hasBitmap)) trackTop(peer, template, dataMiB * MiB, pattern);
    for (const work of works) {
      const measure = (side: Side) => () =>
        runJob(peer, side, template, join(folder, 'run'), work, diskBytes, isCold);
      await compare(
        { name: work.name, unit: 's', better: 'less', peer: measure('peer'), ours: measure('ours') },
        rounds,
      );
    }
    rmSync(template, { recursive: true });
    rmSync(join(folder, 'run'), { recursive: true, force: true });
  }
}
