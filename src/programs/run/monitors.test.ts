import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { constants, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { createConnection, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../host/real.js';
import { QmpClient } from '../../wire/qmp/client.js';
import type { JsonObject } from '../../schema/types.js';
import { livediskWords, PROJECT, scratch } from '../../../test/kit/program.js';

const LONG_MS = 120_000;

function start(context: TestContext, ...words: string[]): ReturnType<typeof spawn> {
  const child = spawn(process.execPath, livediskWords(...words), { cwd: PROJECT, stdio: 'pipe' });
  context.after(() => child.kill('SIGKILL'));
  return child;
}

/** Until somebody listens. */
async function connect(path: string): Promise<Socket> {
  for (;;) {
    const socket = createConnection(path);
    const error = await new Promise((resolve) => {
      socket.once('connect', () => resolve(undefined));
      socket.once('error', resolve);
    });
    if (error === undefined) return socket;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** What comes until it matches. */
function said(stream: Duplex, expected: RegExp): Promise<string> {
  let text = '';
  return new Promise((resolve) => {
    const take = (chunk: Buffer): void => {
      text += chunk.toString();
      if (!expected.test(text)) return;
      stream.off('data', take);
      resolve(text);
    };
    stream.on('data', take);
  });
}

const GREETING = /"QMP"/;

/** Whether a program that has a pseudo terminal knows of somebody who has it open: then it has a second descriptor of it. */
function hasOpener(pid = 0): boolean {
  const names = readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      return 'closed meanwhile';
    }
  });
  return names.filter((name) => name.endsWith('ptmx')).length > 1;
}

async function clientOf(path: string): Promise<QmpClient> {
  (await connect(path)).destroy();
  return QmpClient.connect(createRealHost(), { type: 'unix', path });
}

test('a monitor on a pseudo terminal greets each who opens it', { timeout: LONG_MS }, async (t) => {
  const path = join(scratch(t), 'qmp.sock');
  const terminal = ['-chardev', 'pty,id=p', '-mon', 'chardev=p,mode=control'];
  const child = start(t, 'run', ...terminal, '-qmp', `unix:${path},server=on,wait=off`);
  const client = await clientOf(path);
  const devices = (await client.execute('query-chardev')) as JsonObject[];
  const name =
    devices.map(({ filename }) => filename as string).find((text) => text.startsWith('pty:')) ?? '';
  for (let i = 0; i < 2; i++) {
    const terminal = await open(name.slice('pty:'.length), constants.O_RDWR + constants.O_NOCTTY);
    const read = async (): Promise<string> => {
      let text = '';
      while (!text.endsWith('\n')) {
        const { buffer, bytesRead } = await terminal.read();
        text += buffer.toString('utf8', 0, bytesRead);
      }
      return text;
    };
    assert.match(await read(), GREETING);
    await terminal.write('{"execute": "qmp_capabilities"}\n');
    // What is written does not come back.
    assert.equal(await read(), '{"return": {}}\r\n');
    await terminal.close();
    while (hasOpener(child.pid)) await new Promise((resolve) => setTimeout(resolve, 20));
  }
  client.close();
});

test('a socket may have an abstract name', { timeout: LONG_MS }, async (t) => {
  const name = `livedisk-test-${process.pid}`;
  const device = `socket,id=c,path=${name},abstract=on,server=on,wait=off`;
  start(t, 'storage-daemon', '--chardev', device, '--monitor', 'c');
  const socket = await connect(`\0${name}`);
  assert.match(await said(socket, GREETING), GREETING);
  socket.destroy();
});

test('one client after the other, where that is asked for', { timeout: LONG_MS }, async (t) => {
  const path = join(scratch(t), 'qmp.sock');
  start(t, 'run', '-qmp', `unix:${path},server=on,wait=off,x-clients=1`);
  const first = await connect(path);
  await said(first, GREETING);
  const second = await connect(path);
  let isGreeted = false;
  const greeting = said(second, GREETING).then(() => (isGreeted = true));
  first.write('{"execute": "qmp_capabilities"} {"execute": "query-status"}');
  await said(first, /"running"/);
  assert.equal(isGreeted, false);
  first.destroy();
  assert.equal(await greeting, true);
  second.destroy();
});

test('a monitor that connects to somebody tries again', { timeout: LONG_MS }, async (t) => {
  const path = join(scratch(t), 'theirs.sock');
  const child = start(
    t,
    'run',
    ...['-chardev', `socket,id=c,path=${path},reconnect=1`, '-mon', 'chardev=c,mode=control'],
  );
  const { stderr } = child;
  assert.ok(stderr);
  assert.match(
    await said(stderr as Duplex, /\n/),
    /Unable to connect character device c: Failed to connect to/,
  );
  const server = createServer();
  t.after(() => server.close());
  server.listen(path);
  for (let i = 0; i < 2; i++) {
    const socket = await new Promise<Socket>((resolve) => server.once('connection', resolve));
    await said(socket, GREETING);
    socket.destroy();
  }
});

test(
  'without a display the terminal has a console, and a monitor behind Ctrl-A c',
  { timeout: LONG_MS },
  async (t) => {
    const child = start(t, 'run', '-nographic', '-S');
    const { stdin, stdout } = child;
    assert.ok(stdin && stdout);
    const answered = (keys: string, expected: RegExp): Promise<string> => {
      const answer = said(stdout as Duplex, expected);
      stdin.write(keys);
      return answer;
    };
    assert.match(await answered('quit\n\x01h', /C-a C-a/), /^\r?\n\rC-a h {4}print this help/);
    assert.match(await answered('\x01c', /\(qemu\) /), /QEMU 7\.2\.22 monitor/);
    assert.match(await answered('info status\n', /prelaunch\)\r\n\(qemu\) /), /VM status: paused/);
    await answered('inf\x01c', /\n/);
    assert.match(await answered('quit\n\x01c', /\(qemu\) inf/), /^\(qemu\) inf/);
    const ended = new Promise((resolve) => child.once('exit', resolve));
    await answered('\x01x', /QEMU: Terminated/);
    assert.equal(await ended, 0);
  },
);

