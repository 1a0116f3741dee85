import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, watch } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { test, type TestContext } from 'node:test';
import { BlockError } from '../../base/error.js';
import { createRealHost } from '../../host/real.js';
import { NbdClient } from '../../wire/nbd/client.js';
import { QmpClient } from '../../wire/qmp/client.js';
import { closed, livedisk, livediskWords, PROJECT, runLivedisk, scratch } from '../../../test/kit/program.js';

/** A daemon, once its PID file is there. */
async function start(context: TestContext, folder: string, ...args: string[]): Promise<Daemon> {
  const words = livediskWords(...args, '--pidfile', join(folder, 'pid'));
  const child = spawn(process.execPath, words, { cwd: PROJECT, stdio: ['ignore', 'pipe', 'inherit'] });
  context.after(() => child.kill('SIGKILL'));
  await appearance(folder, 'pid');
  return { child, ended: closed(child) };
}

interface Daemon {
  child: ReturnType<typeof spawn>;
  ended: Promise<number | null>;
}

/** Until a file has something in it, or with `orEmpty` is there at all. */
function appearance(folder: string, name: string, { orEmpty = false } = {}): Promise<void> {
  const path = join(folder, name);
  return new Promise((resolve) => {
    const watcher = watch(folder, () => check());
    const check = (): void => {
      if (!existsSync(path) || (!orEmpty && readFileSync(path).length === 0)) return;
      watcher.close();
      resolve();
    };
    check();
  });
}

/** Between the making of a socket and the moment when it listens, it refuses. */
async function connected(path: string): Promise<QmpClient> {
  const host = createRealHost();
  for (;;) {
    try {
      return await QmpClient.connect(host, { type: 'unix', path });
    } catch (error) {
      if (!(error instanceof BlockError) || error.errno !== 'ECONNREFUSED') throw error;
      await host.clock.macrotask();
    }
  }
}

test('a daemon without any socket serves until a signal', { timeout: 300_000 }, async (t) => {
  const folder = scratch(t);
  const daemon = await start(t, folder, 'storage-daemon', '--blockdev', 'null-co,node-name=n');
  const early = await Promise.race([
    daemon.ended,
    new Promise((resolve) => setTimeout(resolve, 500, 'serves')),
  ]);
  assert.equal(early, 'serves');
  daemon.child.kill('SIGTERM');
  assert.equal(await daemon.ended, 0);
});

test('a second signal does not cut the end short', { timeout: 300_000 }, async (t) => {
  const folder = scratch(t);
  const socket = join(folder, 'qmp');
  // Its flush at the end takes a second.
  const slow = 'null-co,node-name=n,latency-ns=1000000000';
  const options = ['-blockdev', slow, '-qmp', `unix:${socket},server=on,wait=off`];
  const daemon = await start(t, folder, 'run', ...options);
  await appearance(folder, 'qmp', { orEmpty: true });
  const client = await connected(socket);
  let shutdowns = 0;
  const told = new Promise<void>((resolve) =>
    client.onEvent(({ event }) => {
      if (event === 'SHUTDOWN' && ++shutdowns === 1) resolve();
    }),
  );
  daemon.child.kill('SIGTERM');
  await told;
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGTERM'] as const) daemon.child.kill(signal);
  assert.equal(await daemon.ended, 0);
  assert.equal(shutdowns, 1);
  assert.ok(!existsSync(join(folder, 'pid')));
});

test(
  'a disk that cannot be flushed is told after a second, and a second signal ends the program without',
  { timeout: 300_000 },
  async (t) => {
    const folder = scratch(t);
    const pidFile = join(folder, 'pid');
    // Its flush at the end takes an hour.
    const slow = 'null-co,node-name=n,latency-ns=3600000000000';
    const words = livediskWords('storage-daemon', '--blockdev', slow, '--pidfile', pidFile);
    const child = spawn(process.execPath, words, { cwd: PROJECT, stdio: ['ignore', 'ignore', 'pipe'] });
    t.after(() => child.kill('SIGKILL'));
    const ended = closed(child);
    await appearance(folder, 'pid');
    child.kill('SIGTERM');
    let told = '';
    for await (const chunk of child.stderr) {
      told += String(chunk);
      if (told.endsWith('\n')) break;
    }
    assert.equal(
      told,
      "livedisk: waiting for node 'n' (null-co://); another signal ends the program without that\n",
    );
    child.kill('SIGTERM');
    assert.equal(await ended, 1);
    assert.ok(!existsSync(pidFile));
  },
);

