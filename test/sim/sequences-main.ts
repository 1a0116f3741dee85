import { parseArgs } from 'node:util';
import { type Kind, KINDS, proveSequence, sequences } from './sequences.js';

// All sequences of up to three. `--first write,zero`: those that begin so; of one kind alone: that one and all pairs.
// `--list`: what to give as --first, one after the other, so that each sequence has its turn once.

const MOST = 3;

const { values } = parseArgs({
  options: { first: { type: 'string' }, list: { type: 'boolean' }, seed: { type: 'string' } },
});

function kindsOf(names: string): Kind[] {
  return names.split(',').map((name) => {
    const kind = KINDS.find((known) => known === name);
    if (!kind) throw new Error(`unknown: ${name}; there are ${KINDS.join(' ')}`);
    return kind;
  });
}

async function prove(first: readonly Kind[], seed: number): Promise<void> {
  let [count, states] = [0, 0];
  for (const sequence of sequences(first, first.length === 1 ? 1 : MOST)) {
    states += await proveSequence(sequence, seed + count);
    count++;
  }
  console.log(`${count} sequences passed, ${states} states after a power loss`);
}

if (values.list === true) {
  for (const one of KINDS) {
    console.log(one);
    for (const other of KINDS) console.log(`${one},${other}`);
  }
} else await prove(kindsOf(values.first ?? KINDS.join()), Number(values.seed ?? 1));
