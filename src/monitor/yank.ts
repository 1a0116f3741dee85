import { BlockError } from '../base/error.js';
import type { Json } from '../block/driver.js';
import type { Parts } from './parts.js';

/** A connection that may hang, by what it is known by. */
interface Instance {
  readonly about: { readonly [member: string]: Json };
  readonly giveUp: () => void;
}

type Source = Parts<'command' | 'graph' | 'moves'>;

/** Connections are given up on demand, ahead of all commands that may wait for them. */
export function registerYank(engine: Source): void {
  engine.command('query-yank', () => instances(engine).map(({ about }) => about));
  engine.command('yank', ({ instances: wanted }) => {
    const there = new Map(instances(engine).map((one) => [keyOf(one.about), one]));
    const found = wanted.map((about) => there.get(keyOf(about)));
    if (found.includes(undefined)) throw new BlockError('device-not-found', 'Instance not found');
    for (const one of found) one?.giveUp();
  });
}

function keyOf(about: object): string {
  return JSON.stringify(Object.entries(about).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Newest first; a move comes last. */
function instances({ graph, moves }: Source): Instance[] {
  const nodes = graph
    .listed()
    .filter((node) => node.isOpen && node.instance.yank !== undefined)
    .map((node) => ({
      about: { type: 'block-node', 'node-name': node.name },
      giveUp: () => node.instance.yank?.(),
    }))
    .reverse();
  if (!moves.isConnecting) return nodes;
  return [...nodes, { about: { type: 'migration' }, giveUp: () => moves.hangUp() }];
}
