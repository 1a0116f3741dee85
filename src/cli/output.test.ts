import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { test, type TestContext } from 'node:test';

const LIVEDISK = ['--import', 'tsx', resolve(import.meta.dirname, 'main.ts')];

/** The project's folder, where tsx is found. */
const cwd = resolve(import.meta.dirname, '../..');

function scratch(context: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-output-'));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

function livedisk(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, [...LIVEDISK, ...args], {
    cwd,
    encoding: 'utf8',
  });
  assert.equal(status, 0, stdout + stderr);
  return stdout;
}

function closed(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve) => child.once('close', resolve));
}

test('an image is converted whole though nobody reads the progress', async (t) => {
  const folder = scratch(t);
  const [source, target] = [join(folder, 'source.qcow2'), join(folder, 'target.qcow2')];
  livedisk('img', 'create', '-q', '-f', 'qcow2', source, '64M');
  livedisk('io', '-f', 'qcow2', '-c', 'write -P 7 0 64M', source);
  const child = spawn(
    process.execPath,
    [...LIVEDISK, 'img', 'convert', '-p', '-O', 'qcow2', source, target],
    {
      cwd,
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  child.stdout?.destroy();
  assert.equal(await closed(child), 0);
  assert.equal(livedisk('img', 'compare', source, target), 'Images are identical.\n');
});

test(
  'a machine goes on when its standard output and standard error are closed',
  { timeout: 60_000 },
  async (t) => {
    const image = join(scratch(t), 'disk.qcow2');
    livedisk('img', 'create', '-q', '-f', 'qcow2', image, '1M');
    const blockdev = `driver=qcow2,node-name=n,file.driver=file,file.filename=${image}`;
    const child = spawn(process.execPath, [...LIVEDISK, 'run', '-blockdev', blockdev, '-monitor', 'stdio'], {
      cwd,
      stdio: 'pipe',
    });
    t.after(() => child.kill('SIGKILL'));
    // The prompt: it is up.
    await new Promise((resolve) => child.stdout.once('data', resolve));
    child.stdout.destroy();
    child.stderr.destroy();
    child.stdin.write('qemu-io n "write -P 7 0 64k"\nqemu-io n "write -P 8 64k 64k"\nquit\n');
    assert.equal(await closed(child), 0);
    livedisk('io', '-r', '-f', 'qcow2', '-c', 'read -P 7 0 64k', '-c', 'read -P 8 64k 64k', image);
  },
);

test('a full disk under standard output is told', (t) => {
  const image = join(scratch(t), 'disk.qcow2');
  livedisk('img', 'create', '-q', '-f', 'qcow2', image, '1M');
  const { status, stderr } = spawnSync(process.execPath, [...LIVEDISK, 'img', 'info', image], {
    cwd,
    encoding: 'utf8',
    stdio: ['ignore', openSync('/dev/full', 'w'), 'pipe'],
  });
  assert.equal(stderr, 'livedisk: standard output: No space left on device\n');
  assert.equal(status, 1);
});
