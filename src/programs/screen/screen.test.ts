import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { EngineBed, MiB } from '../../../test/engine/engine-bed.js';
import { closed, livediskWords, PROJECT, scratch } from '../../../test/kit/program.js';
import { readAnswers } from '../../view/answers.js';
import { buildView } from '../../view/build.js';
import { bytesOfLayers } from '../../view/cluster-map.js';
import { fileNameOf, type View } from '../../view/model.js';
import { drawSvg } from '../../view/svg.js';
import { QmpSession } from '../../wire/qmp/session.js';
import { readMapOf } from './offline.js';
import { showMain } from './show.js';
import { topMain } from './top.js';
import { BlockError } from '../../base/error.js';
import { createRealHost } from '../../host/real.js';
import { parseMetrics, startMetrics } from '../run/metrics.js';
import { parseRunOptions } from '../run/options.js';

interface Ended {
  status: number | null;
  stdout: string;
  stderr: string;
}

async function livedisk(...[command, ...args]: readonly string[]): Promise<Ended> {
  let stdout = '';
  const output = { write: (text: string) => void (stdout += text) };
  const main = command === 'show' ? showMain : topMain;
  try {
    return { status: await main(args, { host: createRealHost(), output }), stdout, stderr: '' };
  } catch (error) {
    assert.ok(error instanceof BlockError, String(error));
    return { status: 1, stdout, stderr: `${error.message}\n${error.hint ?? ''}` };
  }
}

/** An engine with the chain A <-- B <-- C, and its QMP socket. */
async function chainWithSocket(context: TestContext): Promise<{ bed: EngineBed; socket: string }> {
  const bed = new EngineBed(context);
  await bed.chain('A', 'B', 'C');
  const socket = bed.path('qmp.sock');
  const listener = await bed.engine.host.net.listen(
    { type: 'unix', path: socket },
    (connection) => void new QmpSession(bed.engine.hub, connection),
  );
  context.after(() => listener.close());
  return { bed, socket };
}

test('show draws what a server has: text, data and a picture', async (t) => {
  const { bed, socket } = await chainWithSocket(t);
  const text = await livedisk('show', socket);
  assert.equal(text.status, 0, text.stderr);
  assert.match(text.stdout, /^ {4}\[A\] +<-- \[B\] +<-- \[C\] <== virtio0$/m);
  const picture = bed.path('chain.svg');
  const json = await livedisk('show', `unix:${socket}`, '--json', '--svg', picture);
  const view = JSON.parse(json.stdout) as View;
  assert.deepEqual(
    view.chains.map(({ images }) => images),
    [['A', 'B', 'C']],
  );
  assert.match(readFileSync(picture, 'utf8'), /<svg[^>]*>.*data-image="C"/s);
  const mapped = await livedisk('show', socket, '--map');
  assert.match(mapped.stdout, /\[C\]\n +0 B {2}A{16}B{16}C{16}A{16}\n/, mapped.stderr);
  assert.match(mapped.stdout, /shows 50% +4?.* MiB, shows 25%/);
  const refused = await livedisk('show', socket, '--format=raw');
  assert.deepEqual([refused.status, refused.stdout], [1, '']);
  assert.match(refused.stderr, /--format is for images/);
});

test('a chain that is not the one its files name is called and mapped as it is open', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  await bed.execute('blockdev-add', {
    ...{ driver: 'qcow2', 'node-name': 'over', backing: null, 'read-only': true, 'force-share': true },
    file: { driver: 'file', filename: bed.path('B.qcow2') },
  });
  const view = buildView(await readAnswers((command, args) => bed.execute(command, args ?? {})));
  const over = view.images.find(({ id }) => id === 'over');
  assert.ok(over);
  assert.match(over.filename, /^json:/);
  assert.equal(fileNameOf(over), bed.path('B.qcow2'));
  assert.match(drawSvg(view), /<title>[^<]*B\.qcow2</);
  const map = await readMapOf(createRealHost(), view, 'over', fileNameOf);
  // Nothing is of A, which its header names.
  assert.deepEqual([map.layers, bytesOfLayers(map)], [['over'], [MiB]]);
});

