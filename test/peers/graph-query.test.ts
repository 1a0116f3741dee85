import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { type Options, Sides } from './storage-sides.js';

const missing = ['qemu-storage-daemon', 'qemu-img'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;

interface Graph {
  nodes: Array<{ id: number; type: string; name: string }>;
  edges: Array<{ parent: number; child: number; name: string; perm: string[]; 'shared-perm': string[] }>;
}

/** Who is there and who asks whom for what; names that nobody chose are alike. */
function described(answer: unknown): unknown {
  const { nodes, edges } = answer as Graph;
  const names = new Map(nodes.map(({ id, type, name }) => [id, `${type} ${name.replace(/^#.*/, '#')}`]));
  return {
    nodes: [...names.values()],
    edges: edges.map(({ parent, child, name, ...perms }) => [
      names.get(parent),
      names.get(child),
      name,
      perms,
    ]),
  };
}

/** The same answers; how a job's filter is described is each side's own. */
async function answered(sides: Sides, command: string, args: Options): Promise<void> {
  const [ours, theirs] = (await sides.both(command, args)).map((answer) =>
    JSON.stringify(answer).replace(/#block\d+/g, '#block'),
  );
  assert.equal(ours, theirs, `${command} ${JSON.stringify(args)}`);
}

async function addChain(sides: Sides): Promise<void> {
  await sides.add(
    { driver: 'qcow2', 'node-name': 'a', file: { driver: 'file', filename: 'a.q' } },
    { driver: 'qcow2', 'node-name': 'o', file: { driver: 'file', filename: 'o.q' }, backing: 'a' },
    { driver: 'qcow2', 'node-name': 't', file: { driver: 'file', filename: 't.q' }, backing: 'o' },
    { driver: 'null-co', 'node-name': 'n', size: 4194304, 'read-zeroes': true },
  );
}

const copy = {
  'job-id': 'j',
  device: 't',
  target: 'n',
  sync: 'full',
  speed: 1,
  'filter-node-name': 'filter',
};
const JOBS: ReadonlyArray<readonly [string, Options]> = [
  ['blockdev-mirror', copy],
  ['blockdev-backup', copy],
  [
    'block-commit',
    {
      'job-id': 'j',
      device: 't',
      'top-node': 'o',
      'base-node': 'a',
      speed: 1,
      'auto-finalize': false,
      'filter-node-name': 'filter',
    },
  ],
  ['block-commit', { 'job-id': 'j', device: 't', speed: 1, 'base-node': 'a', 'filter-node-name': 'filter' }],
];

for (const [command, args] of JOBS)
  test(
    `x-debug-query-block-graph: ${command} ${args['top-node'] === undefined ? '' : 'below the top'}`,
    { skip },
    async (t) => {
      const sides = await Sides.start(t);
      await addChain(sides);
      await sides.alike('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd.sock' } } });
      await sides.alike('block-export-add', { type: 'nbd', id: 'e', 'node-name': 't' });
      const compare = async (): Promise<void> => {
        const [ours, theirs] = await sides.both('x-debug-query-block-graph', {});
        assert.deepEqual(described(ours), described(theirs));
      };
      await compare();
      const started = await sides.both(command, args);
      assert.deepEqual(started, [{}, {}]);
      await compare();
      for (const name of ['a', 'o', 't', 'n', 'filter'])
        await answered(sides, 'x-blockdev-set-iothread', { 'node-name': name, iothread: null });
    },
  );

test('what may be asked of a chain of which a lower layer is streamed', { skip }, async (t) => {
  const sides = await Sides.start(t);
  await addChain(sides);
  const args = { 'job-id': 'j', device: 'o', speed: 1, 'filter-node-name': 'filter' };
  await answered(sides, 'block-stream', args);
  for (const name of ['a', 'o', 't', 'filter'])
    await answered(sides, 'x-blockdev-set-iothread', { 'node-name': name, iothread: null });
  for (const image of ['o', 't', 'a', 'n'])
    await answered(sides, 'change-backing-file', {
      device: 't',
      'image-node-name': image,
      'backing-file': 'a.q',
    });
  for (const [top, base] of [
    ['a', 'a'],
    ['o', 'o'],
    ['t', 't'],
    ['o', 't'],
    ['o', 'a'],
  ])
    await answered(sides, 'block-commit', {
      'job-id': 'k',
      device: 't',
      'top-node': top,
      'base-node': base,
    });
});

test('block_resize tells of other users first', { skip }, async (t) => {
  const sides = await Sides.start(t);
  const file = { driver: 'file', filename: 'b.q' };
  await sides.add({ driver: 'qcow2', 'node-name': 'b', file, 'read-only': true });
  await answered(sides, 'block_resize', { 'node-name': 'b', size: 4194304 });
  await sides.add({ driver: 'null-co', 'node-name': 'n', size: 4194304, 'read-zeroes': true });
  await answered(sides, 'blockdev-backup', { 'job-id': 'j', device: 'b', target: 'n', sync: 'none' });
  await answered(sides, 'block_resize', { 'node-name': 'b', size: 4194304 });
});
