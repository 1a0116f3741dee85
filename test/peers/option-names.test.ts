import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { ioMain } from '../../src/programs/io/main.js';
import { toolAnswer } from '../kit/tool-answer.js';
import { NAMES } from './option-names.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;
const start = process.cwd();

let folder = '';
before(() => {
  if (skip !== false) return;
  folder = mkdtempSync(join(tmpdir(), 'livedisk-names-'));
  process.chdir(folder);
  symlinkSync('loop', 'loop');
  for (const [program = '', ...args] of [
    ['qemu-img', 'create', '-q', '-f', 'qcow2', 'b.qcow2', '2M'],
    ['qemu-io', '-c', 'write -P 1 0 2M', 'b.qcow2'],
    ['qemu-img', 'create', '-q', '-f', 'raw', 'r.raw', '4M'],
    ['qemu-io', '-f', 'raw', '-c', 'write -P 7 1M 64k', 'r.raw'],
    ['qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'b.qcow2', '-F', 'qcow2', 'o.qcow2'],
  ]) {
    const done = spawnSync(program, args, { encoding: 'utf8' });
    assert.equal(done.status, 0, done.stderr);
  }
});
after(() => {
  process.chdir(start);
  if (folder !== '') rmSync(folder, { recursive: true, force: true });
});

/** Whether it opens, what it shows, what is said against it. */
interface Seen {
  code: number | null;
  stdout: string;
  stderr: string;
}

function seen({ code, stdout, stderr }: Seen): Seen {
  return { code, stdout: stdout.replace(/^.*ops;.*\n/gm, ''), stderr: stderr.trimEnd() };
}

async function bothReads(args: readonly string[]): Promise<{ ours: Seen; theirs: Seen }> {
  const all = ['-r', '-c', 'read -P 1 0 512', '-c', 'read -P 7 0 512', ...args];
  const done = spawnSync('qemu-io', all, { encoding: 'utf8', timeout: 120_000, input: '' });
  const theirs = { code: done.status, stdout: done.stdout, stderr: done.stderr };
  const ours = await toolAnswer((out) => ioMain(all, out, createRealHost(), allDrivers));
  return { ours: seen(ours), theirs: seen(theirs) };
}

test('names by options are opened and refused as QEMU does, in its words', { skip }, async () => {
  const differences: unknown[] = [];
  for (const name of NAMES) {
    const { ours, theirs } = await bothReads([name]);
    try {
      assert.deepEqual(ours, theirs);
    } catch {
      differences.push({ name, ours, theirs });
    }
  }
  assert.deepEqual(differences, []);
});