test('show tells what an action would do, and does nothing', async (t) => {
  const { bed, socket } = await chainWithSocket(t);
  const before = await bed.layers();
  const { stdout, stderr } = await livedisk('show', socket, '--plan', 'commit image=C base=A');
  assert.match(stdout, /^Data of \[B\] and \[C\] are copied into \[A\]/, stderr);
  assert.match(stdout, /^2\.0 MiB are copied, in a second or less/m);
  assert.match(stdout, /^Not valid afterwards: \[B\] lies above \[A\]/m);
  assert.match(stdout, /^Then:\n\n.*\n +\[A\] <== virtio0$/m);
  assert.match(stdout, /"execute":"block-commit".*\n.*"job-complete".*\(when the job is ready\)$/m);
  const picture = bed.path('then.svg');
  await livedisk('show', socket, '--plan', 'delete image=A', '--svg', picture);
  // What copies less is that B, which is four times smaller, goes down into A.
  assert.match(readFileSync(picture, 'utf8'), /data-image="A"/);
  assert.doesNotMatch(readFileSync(picture, 'utf8'), /data-image="B"/);
  assert.deepEqual(await bed.layers(), before);
  for (const [plan, told] of [
    ['sing image=C', 'an action needs a kind that there is'],
    ['stream C', "'C' is no NAME=VALUE"],
    ['stream image=none', "there is no image 'none'"],
    ['resize image=C bytes=x', '--plan bytes needs a whole number'],
  ] as const) {
    const refused = await livedisk('show', socket, '--plan', plan);
    assert.deepEqual([refused.status, refused.stdout], [1, '']);
    assert.ok(refused.stderr.includes(told), refused.stderr);
  }
});

test('top of an image says that it is no socket', async (t) => {
  const { bed } = await chainWithSocket(t);
  const { status, stderr } = await livedisk('top', '--once', bed.path('C.qcow2'));
  assert.deepEqual([status, stderr.split('\n')[0]], [1, `${bed.path('C.qcow2')} is no socket`]);
});

test('a plan says of itself whether it is so, by words that begin with is', async (t) => {
  const { socket } = await chainWithSocket(t);
  const { stderr } = await livedisk('show', socket, '--plan', 'unexport name=e isServerEnded=true');
  assert.match(stderr, /there is no export 'e'/);
});

test('show draws an image that somebody else has open, with the map of its clusters', async (t) => {
  const { bed } = await chainWithSocket(t);
  await bed.guest('flush');
  const { stdout, stderr } = await livedisk('show', '--map', bed.path('C.qcow2'));
  assert.match(stdout, /^ {4}\[A\.qcow2\] +<-- \[B\.qcow2\] +<-- \[C\.qcow2\]$/m, stderr);
  assert.match(stdout, /^ +0 B {2}A{16}B{16}C{16}A{16}$/m);
  assert.match(stdout, /^ +C {2}C\.qcow2: 1\.0 MiB, 13% of the disk$/m);
  const data = await livedisk('show', '--map', '--json', bed.path('C.qcow2'));
  const { chains } = JSON.parse(data.stdout) as View;
  assert.equal(chains[0]?.provided?.at(-1), MiB);
});

test('top shows what guests do between two looks', async (t) => {
  const { bed, socket } = await chainWithSocket(t);
  const top = livedisk('top', '--once', '--interval', '0.2', socket);
  let isOver = false;
  void top.then(() => (isOver = true));
  while (!isOver) {
    await bed.guest('write -P 7 0 64k');
    // What is written into memory is done at once: nobody else would have a turn.
    await new Promise(setImmediate);
  }
  const { stdout, stderr, status } = await top;
  assert.equal(status, 0, stderr);
  const line = stdout.split('\n').find((one) => one.startsWith('virtio0')) ?? '';
  const writes = /^virtio0 \[C\] +0 +0 B +- +(\d+) /.exec(line)?.[1];
  assert.ok(Number(writes) > 0, stdout);
});

for (const signal of ['SIGINT', 'SIGTERM'] as const)
  test(
    `top ends by ${signal}, and says so when it waits, while the server hangs`,
    { timeout: 60_000 },
    async (t) => {
      const socket = join(scratch(t), 'hanging.sock');
      const server = createServer((connection) => {
        connection.on('error', () => undefined);
        const version = { qemu: { major: 9, minor: 0, micro: 0 }, package: '' };
        connection.write(`${JSON.stringify({ QMP: { version, capabilities: [] } })}\n`);
        // It takes what is negotiated, and says no more.
        connection.once('data', (chunk) => {
          const { id } = JSON.parse(String(chunk).split('\n')[0] ?? '') as { id: unknown };
          connection.write(`${JSON.stringify({ return: {}, id })}\n`);
        });
      });
      await new Promise<void>((resolve) => server.listen(socket, resolve));
      t.after(() => server.close());
      const top = spawn(process.execPath, livediskWords('top', socket), { cwd: PROJECT });
      t.after(() => top.kill('SIGKILL'));
      const ended = closed(top);
      let text = '';
      await new Promise<void>((resolve) =>
        top.stdout.on('data', (chunk: Buffer) => {
          text += chunk.toString();
          if (text.includes('\n')) resolve();
        }),
      );
      assert.match(text, /^\S*hanging\.sock has not answered for 5 s\n/);
      top.kill(signal);
      assert.equal(await ended, 0);
    },
  );

