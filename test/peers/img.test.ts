import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { imgMain } from '../../src/programs/img/main.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;
const start = process.cwd();

let folder = '';
before(() => {
  folder = mkdtempSync(join(tmpdir(), 'livedisk-img-'));
  mkdirSync(join(folder, 'ours'));
  mkdirSync(join(folder, 'theirs'));
});
after(() => {
  process.chdir(start);
  rmSync(folder, { recursive: true, force: true });
});

interface Answer {
  code: number | null;
  stdout: string;
  stderr: string;
}

async function ours(args: readonly string[]): Promise<Answer> {
  let stdout = '';
  let stderr = '';
  const out = {
    print: (text: string) => void (stdout += text),
    error: (text: string) => void (stderr += text),
  };
  const code = await imgMain(args, out, createRealHost(), allDrivers);
  return { code, stdout, stderr };
}

function theirs(args: readonly string[]): Answer {
  const done = spawnSync('qemu-img', args, { encoding: 'utf8', timeout: 60_000 });
  return { code: done.status, stdout: done.stdout, stderr: done.stderr };
}

const words = (line: string): string[] => line.split(' ').map((word) => (word === "''" ? '' : word));

/** Both folders get the same images, made by QEMU. */
function prepare(...lines: string[]): void {
  for (const side of ['ours', 'theirs']) {
    process.chdir(join(folder, side));
    for (const line of lines) {
      const [program = '', ...args] = line.startsWith('io ') ? ['qemu-io', ...ioArgs(line)] : words(line);
      const done = spawnSync(program, args, { encoding: 'utf8' });
      assert.equal(done.status, 0, `${line}: ${done.stderr}`);
    }
  }
}

/** "io FILE FORMAT command; command" */
function ioArgs(line: string): string[] {
  const [, file = '', format = '', commands = ''] = /^io (\S+) (\S+) (.*)$/.exec(line) ?? [];
  return ['-f', format, ...commands.split('; ').flatMap((command) => ['-c', command]), file];
}

/** The same words to both; disk sizes depend on the file system and on how metadata is laid out. */
async function alike(line: string, given = words(line)): Promise<void> {
  process.chdir(join(folder, 'theirs'));
  const expected = theirs(given);
  process.chdir(join(folder, 'ours'));
  const actual = await ours(given);
  const comparable = ({ code, stdout, stderr }: Answer): Answer => ({
    code,
    stdout: stdout
      .replace(/^disk size: .*$/gm, 'disk size: x')
      .replace(/"actual-size": \d+/g, '"actual-size": 0'),
    stderr: stderr.trimEnd(),
  });
  assert.deepEqual(comparable(actual), comparable(expected), line);
}

async function allAlike(lines: readonly string[]): Promise<void> {
  for (const line of lines) await alike(line);
}

const CHAIN = [
  'qemu-img create -q -f qcow2 a.q 10M',
  'qemu-img create -q -f qcow2 -b a.q -F qcow2 b.q',
  'qemu-img create -q -f qcow2 -b b.q -F qcow2 c.q 20M',
  'qemu-img create -q -f raw r.raw 5M',
  'qemu-img create -q -f qcow2 -o compat=0.10 v2.q 1M',
  'io a.q qcow2 write 0 128k; write 3M 1M',
  'io b.q qcow2 write 1M 64k; write -z 2M 64k; write -P 7 3M 200k',
  'io r.raw raw write 1M 64k',
];

test('create answers as qemu-img does', { skip }, async () => {
  await allAlike([
    'create -f qcow2 a.q 10M',
    'create -f qcow2 -o cluster_size=4k,lazy_refcounts=on a2.q 1.5G',
    'create -f raw r.raw 1M',
    'create r2.raw 1000',
    'create -f qcow2 -b a.q -F qcow2 b.q',
    'create -f qcow2 -b a.q c.q',
    'create -f qcow2 -b nope.q -F qcow2 c.q',
    'create -f qcow2 -b nope.q -F qcow2 -u c.q',
    'create -f qcow2 -b nope.q -F qcow2 -u c.q 5M',
    'create -f qcow2 -b nope.q -F qcow2 c2.q 5M',
    'create -f foo c.q 5M',
    'create -f qcow2 c.q',
    'create -f qcow2',
    'create -f qcow2 c.q 5M 6M',
    'create -f qcow2 c.q xx',
    'create -f qcow2 c.q -5',
    'create -f qcow2 -o foo=bar d.q 5M',
    'create -f raw -o foo=bar d.q 5M',
    'create -f raw -b a.q -F qcow2 d.q',
    'create -f qcow2 -o size=5M d.q',
    'create -f qcow2 -o size=5M d.q 6M',
    'create -f qcow2 -o backing_file=a.q,backing_fmt=qcow2 d.q',
    'create -q -f qcow2 d.q 1M',
    'create -f qcow2 -b a.q -F foo d.q',
    'create -f qcow2 /nonexistent/d.q 1M',
    'create -x',
    'create --foo',
    'foo',
    'create -f qcow2 -b a.q -F qcow2 d.q 20M',
    'create -f qcow2 -o compat=0.10 d.q 1M',
    'create -f qcow2 -o compat=v3 d.q 1M',
    'create -f qcow2 -o refcount_bits=8 d.q 1M',
    'create -f qcow2 -b d.q -F qcow2 d.q',
    'create -f qcow2 d.q 0',
    'create -f qcow2 d.q 1T',
    'create -f qcow2 -o lazy_refcounts=maybe e.q 1M',
    'create -f qcow2 -o size=foo e.q',
    'create -f qcow2 -o compat=0.10,backing_file=a.q,backing_fmt=qcow2,preallocation=off f.q',
    'create -f raw -o size=1M -o preallocation=off rr',
    'create -f qcow2 e.q 10X',
    'create -f qcow2 e.q 1b',
    'info e.q',
    'info r2.raw',
    'info a2.q',
  ]);
  await alike('no command', []);
});

