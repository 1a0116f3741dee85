import { BlockError } from '../base/error.js';
import { NodeNames } from '../block/full-filename.js';
import type { Node } from '../block/node.js';
import type { GuestDevice } from '../attach/device.js';
import type { Parts } from './parts.js';
import type { HmpArguments } from './hmp-arguments.js';
import { nodeInfo } from './node-info.js';

/** `info block [-n] [-v] [DEVICE]`. */
export function infoBlock(engine: Parts<'graph' | 'devices'>, { flags, operands }: HmpArguments): string {
  const [wanted] = operands;
  if (flags.has('v'))
    throw new BlockError('unsupported', 'info block: -v is not supported; query-block has all details');
  if (!flags.has('n') && wanted === undefined)
    return [...engine.devices.values()]
      .map((device) => describe(device.backend.node.skipImplicitFilters(), device))
      .join('\n');
  const nodes = engine.graph.listed().reverse();
  const shown = nodes.filter((node) => wanted === undefined || node.name === wanted);
  // What is not the first of all nodes has an empty line before it, also when it alone is shown.
  return shown.map((node) => (node === nodes[0] ? '' : '\n') + describe(node)).join('');
}

function describe(node: Node, device?: GuestDevice): string {
  const info = nodeInfo(node, new NodeNames(), { hidesImplicit: device !== undefined });
  const lines = [
    `${node.name}: ${info['file'] as string} (${node.driver.name}${node.readOnly ? ', read-only' : ''})`,
  ];
  if (device) {
    lines.push(field('Attached to', device.qdevPath));
    if (device.ioStatus !== 'ok') lines.push(field('I/O status', device.ioStatus));
  }
  lines.push(field('Cache mode', device?.writeCache === false ? 'writethrough' : 'writeback'));
  const { backing_file: backing, backing_file_depth: depth } = info;
  if (backing !== undefined)
    lines.push(field('Backing file', `${backing as string} (chain depth: ${depth as number})`));
  return lines.map((line) => `${line}\n`).join('');
}

function field(name: string, value: string): string {
  return `    ${`${name}:`.padEnd(18)}${value}`;
}

export function infoBlockJobs({ jobs }: Parts<'jobs'>): string {
  const blockJobs = jobs.list().filter(({ type }) => type !== 'create');
  if (blockJobs.length === 0) return 'No active jobs\n';
  return blockJobs
    .map((job) => {
      const { type, device, offset, len, speed } = job.blockJobInfo() as Record<string, string | number>;
      const who = type === 'stream' ? `Streaming device ${device}` : `Type ${type}, device ${device}`;
      return `${who}: Completed ${offset} of ${len} bytes, speed limit ${speed} bytes/s\n`;
    })
    .join('');
}
