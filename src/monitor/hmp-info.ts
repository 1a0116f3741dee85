import { BlockError } from '../base/error.js';
import type { Node } from '../block/node.js';
import type { GuestDevice } from '../guest/device.js';
import type { Engine } from './engine.js';

/** `info block [-n] [-v] [DEVICE]`. */
export function infoBlock(engine: Engine, words: string[]): string {
  const flags = words.filter((word) => word.startsWith('-')).join('');
  const wanted = words.find((word) => !word.startsWith('-'));
  if (flags.includes('v'))
    throw new BlockError('unsupported', 'info block: -v is not supported; query-block has all details');
  const out: string[] = [];
  if (!flags.includes('n') && wanted === undefined) {
    for (const device of engine.devices.values())
      out.push(describe(device.backend.node.skipImplicitFilters(), device));
  } else {
    for (const node of [...engine.graph.nodes.values()].reverse())
      if (wanted === undefined || node.name === wanted) out.push(describe(node, deviceOf(engine, node)));
    if (out.length === 0) return `Device '${wanted ?? ''}' not found\n`;
  }
  return out.join('\n');
}

function deviceOf(engine: Engine, node: Node): GuestDevice | undefined {
  return [...engine.devices.values()].find(({ backend }) => backend.node.skipImplicitFilters() === node);
}

function describe(node: Node, device: GuestDevice | undefined): string {
  const lines = [`${node.name}: ${node.filename} (${node.driver.name}${node.readOnly ? ', read-only' : ''})`];
  if (device) {
    lines.push(field('Attached to', device.qdevPath));
    if (device.ioStatus !== 'ok') lines.push(field('I/O status', device.ioStatus));
  }
  lines.push(field('Cache mode', device?.writeCache === false ? 'writethrough' : 'writeback'));
  if (node.backingFilename !== undefined)
    lines.push(field('Backing file', `${node.backingFilename} (chain depth: ${depthOf(node)})`));
  return lines.map((line) => `${line}\n`).join('');
}

function field(name: string, value: string): string {
  return `    ${`${name}:`.padEnd(18)}${value}`;
}

function depthOf(node: Node): number {
  const below = node.backingNode();
  return below ? 1 + depthOf(below) : 0;
}

export function infoBlockJobs({ jobs }: Engine): string {
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