test(
  'several monitors share a device, and Ctrl-A c says which one is typed to',
  { timeout: LONG_MS },
  async (t) => {
    const folder = scratch(t);
    const path = join(folder, 'mux.sock');
    const log = join(folder, 'log.txt');
    const child = start(
      t,
      'run',
      ...['-chardev', `socket,id=c,path=${path},server=on,wait=off,mux=on,logfile=${log}`],
      ...['-mon', 'chardev=c,mode=control', '-mon', 'chardev=c,mode=readline'],
    );
    const socket = await connect(path);
    const answered = (keys: string, expected: RegExp): Promise<string> => {
      const answer = said(socket, expected);
      socket.write(keys);
      return answer;
    };
    assert.match(await answered('', /\(qemu\) $/), /"QMP"[^]*QEMU 7\.2\.22 monitor/);
    assert.match(await answered('info status\n', /\r\n\(qemu\) /), /VM status: running/);
    await answered('\x01c{"execute": "qmp_capabilities"}', /\{"return": \{\}\}/);
    const query = await answered('{"execute": "query-chardev"}', /\]\}/);
    assert.match(query, /"label": "c", "filename": "mux"/);
    assert.match(query, /"label": "c-base"/);
    await answered('\x01c', /\(qemu\) /);
    const ended = new Promise((resolve) => child.once('exit', resolve));
    await answered('\x01x', /QEMU: Terminated/);
    assert.equal(await ended, 0);
    const kept = readFileSync(log, 'utf8');
    for (const text of [GREETING, /VM status: running/, /"label": "c-base"/, /QEMU: Terminated/])
      assert.match(kept, text);
  },
);

test('a monitor reads one named pipe and answers in another', { timeout: LONG_MS }, async (t) => {
  const path = join(scratch(t), 'pipe');
  for (const end of ['in', 'out']) spawnSync('mkfifo', [`${path}.${end}`]);
  const child = start(t, 'storage-daemon', '--chardev', `pipe,id=p,path=${path}`, '--monitor', 'p');
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const [input, output] = [
    await open(`${path}.in`, constants.O_RDWR),
    await open(`${path}.out`, constants.O_RDWR),
  ];
  let text = '';
  const until = async (expected: RegExp): Promise<void> => {
    while (!expected.test(text)) text += (await output.read()).buffer.toString('utf8').replace(/\0+$/, '');
  };
  await until(GREETING);
  await input.write('{"execute": "qmp_capabilities"} {"execute": "query-chardev"}');
  await until(/"label": "p", "filename": "pipe"/);
  await input.write('{"execute": "quit"}');
  assert.equal(await ended, 0);
  await input.close();
  await output.close();
});
