import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { PROGRAM } from './daemon.js';

const OURS = [process.execPath, PROGRAM, 'nbd'] as const;
const SIDES = { ours: OURS, theirs: ['qemu-nbd'] } as const;
type Side = keyof typeof SIDES;

function without(...programs: string[]): string | false {
  const missing = existsSync(PROGRAM)
    ? programs.find((program) => spawnSync(program, ['--version']).error)
    : 'dist/livedisk.cjs';
  return missing === undefined ? false : `${missing} is not installed`;
}

/** A folder with the images a.raw and top.qcow2 over base.qcow2. */
function folder(context: TestContext): string {
  const path = mkdtempSync(join(tmpdir(), 'livedisk-nbd-program-'));
  context.after(() => rmSync(path, { recursive: true, force: true }));
  run(path, 'qemu-img', 'create', '-q', '-f', 'raw', 'a.raw', '1M');
  run(path, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'base.qcow2', '2M');
  run(path, 'qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 1M', 'base.qcow2');
  run(path, 'qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'top.qcow2');
  run(path, 'qemu-io', '-f', 'qcow2', '-c', 'write -P 2 64k 64k', 'top.qcow2');
  return path;
}

interface Answer {
  code: number | null;
  out: string;
}

function tryRun(cwd: string, program: string, ...args: string[]): Answer {
  const done = spawnSync(program, args, { cwd, encoding: 'utf8', timeout: 30_000 });
  return { code: done.status, out: `${done.stdout}${done.stderr}` };
}

function run(cwd: string, program: string, ...args: string[]): string {
  const { code, out } = tryRun(cwd, program, ...args);
  assert.equal(code, 0, `${program} ${args.join(' ')}: ${out}`);
  return out;
}

function answerOf(side: Side, cwd: string, ...args: string[]): Answer {
  const [program, ...first] = SIDES[side];
  return tryRun(cwd, program, ...first, ...args);
}

/** A server that is running: --fork answers when it is. Killed at the end. */
function served(
  context: TestContext,
  side: Side,
  cwd: string,
  ...args: string[]
): { uri: string; pid: number } {
  const socket = join(cwd, `${side}.sock`);
  const pidFile = join(cwd, `${side}.pid`);
  const { code, out } = answerOf(side, cwd, '--fork', `--pid-file=${pidFile}`, '-k', socket, ...args);
  assert.equal(code, 0, out);
  const pid = Number(readFileSync(pidFile, 'utf8'));
  context.after(() => {
    try {
      process.kill(pid, 'SIGKILL');
    } catch {
      // It has ended by itself.
    }
  });
  return { uri: `nbd+unix:///?socket=${socket}`, pid };
}

async function untilGone(pid: number): Promise<void> {
  for (;;) {
    try {
      process.kill(pid, 0);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const NEEDED = ['qemu-nbd', 'qemu-img', 'qemu-io', 'nbdinfo'];

test('wrong command lines are refused as qemu-nbd refuses them', { skip: without(...NEEDED) }, (t) => {
  const cwd = folder(t);
  const lines = [
    [],
    ['-p', 'x', 'a.raw'],
    ['nofile'],
    ['-f', 'bogus', 'top.qcow2'],
    ['-d', '/dev/nbd-there-is-none'],
    ['-B', 'nope', '-k', join(cwd, 'z'), '-f', 'raw', 'a.raw'],
    ['--list', '-k', join(cwd, 'nosuch')],
    ['-k', 'relative', 'a.raw', 'more'],
    ['--cache=foo', 'a.raw'],
    ['--discard=foo', 'a.raw'],
    ['--detect-zeroes=foo', 'a.raw'],
    ['--detect-zeroes=unmap', '-f', 'raw', 'a.raw'],
    ['--detect-zeroes=unmap', '--discard=unmap', '-f', 'raw', 'a.raw'],
    ['-o', '5M', 'a.raw'],
    ['-o', '2000000', '-f', 'raw', '-k', join(cwd, 'z'), 'a.raw'],
    ['-x', 'x'.repeat(4097), '-k', 'relative', 'a.raw'],
    ['-D', 'x'.repeat(4097), '-k', 'relative', 'a.raw'],
    ['-P', '1'],
    ['--bogus'],
    ['-p'],
    ['--shared=-1', '-k', 'relative', 'a.raw'],
    ['--tls-authz', 'x', 'a.raw'],
    ['-n', '--cache=none', 'a.raw'],
    ['--cache=none', '--cache=none', 'a.raw'],
    ['--aio=threads', '--aio=threads', 'a.raw'],
    ['--discard=unmap', '--discard=ignore', 'a.raw'],
    ['--object', 'secret,help'],
    ['--fork', '-f', 'raw', '-k', '/nonexistent/dir/s', 'a.raw'],
    ['--pid-file=/nonexistent/x', '-f', 'raw', '-k', join(cwd, 'z'), 'a.raw'],
    ['-L', '-f', 'raw'],
  ];
  for (const line of lines) {
    const [actual, expected] = [answerOf('ours', cwd, ...line), answerOf('theirs', cwd, ...line)];
    assert.deepEqual(actual, expected, line.join(' '));
  }
});

test('what is served is told to clients as qemu-nbd tells it', { skip: without(...NEEDED) }, async (t) => {
  const cwd = folder(t);
  const settings = [
    ['-f', 'raw', 'a.raw'],
    ['-t', '-e', '3', '-x', 'disk', '-D', 'a description', '-f', 'qcow2', '-A', 'top.qcow2'],
    ['-t', '-r', '-f', 'qcow2', 'top.qcow2'],
    ['-t', '-f', 'raw', '-o', '512', 'a.raw'],
    ['-t', '-s', '-f', 'qcow2', 'top.qcow2'],
    ['-t', '--image-opts', 'driver=qcow2,file.filename=top.qcow2'],
  ];
  for (const setting of settings) {
    const told: { list: string; map: string }[] = [];
    for (const side of ['theirs', 'ours'] as const) {
      const { uri, pid } = served(t, side, cwd, ...setting, '-t');
      const socket = join(cwd, `${side}.sock`);
      const list = run(cwd, 'qemu-nbd', '--list', '-k', socket);
      const ownList = answerOf('ours', cwd, '--list', '-k', socket).out;
      assert.equal(ownList, list, 'our list and theirs');
      const named = setting.includes('-x') ? uri.replace('///', '///disk') : uri;
      const map = run(cwd, 'qemu-img', 'map', '--output=json', '-f', 'raw', named);
      process.kill(pid, 'SIGTERM');
      // It holds its locks on the images until it has ended.
      await untilGone(pid);
      told.push({ list, map });
    }
    assert.deepEqual(told[1], told[0], setting.join(' '));
  }
});

test(
  'our client maps a context of another kind as qemu-img does, by older spellings of the address too',
  { skip: without(...NEEDED) },
  (t) => {
    const cwd = folder(t);
    run(cwd, 'qemu-io', '-f', 'qcow2', '-c', 'write -z 256k 64k', 'top.qcow2');
    const { uri } = served(t, 'ours', cwd, '-t', '-e', '0', '-r', '-A', '-f', 'qcow2', 'top.qcow2');
    const path = uri.replace(/.*socket=/, '');
    for (const context of ['', ',x-dirty-bitmap=qemu:allocation-depth']) {
      const words = ['map', '--output=json', '--image-opts', `driver=nbd,path=${path}${context}`];
      const theirs = run(cwd, 'qemu-img', ...words);
      assert.equal(run(cwd, process.execPath, PROGRAM, 'img', ...words), theirs, context);
    }
  },
);

test(
  'it ends when the last client has left, and not before with -t',
  { skip: without(...NEEDED) },
  async (t) => {
    const cwd = folder(t);
    const once = served(t, 'ours', cwd, '-f', 'raw', 'a.raw');
    run(cwd, 'nbdinfo', '--size', once.uri);
    await untilGone(once.pid);
    assert.ok(!existsSync(join(cwd, 'ours.sock')) && !existsSync(join(cwd, 'ours.pid')));
    const lasting = served(t, 'ours', cwd, '-t', '-f', 'raw', 'a.raw');
    for (let i = 0; i < 2; i++) run(cwd, 'nbdinfo', '--size', lasting.uri);
    process.kill(lasting.pid, 'SIGTERM');
    await untilGone(lasting.pid);
    assert.ok(!existsSync(join(cwd, 'ours.pid')));
  },
);

test(
  'writes reach the image, or with -s only a file that goes with the program',
  { skip: without(...NEEDED) },
  async (t) => {
    const cwd = folder(t);
    const write = (uri: string): string =>
      run(cwd, 'qemu-io', '-f', 'raw', '-c', 'write -P 9 0 64k', '-c', 'read -P 9 0 64k', '-c', 'flush', uri);
    const temporary = served(t, 'ours', cwd, '-s', '-f', 'qcow2', 'top.qcow2');
    write(temporary.uri);
    await untilGone(temporary.pid);
    run(cwd, 'qemu-io', '-f', 'qcow2', '-r', '-c', 'read -P 1 0 64k', 'top.qcow2');
    const lasting = served(t, 'ours', cwd, '-f', 'qcow2', 'top.qcow2');
    write(lasting.uri);
    await untilGone(lasting.pid);
    run(cwd, 'qemu-io', '-f', 'qcow2', '-r', '-c', 'read -P 9 0 64k', 'top.qcow2');
    const readOnly = served(t, 'ours', cwd, '-r', '-f', 'qcow2', 'top.qcow2');
    assert.notEqual(tryRun(cwd, 'qemu-io', '-f', 'raw', '-c', 'write 0 64k', readOnly.uri).code, 0);
  },
);

test(
  'a socket that was passed is listened on',
  { skip: without(...NEEDED, '/usr/bin/python3') },
  async (t) => {
    const cwd = folder(t);
    const socket = join(cwd, 'passed.sock');
    const script = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(5)
os.dup2(s.fileno(), 3); os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
`;
    const start = (...args: string[]): ChildProcess => {
      rmSync(socket, { force: true });
      const child = spawn('/usr/bin/python3', ['-c', script, socket, ...OURS, ...args], {
        cwd,
        stdio: 'pipe',
      });
      t.after(() => child.kill('SIGKILL'));
      return child;
    };
    const server = start('-f', 'raw', 'a.raw');
    while (!existsSync(socket)) await new Promise((resolve) => setTimeout(resolve, 20));
    const ended = new Promise((resolve) => server.once('close', resolve));
    const info = spawn('nbdinfo', ['--size', `nbd+unix:///?socket=${socket}`], { stdio: 'pipe' });
    let size = '';
    info.stdout.on('data', (chunk: Buffer) => (size += chunk.toString()));
    await new Promise((resolve) => info.once('close', resolve));
    assert.equal(size.trim(), String(1024 * 1024));
    assert.equal(await ended, 0);
    const refused = start('-k', join(cwd, 'z'), '-f', 'raw', 'a.raw');
    let text = '';
    refused.stderr?.on('data', (chunk: Buffer) => (text += chunk.toString()));
    assert.equal(await new Promise((resolve) => refused.once('close', resolve)), 1);
    assert.equal(text, "qemu-nbd: Unix socket can't be set when using socket activation\n");
  },
);
