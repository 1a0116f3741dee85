import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { openSync } from 'node:fs';
import { createServer } from 'node:net';
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

test('what a server refuses is told in one line', async (t) => {
  const path = join(scratch(t), 'qmp.sock');
  const server = createServer((socket) => {
    socket.write('{"QMP": {"version": {}, "capabilities": []}}\n');
    socket.on('error', () => undefined);
    socket.on('data', (chunk: Buffer) => {
      for (const line of chunk.toString().trim().split('\n')) {
        const { execute, id } = JSON.parse(line) as { execute: string; id: number };
        const known: Record<string, unknown> = {
          qmp_capabilities: {},
          'query-commands': [{ name: 'x-point-list' }],
        };
        const error = { class: 'GenericError', desc: 'it is not to be' };
        socket.write(
          `${JSON.stringify(execute in known ? { return: known[execute], id } : { error, id })}\n`,
        );
      }
    });
  }).listen(path);
  t.after(() => server.close());
  const lines = [
    ['points', path],
    ['points', 'create', path, 'monday'],
    ['show', path],
    ['top', '--once', path],
  ];
  for (const words of lines) {
    const child = spawn(process.execPath, livediskWords(...words), {
      cwd,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let told = '';
    child.stderr.on('data', (chunk: Buffer) => void (told += chunk.toString()));
    assert.equal(await closed(child), 1);
    assert.equal(told, 'livedisk: it is not to be\n', words.join(' '));
  }
});
