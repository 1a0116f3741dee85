import type { BlockBackend } from '../block/backend.js';
import { NodeNames } from '../block/full-filename.js';
import type { Node } from '../block/node.js';
import type { HmpArguments } from './hmp-arguments.js';
import type { ThrottleGroup } from '../block/objects/throttle-group.js';
import { limitsInfo } from './io-throttle.js';
import { chainText } from './image-text.js';
import { nodeInfo } from './node-info.js';
import type { Parts } from './parts.js';
import { type Disk, idleTimeNs, listDisks } from './query.js';

type Queries = Parts<'graph' | 'devices' | 'drives'>;

/** `info block [-n] [-v] [DEVICE]`. */
export function infoBlock(engine: Queries, { flags, operands }: HmpArguments): string {
  const [wanted] = operands;
  const isVerbose = flags.has('v');
  let text = '';
  if (!flags.has('n'))
    for (const [i, disk] of listDisks(engine).entries()) {
      if (wanted !== undefined && disk.backend.name !== wanted) continue;
      text += (i === 0 ? '' : '\n') + describeDisk(disk, isVerbose);
    }
  const isOfDisk = wanted !== undefined && text !== '';
  if (isOfDisk || (!flags.has('n') && wanted === undefined)) return text;
  // What is not the first of all nodes has an empty line before it, also when it alone is shown.
  for (const [i, node] of engine.graph.listed().reverse().entries()) {
    if (wanted !== undefined && node.name !== wanted) continue;
    text += (i === 0 ? '' : '\n') + describeMedium(node, { isVerbose });
  }
  return text;
}

function describeDisk({ backend, device }: Disk, isVerbose: boolean): string {
  const node = backend.root?.node.skipImplicitFilters();
  const name = backend.name || (node ? node.name : (device?.qdevPath ?? ''));
  const lines: string[] = [];
  if (device) lines.push(field('Attached to', device.qdevPath));
  if (device?.tellsIoStatus && device.ioStatus !== 'ok') lines.push(field('I/O status', device.ioStatus));
  if (device?.disk.removable ?? true)
    lines.push(
      field('Removable device', `not locked, tray ${device?.isTrayOpen === true ? 'open' : 'closed'}`),
    );
  if (!node) return [`${name}: [not inserted]`, ...lines].map(lineOf).join('');
  return describeMedium(node, { isVerbose, backend, lines });
}

interface Details {
  isVerbose: boolean;
  backend?: BlockBackend;
  lines?: readonly string[];
}

function describeMedium(node: Node, { isVerbose, backend, lines = [] }: Details): string {
  const info = nodeInfo(node, new NodeNames({ showsFilters: true }), {
    hidesImplicit: backend !== undefined,
  });
  const drive = backend?.name ?? '';
  const name = drive === '' ? node.name : `${drive} (${node.name})`;
  const format = `${node.driver.name}${node.readOnly ? ', read-only' : ''}`;
  const { backing_file: backing, backing_file_depth: depth, detect_zeroes: zeroes } = info;
  const text = [`${name}: ${info['file'] as string} (${format})`, ...lines];
  text.push(field('Cache mode', cacheText(node, backend)));
  if (backing !== undefined)
    text.push(field('Backing file', `${backing as string} (chain depth: ${depth as number})`));
  if (zeroes !== 'off') text.push(field('Detect zeroes', zeroes as string));
  if (backend?.throttleGroup) text.push(field('I/O throttling', limitsText(backend.throttleGroup)));
  const images = isVerbose ? `\nImages:\n${chainText(info['image'] as Parameters<typeof chainText>[0])}` : '';
  return text.map(lineOf).join('') + images;
}

function limitsText(group: ThrottleGroup): string {
  const limits = limitsInfo(group);
  const value = (name: string): string => `${name}=${(limits[name] ?? 0) as number}`;
  const names = ['bps', 'iops'].flatMap((what) =>
    ['', '_max'].flatMap((more) => ['', '_rd', '_wr'].map((side) => `${what}${side}${more}`)),
  );
  return [...names.map(value), value('iops_size'), `group=${group.id}`].join(' ');
}

function cacheText(node: Node, backend: BlockBackend | undefined): string {
  const { direct, 'no-flush': noFlush } = node.settings.cache;
  const mode = backend?.writethrough === true ? 'writethrough' : 'writeback';
  return `${mode}${direct ? ', direct' : ''}${noFlush ? ', ignore flushes' : ''}`;
}

function lineOf(text: string): string {
  return `${text}\n`;
}

function field(name: string, value: string): string {
  return `    ${`${name}:`.padEnd(18)}${value}`;
}

export function infoBlockJobs({ jobs }: Parts<'jobs'>): string {
  const blockJobs = jobs.list().filter(({ isBlockJob }) => isBlockJob);
  if (blockJobs.length === 0) return 'No active jobs\n';
  return blockJobs
    .map((job) => {
      const { type, device, offset, len, speed } = job.blockJobInfo() as Record<string, string | number>;
      const who = type === 'stream' ? `Streaming device ${device}` : `Type ${type}, device ${device}`;
      return `${who}: Completed ${offset} of ${len} bytes, speed limit ${speed} bytes/s\n`;
    })
    .join('');
}

/** `info blockstats`. */
export function infoBlockStatistics(engine: Queries): string {
  return listDisks(engine)
    .map(({ backend }) => {
      const { read, write, flush } = backend.statistics;
      const ns = ({ totalMs }: { totalMs: number }): number => Math.round(totalMs * 1e6);
      return (
        `${backend.name}: rd_bytes=${read.bytes} wr_bytes=${write.bytes} rd_operations=${read.operations} ` +
        `wr_operations=${write.operations} flush_operations=${flush.operations} wr_total_time_ns=${ns(write)} ` +
        `rd_total_time_ns=${ns(read)} flush_total_time_ns=${ns(flush)} rd_merged=0 wr_merged=0 idle_time_ns=${idleTimeNs(backend) ?? 0}\n`
      );
    })
    .join('');
}
