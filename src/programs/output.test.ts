import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { openSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { closed, livedisk, livediskWords, PROJECT as cwd, scratch } from '../../test/kit/program.js';

test('an image is converted whole though nobody reads the progress', async (t) => {
  const folder = scratch(t);
  const [source, target] = [join(folder, 'source.qcow2'), join(folder, 'target.qcow2')];
  livedisk('img', 'create', '-q', '-f', 'qcow2', source, '64M');
  livedisk('io', '-f', 'qcow2', '-c', 'write -P 7 0 64M', source);
  const child = spawn(
    process.execPath,
    livediskWords('img', 'convert', '-p', '-O', 'qcow2', source, target),
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
  { timeout: 300_000 },
  async (t) => {
    const image = join(scratch(t), 'disk.qcow2');
    livedisk('img', 'create', '-q', '-f', 'qcow2', image, '1M');
    const blockdev = `driver=qcow2,node-name=n,file.driver=file,file.filename=${image}`;
    const child = spawn(process.execPath, livediskWords('run', '-blockdev', blockdev, '-monitor', 'stdio'), {
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
  const { status, stderr } = spawnSync(process.execPath, livediskWords('img', 'info', image), {
    cwd,
    encoding: 'utf8',
    stdio: ['ignore', openSync('/dev/full', 'w'), 'pipe'],
  });
  assert.equal(stderr, 'livedisk: standard output: No space left on device\n');
  assert.equal(status, 1);
});
