import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { ioMain } from '../../src/programs/io/main.js';
import { type ToolAnswer, toolAnswer } from '../kit/tool-answer.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;
const start = process.cwd();
const SIDES = ['ours', 'theirs'] as const;

let folder = '';
before(() => {
  folder = mkdtempSync(join(tmpdir(), 'livedisk-io-'));
  for (const side of SIDES) mkdirSync(join(folder, side));
});
after(() => {
  process.chdir(start);
  rmSync(folder, { recursive: true, force: true });
});

/** Times, rates and the options that livedisk's help does not list are left out. */
function comparable({ code, stdout, stderr }: ToolAnswer): ToolAnswer {
  const text = stdout
    .replace(/ops; .*$/gm, 'ops')
    .replace(/^(\d+,1),.*$/gm, '$1')
    .replace(/^(read|write) \[.*$/gm, '$1 usage');
  return { code, stdout: text, stderr };
}

async function alike(args: readonly string[]): Promise<void> {
  process.chdir(join(folder, 'theirs'));
  const done = spawnSync('qemu-io', args, { encoding: 'utf8', timeout: 120_000, input: '' });
  process.chdir(join(folder, 'ours'));
  const actual = await toolAnswer((out) => ioMain(args, out, createRealHost(), allDrivers));
  const expected = { code: done.status, stdout: done.stdout, stderr: done.stderr };
  assert.deepEqual(comparable(actual), comparable(expected), args.join(' '));
}

function make(name: string, ...args: string[]): void {
  const path = join(folder, 'theirs', name);
  const done = spawnSync('qemu-img', ['create', '-q', ...args, path, '10M'], { encoding: 'utf8' });
  assert.equal(done.status, 0, done.stderr);
  copyFileSync(path, join(folder, 'ours', name));
}

/** What either wrote reads alike by the other, and qemu-img finds nothing wrong. */
async function sameContent(name: string, format: string): Promise<void> {
  const paths = SIDES.map((side) => join(folder, side, name));
  const done = spawnSync('qemu-img', ['compare', '-f', format, '-F', format, ...paths], { encoding: 'utf8' });
  assert.equal(done.stdout, 'Images are identical.\n', done.stderr);
  if (format === 'raw') return;
  const check = spawnSync('qemu-img', ['check', '-f', format, paths[0] ?? ''], { encoding: 'utf8' });
  assert.equal(check.status, 0, check.stdout + check.stderr);
}

const COMMANDS = [
  'write -P 0xab 0 64k',
  'read -P 0xab 0 64k',
  'read -P 0xaa 0 64k',
  'read -v 65500 64',
  'read -C 0 4k',
  'write -C 0 4k',
  'read -q 0 512',
  'read',
  'read 0',
  'read -z 0 1',
  'read x 1',
  'read 0 x',
  'read 0 -1',
  'read 0 3G',
  'read 0 1 2',
  'read 10M 512',
  'read -P 300 0 1',
  'read -s 5 0 512',
  'read -P 0xcd -s 500 -l 500 0 512',
  'read -P 0xcd -l 500 -s 4 0 512',
  'write -z -P 1 0 1',
  'write -n 0 1',
  'write -u 0 1',
  'write -b -z 0 1',
  'write -f -b 0 512',
  'write -f 0 512',
  'write -z 64k 64k',
  'write -zu 128k 64k',
  'write -znu 192k 64k',
  'write -s nofile 0 512',
  'write -s pattern 1000 5000',
  'write 10M 512',
  'aio_write -P 9 2M 4k 4k',
  'aio_flush',
  'aio_read -P 9 2M 8k',
  'aio_flush',
  'aio_read -P 8 2M 8k',
  'aio_flush',
  'aio_write -z 0 512 512',
  'aio_write -u 0 512',
  'aio_read 10M 512',
  'aio_flush',
  'aio_read -i 0 512',
  'aio_write -i 0 512',
  'readv -v 0 16 16',
  'readv -P 1 0 16 16',
  'readv 0',
  'readv 0 x',
  'writev -P 3 512 1k 1k',
  'writev 0 9M 9M',
  'writev 0 2G 1',
  'flush',
  'flush x',
  'discard 0 64k',
  'discard 0',
  'discard 10M 64k',
  'discard 0 100G',
  'alloc 0',
  'alloc 0 1M',
  'alloc 0 11M',
  'alloc 11M',
  'alloc x',
  'alloc 0 1 2',
  'map',
  'map x',
  'length',
  'info',
  'truncate 20M',
  'truncate x',
  'truncate -m foo 21M',
  'length',
  'sleep 1',
  'sleep x',
  'foo',
  'help foo',
  'break write_aio x',
  'resume x',
  'remove_break x',
  'read 16E 1',
  'read 0.5k 1.5k',
  'read 1.5 1',
  'read 0 0',
];

for (const format of ['qcow2', 'raw']) {
  test(`every command answers and writes as qemu-io's does: ${format}`, { skip }, async () => {
    const name = `a.${format}`;
    make(name, '-f', format);
    for (const side of SIDES) writeFileSync(join(folder, side, 'pattern'), 'abc');
    for (const command of COMMANDS) {
      if (format === 'raw' && /^(alloc|map)/.test(command)) continue;
      await alike(['-f', format, '-c', command, name]);
    }
    await sameContent(name, format);
  });
}

test('the command line answers as that of qemu-io', { skip }, async () => {
  make('b.qcow2', '-f', 'qcow2');
  const cases = [
    '-f qcow2 nofile',
    '-f foo b.qcow2',
    '-t foo b.qcow2',
    '-d foo b.qcow2',
    '-i foo b.qcow2',
    '-f qcow2 -c length b.qcow2 -c foo -c length',
    '-r -c length b.qcow2',
    '-r -U -f qcow2 -c length b.qcow2',
    '-U -f qcow2 -c length b.qcow2',
    '-f raw -c length b.qcow2 -c quit -c length',
  ];
  for (const line of cases) await alike(line.split(' '));
  for (const command of ['write 0 512', 'discard 0 64k', 'write -z 0 512', 'aio_write 0 512', 'flush'])
    await alike(['-r', '-f', 'qcow2', '-c', command, 'b.qcow2']);
});