test(
  "what hangs below a client's request is told after quit, too, and a signal ends the program without",
  { timeout: 300_000 },
  async (t) => {
    const folder = scratch(t);
    const [pidFile, qmp, nbd] = ['pid', 'qmp', 'nbd'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    const options = [
      // Its writes take an hour.
      ...['--blockdev', 'null-co,node-name=n,latency-ns=3600000000000'],
      ...['--nbd-server', `addr.type=unix,addr.path=${nbd}`],
      ...['--export', 'type=nbd,id=e,node-name=n,writable=on'],
      ...['--chardev', `socket,id=c,path=${qmp},server=on,wait=off`, '--monitor', 'c', '--pidfile', pidFile],
    ];
    const words = livediskWords('storage-daemon', ...options);
    const child = spawn(process.execPath, words, { cwd: PROJECT, stdio: ['ignore', 'ignore', 'pipe'] });
    t.after(() => child.kill('SIGKILL'));
    const ended = closed(child);
    await appearance(folder, 'pid');
    const guest = await NbdClient.connect({
      ...{ host: createRealHost(), address: { type: 'unix', path: nbd }, exportName: 'n' },
    });
    guest.write(0, Buffer.alloc(512), 0).catch(() => undefined);
    const client = await connected(qmp);
    client.execute('quit', {}).catch(() => undefined);
    let told = '';
    for await (const chunk of child.stderr) {
      told += String(chunk);
      if (told.endsWith('\n')) break;
    }
    assert.match(told, /^livedisk: waiting for node 'n' \(null-co:\/\/\); another signal ends the program/);
    child.kill('SIGTERM');
    assert.equal(await ended, 1);
  },
);

test('the end of standard input does not end the machine, a signal does', { timeout: 300_000 }, async (t) => {
  const words = livediskWords('run', '-monitor', 'stdio');
  const child = spawn(process.execPath, words, { cwd: PROJECT, stdio: 'pipe' });
  t.after(() => child.kill('SIGKILL'));
  const ended = closed(child);
  child.stdin.end('info status\n');
  let text = '';
  for await (const chunk of child.stdout) {
    text += String(chunk);
    if (text.endsWith('VM status: running\r\n(qemu) ')) break;
  }
  const early = await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 500, 'serves'))]);
  assert.equal(early, 'serves');
  let told = '';
  child.stderr.on('data', (chunk) => (told += String(chunk)));
  child.kill('SIGTERM');
  assert.equal(await ended, 0);
  assert.equal(told, 'livedisk: terminating on signal 15\n');
});

test('a PID file belongs to the process that made it', { timeout: 300_000 }, async (t) => {
  const folder = scratch(t);
  const daemon = await start(t, folder, 'storage-daemon');
  const path = join(folder, 'pid');
  const number = `${daemon.child.pid}\n`;
  assert.equal(readFileSync(path, 'utf8'), number);
  const second = runLivedisk('run', '-pidfile', path);
  assert.equal(second.status, 1);
  assert.equal(
    second.stderr,
    'livedisk: cannot create PID file: Cannot lock pid file: Resource temporarily unavailable\n',
  );
  assert.equal(readFileSync(path, 'utf8'), number);
  daemon.child.kill('SIGTERM');
  assert.equal(await daemon.ended, 0);
  assert.ok(!existsSync(path));
});

test("a storage daemon's PID file tells that its sockets are there", { timeout: 300_000 }, async (t) => {
  const folder = scratch(t);
  const chardev = `socket,id=c,path=${join(folder, 'qmp.sock')},server=on,wait=off`;
  await start(t, folder, 'storage-daemon', '--chardev', chardev, '--monitor', 'chardev=c');
  assert.ok(existsSync(join(folder, 'qmp.sock')));
});

test('a PID file that cannot be made is told', () => {
  const { status, stderr } = runLivedisk('storage-daemon', '--pidfile', '/nonexistent/pid');
  assert.equal(status, 1);
  const why = "Could not create '/nonexistent/pid': No such file or directory";
  assert.equal(stderr, `livedisk: cannot create PID file: ${why}\n`);
});

test('a storage daemon whose PID file cannot be made greets nobody', () => {
  const chardev = ['--chardev', 'stdio,id=c', '--monitor', 'chardev=c'];
  const { status, stdout } = runLivedisk('storage-daemon', ...chardev, '--pidfile', '/nonexistent/pid');
  assert.deepEqual([status, stdout], [1, '']);
});

