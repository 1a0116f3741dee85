import { BlockError } from '../base/error.js';
import { findDevice } from '../block/find-node.js';
import type { Node } from '../block/node.js';
import type { CommandArguments, CommandResult } from '../schema/commands.js';
import type { Parts } from './parts.js';

type Query = CommandArguments<'x-query-map'>;
type Engine = Parts<'graph' | 'host' | 'devices'>;
type Extent = CommandResult<'x-query-map'>['extents'][number];

/** An answer of so many is made in a few milliseconds. */
const MOST_EXTENTS = 4096;
/** Looks that one answer makes, of which neighbours may be one stretch; and after how many guests' requests come in. */
const MOST_LOOKS = 8192;
const LOOKS_A_TURN = 256;

export function registerDiskMap(engine: Engine & Parts<'command'>): void {
  engine.command('x-query-map', (args) => readMap(engine, args));
}

/** Which layer of the chain each part of a disk comes from, some stretches at a time. Errors: not-found, invalid. */
async function readMap(engine: Engine, args: Query): Promise<CommandResult<'x-query-map'>> {
  const { node: id, start = 0, most = MOST_EXTENTS } = args;
  const top = (engine.devices.get(id)?.backend.node ?? findDevice(engine.graph, id)).skipFilters();
  const { lengthBytes } = top;
  if (start > lengthBytes) throw new BlockError('invalid', `'start' is beyond the end of '${top.label}'`);
  const { clock } = engine.host;
  const count = Math.min(Math.max(most, 1), MOST_EXTENTS);
  const extents: Extent[] = [];
  let at = start;
  for (let looks = 0; at < lengthBytes && looks < MOST_LOOKS; looks++) {
    if (looks % LOOKS_A_TURN === LOOKS_A_TURN - 1) await clock.macrotask();
    const extent = await extentAt(top, at, lengthBytes - at);
    const last = extents.at(-1);
    if (last && last.layer === extent.layer && last.zero === extent.zero) last.length += extent.length;
    else if (extents.length < count) extents.push(extent);
    else break;
    at += extent.length;
  }
  const isWhole = at >= lengthBytes;
  return { size: lengthBytes, layers: namesOf(top), extents, ...(!isWhole && { next: at }) };
}

async function extentAt(top: Node, start: number, lengthBytes: number): Promise<Extent> {
  const status = await top.statusThroughChain(start, lengthBytes);
  return {
    ...{ start, length: status.lengthBytes },
    ...(status.allocated && { layer: status.depth }),
    zero: status.zero || !status.allocated,
  };
}

function namesOf(top: Node): string[] {
  const names: string[] = [];
  for (let node: Node | undefined = top; node; node = node.backingNode()) names.push(node.name);
  return names;
}