test('a socket that greets nobody is said to be in use', async (t) => {
  const socket = join(scratch(t), 'silent.sock');
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  t.after(() => server.close());
  const ended = await Promise.all(['show', 'top'].map((command) => livedisk(command, socket)));
  for (const { status, stderr } of ended) {
    assert.equal(status, 1);
    assert.match(stderr, /silent\.sock is in use: no QMP greeting within 2 s\n.*one client at a time/);
  }
});

test('what the words mean is checked', async () => {
  for (const [words, told] of [
    [['show'], 'one SOCKET or IMAGE is needed'],
    [['show', '--colour', 'x'], "Unknown option '--colour'"],
    [['top', 'a', 'b'], 'one SOCKET is needed'],
    [['top', '--interval=0', 'a'], '--interval needs 0.1 to 3600 seconds'],
    [['show', '/nonexistent/x.qcow2'], "'/nonexistent/x.qcow2'"],
  ] as const) {
    const { status, stderr } = await livedisk(...words);
    assert.equal(status, 1);
    assert.ok(stderr.includes(told), stderr);
  }
});

test('-metrics takes an address, and a token for others', () => {
  assert.deepEqual(parseMetrics('unix:/a,b'.replace(',b', '')), { address: { type: 'unix', path: '/a' } });
  assert.deepEqual(parseMetrics('[::1]:9100,token-file=/t'), {
    ...{ address: { type: 'inet', host: '::1', port: 9100 }, tokenFile: '/t' },
  });
  for (const wrong of ['/a', 'host', 'unix:a,x=1', '127.0.0.1:0'])
    assert.throws(
      () =>
        parseRunOptions(['-metrics', wrong], 'storage-daemon').steps.forEach((step) => {
          if (step.kind === 'wrong') throw step.error;
        }),
      wrong,
    );
});

function get(path: string, url: string): Promise<{ status: number | undefined; text: string }> {
  return new Promise((resolve, reject) => {
    request({ socketPath: path, path: url }, (response) => {
      let text = '';
      response.on('data', (chunk: Buffer) => (text += chunk.toString()));
      response.on('end', () => resolve({ status: response.statusCode, text }));
    })
      .on('error', reject)
      .end();
  });
}

test('a daemon tells its numbers where -metrics says', async (t) => {
  const folder = scratch(t);
  const socket = join(folder, 'metrics.sock');
  const pid = join(folder, 'pid');
  const words = ['--blockdev', 'driver=null-co,node-name=n0,size=1048576', '--metrics', `unix:${socket}`];
  const child = spawn(process.execPath, livediskWords('storage-daemon', ...words, '--pidfile', pid), {
    cwd: PROJECT,
  });
  t.after(() => child.kill('SIGKILL'));
  const ended = closed(child);
  // The file comes when all else is there.
  while (!fileHasText(pid)) {
    assert.equal(child.exitCode, null);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const { status, text } = await get(socket, '/metrics');
  assert.equal(status, 200);
  assert.match(text, /^livedisk_image_virtual_bytes\{node="n0",.*\} 1048576$/m);
  child.kill('SIGTERM');
  assert.equal(await ended, 0);
});

function fileHasText(path: string): boolean {
  try {
    return readFileSync(path, 'utf8') !== '';
  } catch {
    return false;
  }
}

test('metrics beyond this machine need a token, and one that cannot be guessed', async (t) => {
  const { engine } = new EngineBed(t);
  const token = join(scratch(t), 'token');
  writeFileSync(token, 'short\n');
  const address = { type: 'inet', host: '0.0.0.0', port: 9100 } as const;
  await assert.rejects(startMetrics(engine, { address }), /need a token-file=/);
  const tokenFile = token;
  await assert.rejects(
    startMetrics(engine, { address, tokenFile }),
    /must have 16 printable characters or more/,
  );
  // What a process left behind that is gone is in nobody's way.
  const stale = { type: 'unix', path: join(scratch(t), 'm.sock') } as const;
  const leaving = createServer();
  await new Promise<void>((resolve) => leaving.listen(stale.path, resolve));
  const copy = `${stale.path}2`;
  renameSync(stale.path, copy);
  await new Promise((resolve) => leaving.close(resolve));
  const metrics = await startMetrics(engine, { address: { type: 'unix', path: copy } });
  t.after(() => metrics.close());
  assert.equal((await get(copy, '/metrics')).status, 200);
});