test('a machine ends, and says why, when a disk cannot be flushed', { timeout: 300_000 }, async (t) => {
  const filename = join(scratch(t), 'disk.qcow2');
  livedisk('img', 'create', '-q', '-f', 'qcow2', filename, '1M');
  const failing = [{ event: 'none', iotype: 'flush', errno: 5 }];
  const file = { driver: 'blkdebug', image: { driver: 'file', filename }, 'inject-error': failing };
  const disk = JSON.stringify({ driver: 'qcow2', 'node-name': 'n', file });
  const words = livediskWords('run', '-blockdev', disk, '-monitor', 'stdio');
  const child = spawn(process.execPath, words, { cwd: PROJECT, stdio: 'pipe' });
  t.after(() => child.kill('SIGKILL'));
  let told = '';
  child.stderr.on('data', (chunk: Buffer) => (told += chunk.toString()));
  // Standard input stays open, as a client's connection would.
  child.stdin.write('qemu-io n "write 0 64k"\nquit\n');
  assert.equal(await closed(child), 1);
  assert.match(told, /^livedisk: node 'n' \(json:.*disk\.qcow2.*\): Input\/output error\n$/);
});

test('a daemon tells its version in the form of QEMU’s programs, with the name of ours', () => {
  const own = livedisk('--version').trim();
  for (const [program, ...words] of [
    ['QEMU emulator', 'run', '-version'],
    ['QEMU emulator', 'run', '--version'],
    ['qemu-storage-daemon', 'storage-daemon', '-V'],
    ['qemu-storage-daemon', 'storage-daemon', '--version'],
  ])
    assert.equal(livedisk(...words), `${program} version 7.2.22 (${own})\n`, words.join(' '));
});

/** QMP answers that a program prints, one a line, up to the one that has `last` in it. */
async function answersUpTo(output: AsyncIterable<Buffer>, last: string): Promise<string[]> {
  let text = '';
  for await (const chunk of output) {
    text += chunk.toString();
    const lines = text.split('\r\n');
    if (lines.slice(0, -1).some((line) => line.includes(last))) return lines.slice(0, -1);
  }
  throw new Error(`ended without ${last}: ${text}`);
}