test('info answers as qemu-img does', { skip }, async () => {
  prepare(...CHAIN);
  prepare(
    'qemu-img create -q -f qcow2 snapshots.q 4M',
    'io snapshots.q qcow2 write 0 128k',
    'qemu-img snapshot -c first snapshots.q',
    'qemu-img snapshot -c a-rather-long-name-of-one snapshots.q',
  );
  await allAlike([
    'info b.q',
    'info --output=json b.q',
    'info r.raw',
    'info --output=json -f raw r.raw',
    'info --backing-chain c.q',
    'info --backing-chain --output=json c.q',
    'info nofile',
    'info -f foo b.q',
    'info -f raw b.q',
    'info',
    'info b.q c.q',
    'info --output=foo b.q',
    'info -U b.q',
    'info v2.q',
    'info --output=json v2.q',
    'info -f qcow2 r.raw',
    'info ../ours/b.q',
    'info ../ours/snapshots.q',
    'info --output=json ../ours/snapshots.q',
  ]);
});

test('check answers as qemu-img does', { skip }, async () => {
  prepare(...CHAIN);
  await allAlike([
    'check a.q',
    'check b.q',
    'check --output=json b.q',
    'check --output=json a.q',
    'check -f raw r.raw',
    'check nofile',
    'check',
    'check -f qcow2 r.raw',
    'check -q b.q',
    'check -r foo b.q',
    'check a b',
    'check --output=x b.q',
  ]);
});

test('check finds leaks as qemu-img does', { skip }, async () => {
  prepare(...CHAIN);
  // The last cluster in use is taken from the L2 table: nobody refers to it any more.
  for (const side of ['ours', 'theirs']) {
    process.chdir(join(folder, side));
    const map = spawnSync('qemu-img', ['map', '--output=json', 'v2.q'], { encoding: 'utf8' });
    assert.equal(map.status, 0);
    leakCluster(join(folder, side, 'a.q'));
  }
  await allAlike(['check a.q', 'check --output=json a.q', 'check -q a.q']);
});

/** Clears the first entry of the first L2 table. */
function leakCluster(path: string): void {
  const bytes = readFileSync(path);
  const l1Offset = Number(bytes.readBigUInt64BE(40));
  const l2Offset = Number(BigInt.asUintN(56, bytes.readBigUInt64BE(l1Offset)));
  const done = spawnSync('qemu-io', ['-f', 'raw', '-c', `write -P 0 ${l2Offset} 8`, path]);
  assert.equal(done.status, 0);
}

test('map answers as qemu-img does', { skip }, async () => {
  prepare(...CHAIN);
  await allAlike([
    'map a.q',
    'map b.q',
    'map --output=json b.q',
    'map c.q',
    'map --output=json c.q',
    'map -f raw --output=json r.raw',
    'map -f raw r.raw',
    'map -s 1M -l 1M --output=json b.q',
    'map --start-offset=1M --max-length=1M --output=json c.q',
    'map nofile',
    'map',
    'map --output=x b.q',
    'map -s x b.q',
    'map -l x b.q',
    'map -s 30M --output=json b.q',
  ]);
});

test('compare answers as qemu-img does', { skip }, async () => {
  prepare(
    ...CHAIN,
    'cp b.q b2.q',
    'cp b.q b3.q',
    'io b3.q qcow2 write 5M 512',
    'qemu-img create -q -f qcow2 big.q 20M',
    'qemu-img create -q -f qcow2 small.q 10M',
    'qemu-img create -q -f qcow2 s2.q 10M',
    'qemu-img create -q -f qcow2 big2.q 20M',
    'io big2.q qcow2 write 15M 512',
    'io s2.q qcow2 write 1000 100',
  );
  await allAlike([
    'compare a.q b.q',
    'compare a.q c.q',
    'compare -s a.q c.q',
    'compare -f raw -F raw r.raw r.raw',
    'compare b.q b.q',
    'compare a.q',
    'compare a.q nofile',
    'compare nofile a.q',
    'compare -q a.q b.q',
    'compare b.q b2.q',
    'compare -s b.q b2.q',
    'compare b.q b3.q',
    'compare -s b.q b3.q',
    'compare big.q small.q',
    'compare -s big.q small.q',
    'compare small.q big.q',
    'compare big2.q small.q',
    'compare small.q big2.q',
    'compare -s small.q s2.q',
    'compare small.q s2.q',
    'compare -f foo a.q b.q',
    'compare -F foo a.q b.q',
    'compare a b c',
    'compare -r a b',
  ]);
});

