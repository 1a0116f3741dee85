import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { run, scratch, skipWithout } from './daemon.js';
import { quit, startDaemon, update } from './takeover-sides.js';

/** Clients of others, which check what they read, through updates of the daemon. `UPDATES` of them. */
const UPDATES = Number(process.env['UPDATES'] ?? 3);

interface Run {
  readonly child: ChildProcess;
  readonly output: () => string;
  /** Its status. */
  readonly ended: Promise<number | null>;
}

function start(t: TestContext, folder: string, program: string, ...args: string[]): Run {
  const child = spawn(program, args, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] });
  t.after(() => child.kill('SIGKILL'));
  let text = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk: Buffer) => (text += chunk.toString()));
  const ended = once(child, 'exit').then(([status]) => status as number | null);
  return { child, output: () => text, ended };
}

test(`fio verifies what it writes through ${UPDATES} updates`, async (t) => {
  if (skipWithout(t, 'qemu-img', 'fio')) return;
  const { stdout } = spawnSync('fio', ['--enghelp'], { encoding: 'utf8' });
  if (!/\bnbd\b/.test(stdout)) return t.skip('fio has no engine nbd');
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  let serving = daemon.process;
  // It writes until it is told to end, and reads and compares each block again after some others.
  const fio = start(
    t,
    folder,
    ...(['fio', '--name=w', '--ioengine=nbd', `--uri=nbd+unix:///disk?socket=${folder}/nbd.sock`] as const),
    ...[
      '--rw=randwrite',
      '--bs=4k',
      '--size=32m',
      '--iodepth=8',
      '--fsync=32',
      '--time_based',
      '--runtime=3600',
    ],
    ...['--verify=crc32c', '--verify_backlog=64', '--verify_fatal=1', '--rate_iops=500'],
  );
  for (let count = 0; count < UPDATES; count++) {
    await new Promise((resolve) => setTimeout(resolve, 300));
    serving = await update(t, folder, { daemon, serving });
    assert.equal(fio.child.exitCode, null, fio.output());
  }
  await new Promise((resolve) => setTimeout(resolve, 1000));
  fio.child.kill('SIGINT');
  await fio.ended;
  assert.match(fio.output(), /err= 0/, fio.output());
  const [, writes = '0'] = /issued rwts: total=\d+,(\d+)/.exec(fio.output()) ?? [];
  assert.ok(Number(writes) > 100, fio.output());
  t.diagnostic(`${UPDATES} updates, ${writes} writes of fio`);
  await quit(daemon, serving);
  run(folder, 'qemu-img', 'check', '-q', 'disk.qcow2');
});

/** Where Debian's package has libnbd for Python. */
const PYTHON = '/usr/bin/python3';

const WRITER = `
import nbd, os, sys
h = nbd.NBD()
h.set_export_name("disk")
h.connect_unix("nbd.sock")
for n in range(100000):
    data = bytes([n % 251 + 1]) * 65536
    at = (n * 7 % 900) * 65536
    h.pwrite(data, at)
    if n % 16 == 0: h.flush()
    if h.pread(65536, at) != data: sys.exit("differs at %d" % n)
    if os.path.exists("enough"):
        print("rounds", n)
        break
`;

test(`libnbd and nbdcopy go on through ${UPDATES} updates`, async (t) => {
  if (skipWithout(t, 'qemu-img', 'nbdcopy')) return;
  if (spawnSync(PYTHON, ['-c', 'import nbd']).status !== 0) return t.skip('not installed: python3-libnbd');
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  let serving = daemon.process;
  const shell = start(t, folder, PYTHON, '-c', WRITER);
  for (let count = 0; count < UPDATES; count++) {
    const copy = start(t, folder, 'nbdcopy', 'nbd+unix:///v0?socket=disk.sock', `copy${count}`);
    serving = await update(t, folder, { daemon, serving });
    assert.equal(await copy.ended, 0, copy.output());
    assert.equal(shell.child.exitCode, null, shell.output());
  }
  writeFileSync(join(folder, 'enough'), '');
  assert.equal(await shell.ended, 0, shell.output());
  assert.match(shell.output(), /rounds \d+/);
  run(folder, 'nbdcopy', 'nbd+unix:///v0?socket=disk.sock', 'last');
  await quit(daemon, serving);
  run(folder, 'qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', 'last', 'disk.qcow2');
  run(folder, 'qemu-img', 'check', '-q', 'disk.qcow2');
});