test('QMP on standard input and output', { timeout: 300_000 }, async (t) => {
  const words = livediskWords('run', '-qmp', 'stdio', '-monitor', 'none', '-nographic', '-serial', 'none');
  const child = spawn(process.execPath, words, { cwd: PROJECT, stdio: ['pipe', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const ended = closed(child);
  child.stdin.write('{"execute":"qmp_capabilities"}{"execute":"query-status","id":7}');
  const lines = await answersUpTo(child.stdout, '"id"');
  assert.match(lines[0] ?? '', /^\{"QMP": /);
  assert.deepEqual(lines.slice(1), [
    '{"return": {}}',
    '{"return": {"status": "running", "singlestep": false, "running": true}, "id": 7}',
  ]);
  child.stdin.write('{"execute":"quit"}');
  assert.equal(await ended, 0);
});

test('a monitor on a descriptor that a program has connected', { timeout: 300_000 }, async (t) => {
  const words = livediskWords('run', '-chardev', 'socket,id=mon,fd=3', '-mon', 'chardev=mon,mode=control');
  const child = spawn(process.execPath, words, {
    cwd: PROJECT,
    stdio: ['ignore', 'ignore', 'inherit', 'pipe'],
  });
  t.after(() => child.kill('SIGKILL'));
  const ended = closed(child);
  const monitor = child.stdio[3] as Duplex;
  monitor.write('{"execute":"qmp_capabilities"}{"execute":"quit"}');
  const lines = await answersUpTo(monitor, 'SHUTDOWN');
  assert.equal(lines[1], '{"return": {}}');
  assert.equal(await ended, 0);
});

test('a monitor on a socket that it connects to', { timeout: 300_000 }, async (t) => {
  const path = join(scratch(t), 'here');
  const server = createServer().listen(path);
  t.after(() => server.close());
  const words = livediskWords('run', '-qmp', `unix:${path}`);
  const child = spawn(process.execPath, words, { cwd: PROJECT, stdio: ['ignore', 'ignore', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const ended = closed(child);
  const [monitor] = (await once(server, 'connection')) as [Duplex];
  monitor.write('{"execute":"qmp_capabilities"}{"execute":"quit"}');
  await answersUpTo(monitor, 'SHUTDOWN');
  assert.equal(await ended, 0);
});

test(
  'a daemon goes on by itself, and who started it hears how that went',
  { timeout: 300_000 },
  async (t) => {
    const folder = scratch(t);
    const [pidFile, socket] = [join(folder, 'pid'), join(folder, 'qmp')];
    for (const [command, ...monitor] of [
      ['run', '-qmp', `unix:${socket},server=on,wait=off`],
      // As libvirt starts one to see what it can do.
      ['run', '-nographic', '-nodefaults', '-M', 'none', '-qmp', `unix:${socket},server=on,wait=off`],
      ['storage-daemon', '--chardev', `socket,id=c,path=${socket},server=on,wait=off`, '--monitor', 'c'],
    ]) {
      const { status, stdout, stderr } = runLivedisk(
        ...[
          command ?? '',
          '--daemonize',
          '--pidfile',
          pidFile,
          '--blockdev',
          'null-co,node-name=n',
          ...monitor,
        ],
      );
      assert.deepEqual([status, stdout, stderr], [0, '', '']);
      const pid = Number(readFileSync(pidFile, 'utf8'));
      t.after(() => spawnSync('kill', ['-KILL', String(pid)]));
      assert.notEqual(pid, process.pid);
      const client = await connected(socket);
      assert.deepEqual(await client.execute('quit', {}), {});
      await disappearance(folder, 'pid');
    }
  },
);

test('a daemon that cannot start says why', { timeout: 300_000 }, (t) => {
  const missing = runLivedisk('run', '-daemonize', '-drive', 'file=/nonexistent/disk');
  assert.equal(missing.status, 1);
  assert.match(
    missing.stderr,
    /^livedisk: -drive file=[^ ]*: Could not open '[^']*': No such file or directory\n$/,
  );
  for (const [words, error] of [
    [['-monitor', 'stdio'], '-monitor stdio: cannot use stdio with -daemonize'],
    [['-nographic'], '-nographic cannot be used with -daemonize'],
    [['-nographic', '-monitor', 'none', '-serial', 'none'], '-nographic cannot be used with -daemonize'],
    [['-nographic', '-M', 'none'], '-nographic cannot be used with -daemonize'],
  ] as const) {
    const { status, stderr } = runLivedisk('run', '-daemonize', ...words);
    assert.deepEqual([status, stderr], [1, `livedisk: ${error}\n`]);
  }
  const kept = runLivedisk('run', '-state', join(scratch(t), 'state'), '-drive', 'file=/nonexistent/disk');
  assert.equal(kept.status, 1);
  assert.match(
    kept.stderr,
    /^livedisk: -drive file=[^ ]*: Could not open '[^']*': No such file or directory\n$/,
  );
});

/** Until a file is gone. */
function disappearance(folder: string, name: string): Promise<void> {
  return new Promise((resolve) => {
    const watcher = watch(folder, () => check());
    const check = (): void => {
      if (existsSync(join(folder, name))) return;
      watcher.close();
      resolve();
    };
    check();
  });
}

test('a machine begins in a state that was saved', { timeout: 300_000 }, async (t) => {
  const folder = scratch(t);
  const image = join(folder, 'a.qcow2');
  livedisk('img', 'create', '-q', '-f', 'qcow2', image, '1M');
  const monitor = async (
    input: string,
    ...more: string[]
  ): Promise<{ text: string; code: number | null }> => {
    const drive = ['-drive', `file=${image},format=qcow2,if=virtio,id=d`];
    const words = livediskWords('run', '-monitor', 'stdio', ...drive, ...more);
    const child = spawn(process.execPath, words, { cwd: PROJECT, stdio: ['pipe', 'pipe', 'pipe'] });
    t.after(() => child.kill('SIGKILL'));
    let text = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (text += String(chunk)));
    child.stdin.on('error', () => undefined).end(input);
    return { code: await closed(child), text };
  };
  const write = (byte: number): string => `qemu-io d "write -P ${byte} 0 64k"\n`;
  await monitor(`${write(1)}savevm one\n${write(2)}quit\n`);
  const { text } = await monitor('qemu-io d "read -P 1 0 64k"\ninfo status\nquit\n', '-loadvm', 'one');
  assert.doesNotMatch(text, /Pattern verification failed/);
  assert.match(text, /read 65536\/65536[^]*VM status: running/);
  const { text: told, code } = await monitor('quit\n', '-loadvm', 'none');
  assert.match(told, /livedisk: Snapshot 'none' does not exist in one or more devices\n/);
  assert.equal(code, 1);
});