test('rebase -u answers and writes as qemu-img does', { skip }, async () => {
  prepare(...CHAIN);
  await allAlike([
    'rebase -u -b a.q -F qcow2 c.q',
    'info c.q',
    "rebase -u -b '' c.q",
    'info c.q',
    'rebase -u -b a.q c.q',
    'rebase c.q',
    'rebase -u c.q',
    'rebase -u -b nofile -F qcow2 c.q',
    'info c.q',
    'rebase -u -b nofile -F foo c.q',
    'rebase -f raw -u -b a.q -F qcow2 r.raw',
    'rebase -u -b a.q -F qcow2 nofile',
    'rebase -f qcow2 -u -b a.q -F qcow2',
    `rebase -u -b ${'x'.repeat(1024)} -F qcow2 c.q`,
    'check c.q',
  ]);
});

test('convert copies as qemu-img does, and either reads what the other wrote', { skip }, async () => {
  prepare(...CHAIN);
  await allAlike([
    'convert -f qcow2 -O raw c.q o.raw',
    'convert -O qcow2 -f raw r.raw o.q',
    'convert -O qcow2 -o cluster_size=4k c.q o4.q',
    'convert -O qcow2 -B a.q -F qcow2 b.q ob.q',
    'convert -O qcow2 -o compat=0.10 c.q o2.q',
    'convert -S 0 -O raw c.q full.raw',
    'convert -C -f raw -O raw r.raw copy.raw',
    'convert -f raw -O raw r.raw r.raw cat.raw',
    'convert -n -O raw b.q o.raw',
    'convert -m 3 -W -O qcow2 c.q om.q',
  ]);
  for (const [name, format, like] of [
    ['o.raw', 'raw', 'o.raw'],
    ['o.q', 'qcow2', 'o.q'],
    ['o4.q', 'qcow2', 'o4.q'],
    ['ob.q', 'qcow2', 'ob.q'],
    ['o2.q', 'qcow2', 'o2.q'],
    ['om.q', 'qcow2', 'om.q'],
    ['full.raw', 'raw', 'full.raw'],
    ['copy.raw', 'raw', 'copy.raw'],
    ['cat.raw', 'raw', 'cat.raw'],
  ] as const) {
    const pair = [join(folder, 'ours', name), join(folder, 'theirs', like)];
    process.chdir(folder);
    const theirView = theirs(['compare', '-f', format, '-F', format, ...pair]);
    assert.equal(theirView.code, 0, `${name}: ${theirView.stdout}${theirView.stderr}`);
    const ourView = await ours(['compare', '-f', format, '-F', format, ...pair]);
    assert.equal(ourView.stdout, 'Images are identical.\n', name);
    if (format === 'qcow2') assert.equal(theirs(['check', pair[0] ?? '']).code, 0, name);
  }
  const allocated = (side: string, name: string): number => statSync(join(folder, side, name)).blocks;
  assert.equal(allocated('ours', 'full.raw'), allocated('theirs', 'full.raw'));
  assert.ok(allocated('ours', 'copy.raw') <= allocated('theirs', 'copy.raw'));
});

test('convert refuses what qemu-img refuses, in its words', { skip }, async () => {
  prepare(...CHAIN, 'qemu-img create -q -f raw sm 1M', 'qemu-img create -q -f raw o.raw 10M');
  await allAlike([
    'convert -O foo a.q o',
    'convert -f foo a.q o',
    'convert nofile o',
    'convert a.q /no/o',
    'convert a.q',
    'convert',
    'convert -c -O raw a.q o',
    'convert -n -O raw a.q onone',
    'convert -n -O raw a.q sm',
    'convert -O qcow2 -B nofile -F qcow2 b.q o.q',
    'convert -O qcow2 -B a.q b.q o.q',
    'convert -O raw -B a.q -F qcow2 b.q o.q',
    'convert -S x a.q o',
    'convert -S 1000 a.q o',
    'convert -m 0 a.q o',
    'convert -m 17 a.q o',
    'convert -t foo a.q o',
    'convert -T foo a.q o',
    'convert a.q a.q',
    'convert -o foo=bar -O qcow2 a.q o',
    'convert -n -o cluster_size=4k -O qcow2 a.q o.raw',
    'convert -C -S 0 a.q o',
    'convert --target-is-zero a.q o',
    'convert -F qcow2 a.q o',
    'convert -O qcow2 -o backing_file=a.q b.q o',
  ]);
});
