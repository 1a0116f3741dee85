import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { JsonObject } from '../src/schema/types.js';
import { CHAIN, dropFromCache, makeChain, type Pattern, syncFile } from './images.js';
import { cpuSecondsOf, touchMemory } from './machine.js';
import { compare, heading, isSkipped, type Rounds, run, type Sample, seconds } from './measure.js';
import type { Peer } from './peer.js';
import { type Side, StorageDaemon } from './servers.js';

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
];

/** The chain as nodes a, b, c, d, all named, so that both daemons can be told the same. */
function chainOptions(folder: string): string[] {
  return CHAIN.flatMap((name, i) => {
    const backing = i === 0 ? '' : `,backing=${CHAIN[i - 1]}`;
    const file = `file.driver=file,file.filename=${join(folder, `${name}.qcow2`)}`;
    return ['--blockdev', `driver=qcow2,node-name=${name},${file}${backing}`];
  });
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
  for (const name of CHAIN) run(['cp', '--sparse=always', join(template, `${name}.qcow2`), folder]);
  const { target } = work;
  if (target)
    run(
      [...peer.argv('qemu-img'), 'create', '-q', '-f', target.format, target.name, String(diskBytes)],
      folder,
    );
  const images = [...CHAIN.map((name) => `${name}.qcow2`), ...(target ? [target.name] : [])];
  for (const image of images) {
    syncFile(join(folder, image));
    if (isCold) dropFromCache(join(folder, image));
  }
  const node = target
    ? [
        '--blockdev',
        `driver=${target.format},node-name=t,file.driver=file,file.filename=${join(folder, target.name)}`,
      ]
    : [];
  touchMemory(work.fillsTarget ? diskBytes : diskBytes / 2);
  const daemon = await StorageDaemon.start(peer, side, folder, [...chainOptions(folder), ...node]);
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
