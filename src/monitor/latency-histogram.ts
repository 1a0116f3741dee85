import { BlockError } from '../base/error.js';
import { LatencyHistogram } from '../block/latency-histogram.js';
import type { CommandArguments } from '../schema/commands.js';
import { diskOfDevice } from './media.js';
import type { Parts } from './parts.js';

type Request = CommandArguments<'block-latency-histogram-set'>;

export function registerLatencyHistogram(engine: Parts<'command' | 'devices' | 'machine'>): void {
  engine.command('block-latency-histogram-set', (args) => setHistograms(engine, args));
}

/** Those of read, write and flush in this order: what comes before wrong boundaries is set. Without any, none is left. */
function setHistograms(engine: Parts<'devices' | 'machine'>, args: Request): void {
  const { id, boundaries } = args;
  const { statistics } = diskOfDevice(engine, id).backend;
  const given = OPERATIONS.map((operation) => args[`boundaries-${operation}`] ?? boundaries);
  if (given.every((values) => values === undefined)) {
    for (const operation of OPERATIONS) statistics[operation].histogram = undefined;
    return;
  }
  for (const [i, operation] of OPERATIONS.entries()) {
    const values = given[i];
    if (values === undefined) continue;
    const unsigned = values.map((value) => (value < 0 ? BigInt.asUintN(64, BigInt(value)) : value));
    if (!LatencyHistogram.areBoundaries(unsigned))
      throw new BlockError('invalid', `Device '${id}' set ${operation} boundaries fail`);
    statistics[operation].histogram = new LatencyHistogram(unsigned);
  }
}

const OPERATIONS = ['read', 'write', 'flush'] as const;
