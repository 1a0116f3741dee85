import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Sides } from './storage-sides.js';
import { ToolPair } from './tool-pair.js';

const missing = ['qemu-img', 'qemu-io', 'qemu-storage-daemon'].find(
  (tool) => spawnSync(tool, ['--version']).error,
);
const skip = missing === undefined ? false : `${missing} is not installed`;

const child = (name: string): string => `{"driver":"file","filename":"${name}"}`;
const quorum = (more: string, ...names: string[]): string =>
  `json:{"driver":"quorum","vote-threshold":2,"children":[${names.map(child).join(',')}]${more}}`;

/** QEMU repeats a command line's numbers as the texts that they were. */
function withoutQuotedNumbers(text: string): string {
  return text.replace(/"(\d+)"/g, '$1');
}

/** Who uses whom, how. */
function edgesOf(graph: unknown): string[] {
  const { nodes, edges } = graph as {
    nodes: Array<{ id: number; name: string }>;
    edges: Array<{ parent: number; child: number; name: string; perm: string[]; 'shared-perm': string[] }>;
  };
  const nameOf = (id: number): string =>
    (nodes.find((node) => node.id === id)?.name ?? '').replace(/^#block.*/, '#');
  return edges
    .map((edge) => {
      const perms = [edge.perm, edge['shared-perm']].map((list) => [...list].sort().join('+'));
      return `${nameOf(edge.parent)} ${edge.name} ${nameOf(edge.child)} ${perms.join(' / ')}`;
    })
    .sort();
}

test('quorum: votes, mends, compares and says what it is', { skip }, async (t) => {
  const pair = new ToolPair(t);
  pair.prepare(...['a', 'b', 'c'].map((name) => `truncate -s 1M ${name}`), 'truncate -s 2M big');
  const all = quorum('', 'a', 'b', 'c');
  await pair.alike(`io -c 'write -P 5 0 64k' -c 'write -z 128k 64k' -c 'read -P 5 0 64k' '${all}'`);
  pair.prepare('cmp a b', 'cmp a c', "qemu-io -f raw -c 'write -P 6 4k 4k' b");
  await pair.alike(`io -c 'read -P 5 0 64k' '${all}'`);
  await pair.alike(`io -c 'read -P 5 0 64k' '${quorum(',"rewrite-corrupted":true', 'a', 'b', 'c')}'`);
  pair.prepare('cmp a b', "qemu-io -f raw -c 'write -P 6 4k 4k' b", "qemu-io -f raw -c 'write -P 7 4k 4k' c");
  await pair.alike(`io -c 'read -P 5 0 64k' '${all}'`);
  await pair.alike(`io -c 'read -P 5 0 64k' '${quorum(',"read-pattern":"fifo"', 'a', 'b', 'c')}'`);
  for (const more of [
    '',
    ',"read-pattern":"fifo","rewrite-corrupted":false',
    ',"blkverify":true',
    ',"rewrite-corrupted":true',
    ',"rewrite-corrupted":true,"blkverify":true',
    ',"read-pattern":"bar"',
    ',"foo":1',
  ])
    await pair.alike(`img info '${quorum(more, 'a', 'b')}'`);
  await pair.alike(`img info '${quorum('', 'a', 'big')}'`);
  await pair.alike(`img info '${quorum('')}'`);
  await pair.alike(`img info '${quorum('', 'a')}'`);
  await pair.alike(`img map --output=json '${quorum('', 'a', 'b')}'`);
  await pair.alike(`io -c 'discard 0 4k' -c 'truncate 2M' '${quorum('', 'a', 'b')}'`);
  const listed = 'driver=quorum,vote-threshold=2';
  for (const options of [
    `${listed},children.0.driver=raw,children.0.file.filename=a,children.1.driver=raw,children.1.file.filename=b`,
    `${listed},children.0.filename=a,children.1.driver=file,children.1.filename=b`,
    `${listed},children.0.driver=file,children.0.filename=a,children.2.driver=file,children.2.filename=b`,
    'driver=quorum,children.0.driver=file,children.0.filename=a',
    'driver=quorum,vote-threshold=-1,children.0.driver=file,children.0.filename=a',
    'driver=quorum,vote-threshold=x,children.0.driver=file,children.0.filename=a',
  ])
    await pair.alike(`img info --image-opts ${options}`, withoutQuotedNumbers);
  await pair.alike('img info quorum:a');
});

test('children of a quorum come and go', { skip }, async (t) => {
  const sides = await Sides.start(t);
  const raw = (name: string, file: string): { [key: string]: unknown } => ({
    ...{ driver: 'raw', 'node-name': name },
    file: { driver: 'file', filename: file, locking: 'off' },
  });
  await sides.add(raw('x', 'r.raw'), raw('y', 's.raw'), raw('z', 'r.raw'), raw('free', 's.raw'));
  const of = (more: object): { [key: string]: unknown } => ({
    ...{ driver: 'quorum', 'node-name': 'q', 'vote-threshold': 2 },
    ...more,
  });
  const alike = async (command: string, args: { [key: string]: unknown }): Promise<void> => {
    const [ours, theirs] = await sides.both(command, args);
    assert.deepEqual(ours, theirs, JSON.stringify(args));
  };
  for (const more of [
    { children: [] },
    {},
    { children: 'x' },
    { children: ['x', 'nope'] },
    { children: ['x'] },
    { children: ['x', 'y'], 'vote-threshold': 0 },
    { children: ['x', 'y', 'z'], blkverify: true },
    { children: ['x', 'y'], 'read-pattern': 'z' },
  ])
    await alike('blockdev-add', of(more));
  await alike('blockdev-add', of({ children: ['x', 'y'] }));
  for (const args of [
    { parent: 'q' },
    { parent: 'nope', node: 'z' },
    { parent: 'q', node: 'nope' },
    { parent: 'q', child: 'nope' },
    { parent: 'q', child: 'children.0', node: 'z' },
    { parent: 'free', node: 'z' },
    { parent: 'free', child: 'file' },
    { parent: 'q', node: 'z' },
    { parent: 'q', node: 'z' },
    { parent: 'q', child: 'children.0' },
    { parent: 'q', child: 'children.1' },
    { parent: 'q', node: 'x' },
    { parent: 'q', child: 'children.3' },
    { parent: 'q', node: 'free' },
  ])
    await alike('x-blockdev-change', args);
  const [ours, theirs] = await sides.both('x-debug-query-block-graph', {});
  assert.deepEqual(edgesOf(ours), edgesOf(theirs));
  await alike('blockdev-reopen', { options: [of({ children: ['y', 'z', 'free'] })] });
  await alike('blockdev-del', { 'node-name': 'z' });
  await alike('blockdev-del', { 'node-name': 'q' });
});

test('preallocate: options, and the end of the file', { skip }, async (t) => {
  const pair = new ToolPair(t);
  pair.prepare('truncate -s 1M p', 'qemu-img create -q -f qcow2 q 64M');
  const filter = (more: string, name = 'p'): string =>
    `json:{"driver":"preallocate","file":{"driver":"file","filename":"${name}"}${more}}`;
  for (const more of ['', ',"prealloc-align":511', ',"prealloc-align":4096', ',"prealloc-size":-1', ',"x":1'])
    await pair.alike(`io -c 'write -P 1 0 64k' -c 'write 1M 4k' -c length '${filter(more)}'`);
  await pair.alike(`img info '${filter(',"prealloc-size":2048')}'`);
  const image = `json:{"driver":"qcow2","file":${filter(',"prealloc-size":1048576', 'q').slice('json:'.length)}}`;
  await pair.alike(`io -c 'write -P 3 0 1M' -c 'read -P 3 0 1M' '${image}'`);
  await pair.alike(`img info '${image}'`);
  await pair.alike('img check q');
  pair.alikeInShell('test $(stat -c %s q) -lt 2000000; qemu-img compare -f qcow2 q q');
});

/** The log's entries without those of flushes: how often a tool flushes is its own affair. */
function entriesOf(path: string): string[] {
  const log = readFileSync(path);
  const sectorBytes = log.readUInt32LE(24);
  const found: string[] = [];
  let at = sectorBytes;
  for (let left = log.readBigUInt64LE(16); left > 0n; left--) {
    const [sector, sectors, flags] = [0, 8, 16].map((field) => Number(log.readBigUInt64LE(at + field)));
    const data = flags === 4 ? 0 : (sectors as number) * sectorBytes;
    const first = data > 0 ? log[at + sectorBytes] : '-';
    if (flags !== 1) found.push(`${sector}+${sectors} ${flags} ${first}`);
    at += sectorBytes + data;
  }
  assert.equal(log.length >= at, true);
  return found;
}

/** Where a file keeps a write by itself, one that goes through is noted as such. */
test('blklogwrites: the log is the one of QEMU, and goes on where QEMU ended', { skip }, async (t) => {
  const pair = new ToolPair(t);
  pair.prepare('truncate -s 1M f', 'truncate -s 0 l', 'truncate -s 1M garbage');
  const filter = (more = '', log = 'l'): string =>
    `json:{"driver":"blklogwrites","file":${child('f')},"log":${child(log)}${more}}`;
  const work =
    "-c 'write -P 1 0 4k' -c 'write -P 2 4k 512' -c 'write -z 8k 4k' -c 'discard 8k 4k' -c flush " +
    "-c 'write -P 7 100 300' -c 'discard 33k 1k'";
  for (const more of ['', ',"log-append":true', ',"log-sector-size":512', ',"log-sector-size":"512"']) {
    await pair.alike(`io -t writeback ${work} '${filter(more)}'`);
    assert.deepEqual(entriesOf(pair.path('ours', 'l')), entriesOf(pair.path('theirs', 'l')), more);
  }
  // Each goes on with the other's log.
  pair.shell('theirs', 'cp l ../ours/l; cp f ../ours/f');
  await pair.alike(`io -t writeback -c 'write -P 9 0 512' '${filter(',"log-append":true')}'`);
  assert.deepEqual(entriesOf(pair.path('ours', 'l')), entriesOf(pair.path('theirs', 'l')));
  pair.shell('ours', 'cp l ../theirs/l');
  await pair.alike(`io -t writeback -c 'write -P 8 512 512' '${filter(',"log-append":true')}'`);
  assert.deepEqual(entriesOf(pair.path('ours', 'l')), entriesOf(pair.path('theirs', 'l')));
  for (const more of [
    ',"log-sector-size":0',
    ',"log-sector-size":1000',
    ',"log-sector-size":16777216',
    ',"log-sector-size":"abc"',
    ',"log-append":true,"log-sector-size":4096',
    ',"log-append":true,"log-super-update-interval":0',
    ',"log-super-update-interval":"1k"',
    ',"log-sector-size":4096',
    '',
  ])
    await pair.alike(`img info '${filter(more)}'`);
  await pair.alike(`img info '${filter(',"log-append":true', 'garbage')}'`);
  await pair.alike(`img info 'json:{"driver":"blklogwrites","file":${child('f')}}'`);
  await pair.alike(`img info 'json:{"driver":"blklogwrites","log":${child('l')}}'`);
});
