import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { livediskWords, scratch } from '../kit/program.js';
import { run, skipWithout } from './daemon.js';
import { hasQemu } from './machine-side.js';

const QUIT = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n';

/**
 * What a program says of a command line, and how it ends: at once, or by `quit` on its standard input; one that says that it
 * waits for a client would wait for ever.
 */
async function outcome(folder: string, words: readonly string[], line: readonly string[]): Promise<unknown> {
  mkdirSync(folder);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '1M');
  const [first = '', ...rest] = words;
  const child = spawn(first, [...rest, ...line], { cwd: folder });
  let stderr = '';
  child.stdout.resume();
  child.stderr.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
    if (/waiting for connection.*\n/.test(stderr)) child.kill('SIGKILL');
  });
  // Who does not read it has ended.
  child.stdin.on('error', () => undefined);
  child.stdin.end(QUIT);
  const [status] = (await once(child, 'close')) as [number | null];
  const made = readdirSync(folder).filter((name) => !name.endsWith('.sock'));
  rmSync(folder, { recursive: true });
  return { status, stderr: stderr.replace(/tcp:127\.0\.0\.1:\d+/g, 'tcp:127.0.0.1:PORT'), made };
}

async function compare(
  context: TestContext,
  program: string,
  common: readonly string[],
  lines: readonly string[],
): Promise<void> {
  const folder = scratch(context);
  const ours = [
    process.execPath,
    ...livediskWords('--as', program, program === DAEMON ? 'storage-daemon' : 'run'),
  ];
  for (const line of lines) {
    const words = [...line.split(' '), ...common];
    const found = await outcome(join(folder, 'ours'), ours, words);
    assert.deepEqual(found, await outcome(join(folder, 'theirs'), [program], words), line);
  }
}

const DAEMON = 'qemu-storage-daemon';

test('a storage daemon reads its command line as QEMU’s does', { timeout: 600_000 }, async (t) => {
  if (skipWithout(t, DAEMON, 'qemu-img')) return;
  const image = 'driver=qcow2,node-name=A,file.driver=file,file.filename=a.qcow2';
  await compare(
    t,
    DAEMON,
    ['--chardev', 'stdio,id=m', '--monitor', 'm'],
    [
      ...[
        '--bogus',
        'bogus',
        '-x',
        '--blockdev bad --bogus',
        '--blockdev bad bogus',
        '--pidfile= --daemonize=x',
      ],
      ...[`--block ${image}`, `--blockdev=${image} --pid=p.pid`, '--blockdev bad --pidfile x --obj bad'],
      `--blockdev ${image},backing=`,
      ...[
        '--monitor {"chardev":"c","mode":"control","pretty":true}',
        '--chardev null,id=c --monitor {"chardev":"c"}',
      ],
      ...[
        '--chardev socket',
        '--chardev id=c',
        '--chardev file,id=c',
        '--chardev null,id=5c',
        '--chardev null,id=m',
      ],
      ...['--chardev pty,id=c,bogus=1', '--chardev bogus,id=c', '--chardev stdio,id=c,signal=off'],
      ...[
        '--chardev socket,id=c,host=127.0.0.1,server=on,wait=off',
        '--chardev socket,id=c,path=x,host=h,port=1',
      ],
      ...['--chardev socket,id=c,path=c.sock,server,nowait', '--chardev socket,id=c,path=c.sock,server'],
      ...[
        '--chardev socket,id=c,fd=77,server=on,wait=off',
        '--chardev socket,id=c,fd=abc,server=on,wait=off',
      ],
      ...['--nbd-server addr.type=fd,addr.str=99', '--nbd-server addr.type=fd,addr.str=x'],
      `--nbd-server addr.type=unix,addr.path=${'p'.repeat(200)}`,
      '--blockdev driver=nbd,node-name=n,server.type=fd,server.str=77',
      '--blockdev driver=nbd,node-name=n,server.type=fd,server.str=xx',
      '--object memory-backend-ram,id=r,size=1M',
    ],
  );
});

test('a machine’s command line is read as QEMU reads it', { timeout: 600_000 }, async (t) => {
  if (!hasQemu) return t.skip('not installed: qemu-system-x86_64');
  const common = ['-M', 'none', '-nodefaults', '-display', 'none', '-monitor', 'none', '-qmp', 'stdio'];
  await compare(t, 'qemu-system-x86_64', common, [
    ...[
      '-chardev null,id=c -chardev null,id=c',
      '-chardev stdio,id=c',
      '-chardev null,id=c,bogus',
      '-object bogus,help',
    ],
    ...['-chardev socket,id=c,host=127.0.0.1,port=0,server', '-add-fd fd=77,set=1'],
    '-drive if=none,file=a.qcow2,backing=',
    ...['-drive file=a.qcow2,index=3', '-hda a.qcow2', 'a.qcow2', '-drive file=a.qcow2,if=ide'],
  ]);
});
