import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { bootWords, kernelFor } from './guest-machine.js';
import { assertUnbroken, ringOf } from './guest-ring.js';

const MiB = 1024 * 1024;
const QMP = ['-qmp', 'unix:qmp.sock,server=on,wait=off'];
const QUIET = ['-display', 'none', '-nodefaults', '-accel', 'tcg'];

/** `livedisk machine` with a QMP socket. */
const machine = (t: TestContext, folder: string, ...args: string[]): Promise<Daemon> =>
  Daemon.start(t, folder, [process.execPath, PROGRAM, 'machine', ...QUIET, ...args, ...QMP], 'qmp.sock', [
    'x-livedisk',
  ]);

const qcow2 = (name: string, file: string): string[] => [
  '-blockdev',
  `node-name=${name},driver=qcow2,file.driver=file,file.filename=./${file}`,
];

/** What the guest prints on its serial line. */
class Console {
  readonly #path: string;

  constructor(folder: string) {
    this.#path = join(folder, 'console');
  }

  get text(): string {
    return existsSync(this.#path) ? readFileSync(this.#path, 'latin1') : '';
  }

  get lastRecord(): number {
    return Number([...this.text.matchAll(/GUEST WROTE (\d+)\r?\n/g)].at(-1)?.[1] ?? -1);
  }

  async until(condition: () => boolean, what: string): Promise<void> {
    const end = Date.now() + 240_000;
    while (!condition()) {
      if (Date.now() > end) throw new Error(`${what} did not come:\n${this.text.slice(-2000)}`);
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }

  /** The guest goes on. */
  more(records = 10): Promise<void> {
    const next = this.lastRecord + records;
    return this.until(() => this.lastRecord >= next, `record ${next}`);
  }
}

/** Those that are children of a process. */
function childrenOf(pid: number): number[] {
  const { stdout } = spawnSync('ps', ['-o', 'pid=', '--ppid', String(pid)], { encoding: 'utf8' });
  return stdout.split('\n').filter(Boolean).map(Number);
}

/** The program that runs the guest of a livedisk, and its keeper between them. */
function guestOf(pid: number): number | undefined {
  const [keeper] = childrenOf(pid);
  return childrenOf(keeper ?? 0).find((child) =>
    readFileSync(`/proc/${child}/cmdline`).includes('qemu-system'),
  );
}

const isRunning = (pid: number): boolean => existsSync(`/proc/${pid}/exe`);

async function gone(pid: number): Promise<void> {
  const end = Date.now() + 60_000;
  while (isRunning(pid)) {
    if (Date.now() > end) throw new Error(`process ${pid} is still there`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function events(daemon: Daemon): string[] {
  return daemon.events.map(({ event }) => event ?? '');
}

test('a machine boots from our disk and writes through every job, over one QMP socket', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
  const folder = scratch(t);
  const kernel = kernelFor(t, folder);
  if (!kernel) return;
  run(folder, 'qemu-img', 'create', '-f', 'qcow2', 'a.qcow2', '64M');
  const guest = new Console(folder);
  const daemon = await machine(
    t,
    folder,
    ...['-M', 'q35', '-m', '256', '-serial', 'file:console', '-no-reboot'],
    ...[...bootWords(kernel), ...qcow2('A', 'a.qcow2')],
    ...['-device', 'virtio-blk-pci,drive=A,id=virtio0,serial=disk-7,bootindex=1'],
  );
  await guest.until(() => guest.lastRecord >= 10, 'record 10');
  assert.match(guest.text, /GUEST DISK disk-7:512:512:write back:0/);

  await daemon.execute('blockdev-snapshot-sync', {
    ...{ 'node-name': 'A', 'snapshot-file': 'b.qcow2', 'snapshot-node-name': 'B' },
  });
  await guest.more();
  await daemon.execute('block-stream', { device: 'B', 'job-id': 's' });
  await daemon.event('BLOCK_JOB_COMPLETED', { device: 's' });
  await guest.more();
  await daemon.execute('blockdev-snapshot-sync', {
    ...{ 'node-name': 'B', 'snapshot-file': 'c.qcow2', 'snapshot-node-name': 'C' },
  });
  await guest.more();
  await daemon.execute('block-commit', { device: 'C', 'job-id': 'c' });
  await daemon.event('BLOCK_JOB_READY', { device: 'c' });
  await daemon.execute('block-job-complete', { device: 'c' });
  await daemon.event('BLOCK_JOB_COMPLETED', { device: 'c' });
  await guest.more();
  await daemon.execute('drive-mirror', {
    ...{ device: 'B', 'job-id': 'm', sync: 'full', target: 'd.qcow2', 'node-name': 'D' },
  });
  await daemon.event('BLOCK_JOB_READY', { device: 'm' });
  await guest.more();
  await daemon.execute('block-job-complete', { device: 'm' });
  await daemon.event('BLOCK_JOB_COMPLETED', { device: 'm' });
  await guest.more();
  await daemon.execute('block_resize', { 'node-name': 'D', size: 96 * MiB });
  await guest.until(() => guest.text.includes(`GUEST SIZE ${(96 * MiB) / 512}`), 'the new size');

  await daemon.execute('stop');
  const stopped = guest.lastRecord;
  assert.deepEqual(await daemon.execute('query-status'), {
    ...{ status: 'paused', singlestep: false, running: false },
  });
  await daemon.execute('cont');
  await guest.until(() => guest.lastRecord >= stopped + 10, 'the guest again');
  assert.doesNotMatch(guest.text, /GUEST ERROR/);
  assert.deepEqual(
    events(daemon).filter((name) => ['STOP', 'RESUME'].includes(name)),
    ['STOP', 'RESUME'],
  );
  const child = guestOf(daemon.process.pid ?? 0);
  assert.ok(child !== undefined, 'a machine');
  assert.equal(await daemon.quit(), 0, daemon.output);
  await gone(child);
  assert.deepEqual(
    events(daemon).filter((name) => name === 'SHUTDOWN'),
    ['SHUTDOWN'],
  );
  for (const image of ['a.qcow2', 'b.qcow2', 'd.qcow2']) run(folder, 'qemu-img', 'check', image);
  assertUnbroken(ringOf(folder, 'd.qcow2'), guest.lastRecord - 1, 'the disk in use');
});

/** Of the processors' own: whether the guest's clock interrupt moves on. */
async function isAtRest(daemon: Daemon): Promise<boolean> {
  const registers = (): Promise<unknown> =>
    daemon.execute('human-monitor-command', { 'command-line': 'info registers' });
  const before = await registers();
  await new Promise((resolve) => setTimeout(resolve, 1500));
  return before === (await registers());
}

for (const [way, device, more] of [
  ['over vhost-user', 'virtio-blk-pci', []],
  [
    'over NBD',
    'virtio-blk-pci',
    ['-object', 'memory-backend-ram,id=ram,size=256M', '-machine', 'memory-backend=ram'],
  ],
] as const)
  test(`a write that fails waits for cont, with the machine's processors, the disk ${way}`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
    const folder = scratch(t);
    const kernel = kernelFor(t, folder);
    if (!kernel) return;
    run(folder, 'qemu-img', 'create', '-f', 'raw', 'a.raw', '64M');
    const guest = new Console(folder);
    const failure = (sector: number, errno: number): string[] => [
      ...[`event=none`, `iotype=write`, `sector=${sector}`, `errno=${errno}`, `once=on`],
    ];
    // The writes of records 3 and 5.
    const rules = [failure(3 * 8, 28), failure(5 * 8, 5)].flatMap((rule, index) =>
      rule.map((member) => `file.inject-error.${index}.${member}`),
    );
    const daemon = await machine(
      t,
      folder,
      ...['-S', '-M', 'q35', '-m', '256', '-serial', 'file:console', '-no-reboot', ...more],
      ...bootWords(kernel),
      '-blockdev',
      `node-name=A,driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=./a.raw,${rules.join(',')}`,
      ...['-device', `${device},drive=A,id=virtio0,werror=stop`],
    );
    await daemon.execute('cont');
    await daemon.event('RESUME');
    for (const [record, nospace] of [
      [3, true],
      [5, false],
    ] as const) {
      const told = await daemon.event('BLOCK_IO_ERROR', {}, 90_000);
      assert.deepEqual(
        [told['device'], told['node-name'], told['operation'], told['nospace'], told['action']],
        ['', 'A', 'write', nospace, 'stop'],
      );
      await daemon.event('STOP');
      assert.deepEqual(await daemon.execute('query-status'), {
        ...{ status: 'io-error', singlestep: false, running: false },
      });
      const [disk] = (await daemon.execute('query-block')) as Array<{ 'io-status': string }>;
      assert.equal(disk?.['io-status'], nospace ? 'nospace' : 'failed');
      await daemon.execute('stop');
      assert.ok(Array.isArray(await daemon.execute('query-cpus-fast')), 'the machine answers');
      assert.ok(await isAtRest(daemon), 'its processors rest');
      assert.equal(guest.lastRecord, record - 1);
      await daemon.execute('cont');
      await daemon.event('RESUME');
    }
    await guest.until(() => guest.lastRecord >= 9, 'record 9');
    assert.doesNotMatch(guest.text, /GUEST ERROR/);
    assert.deepEqual(
      events(daemon).filter((name) => ['STOP', 'RESUME', 'BLOCK_IO_ERROR'].includes(name)),
      [],
    );
    await daemon.execute('stop');
    const last = guest.lastRecord;
    assert.equal(await daemon.quit(), 0, daemon.output);
    assertUnbroken(ringOf(folder, 'a.raw', 'raw'), last, 'the disk');
  });

/** No operating system: firmware that looks at the disks and goes on looking. */
const bare = async (
  t: TestContext,
  ...args: string[]
): Promise<{ folder: string; daemon: Daemon; child: number } | undefined> => {
  if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return undefined;
  const folder = scratch(t);
  for (const image of ['a', 'b', 'c'])
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${image}.qcow2`, '4M');
  const daemon = await machine(t, folder, '-m', '64', ...args);
  const child = guestOf(daemon.process.pid ?? 0);
  assert.ok(child !== undefined, 'a machine');
  return { folder, daemon, child };
};

const sockets = (): string[] => readdirSync(tmpdir()).filter((name) => name.startsWith('livedisk-machine-'));

test('commands go where they belong, and both worlds are described', async (t) => {
  const before = sockets();
  const bed = await bare(
    t,
    ...['-S', '-M', 'pc', ...qcow2('A', 'a.qcow2'), ...qcow2('B', 'b.qcow2'), ...qcow2('C', 'c.qcow2')],
    ...['-device', 'virtio-blk,drive=A,id=a', '-device', 'ide-hd,drive=B,id=b,serial=ide-7'],
    ...['-device', 'virtio-scsi-pci,id=s', '-device', 'scsi-hd,bus=s.0,drive=C,id=c'],
    ...[
      '-name',
      'guest',
      '-object',
      'throttle-group,id=limits',
      '-chardev',
      'null,id=n',
      '-serial',
      'chardev:n',
    ],
  );
  if (!bed) return;
  const { daemon } = bed;
  const ask = (name: string, args = {}): Promise<unknown> => daemon.execute(name, args);
  assert.deepEqual(await ask('query-status'), { status: 'prelaunch', singlestep: false, running: false });
  assert.deepEqual(await ask('query-name'), { name: 'guest' });
  const disks = (await ask('query-block')) as Array<{ qdev: string; inserted: { 'node-name': string } }>;
  assert.deepEqual(
    disks.map(({ qdev, inserted }) => [qdev, inserted['node-name']]),
    [
      ['/machine/peripheral/a/virtio-backend', 'A'],
      ['b', 'B'],
      ['c', 'C'],
    ],
  );
  const tree = (await ask('qom-list', { path: '/machine/peripheral' })) as Array<{
    name: string;
    type: string;
  }>;
  assert.deepEqual(
    tree
      .filter(({ type }) => /disk|hd|blk/.test(type))
      .map(({ name, type }) => [name, type])
      .sort(),
    [
      ['a', 'child<vhost-user-blk-pci>'],
      ['b', 'child<ide-hd>'],
      ['c', 'child<scsi-hd>'],
    ],
  );
  assert.equal(await ask('qom-get', { path: 'b', property: 'serial' }), 'ide-7');
  await ask('qom-get', { path: 'limits', property: 'limits' });
  const names = ((await ask('query-commands')) as Array<{ name: string }>).map(({ name }) => name);
  for (const name of ['blockdev-mirror', 'dump-guest-memory', 'cont', 'netdev_add'])
    assert.ok(names.includes(name), name);
  assert.equal(new Set(names).size, names.length);
  const schema = (await ask('query-qmp-schema')) as Array<{ name: string; 'meta-type': string }>;
  const commands = schema.filter((entity) => entity['meta-type'] === 'command').map(({ name }) => name);
  assert.deepEqual(commands.sort(), names.filter((name) => commands.includes(name)).sort());
  assertWhole(schema);

  const human = async (line: string): Promise<string> =>
    (await ask('human-monitor-command', { 'command-line': line })) as string;
  assert.match(await human('info block'), /A: .*a\.qcow2|a\.qcow2/);
  assert.match(await human('info registers'), /EIP=|RIP=/);
  assert.match(await human('info status'), /paused \(prelaunch\)/);
  assert.match(await human('savevm x'), /^Error: savevm: the memory of this machine/);

  await ask('cont');
  await daemon.event('RESUME');
  await ask('system_reset');
  assert.deepEqual(await daemon.event('RESET'), { guest: false, reason: 'host-qmp-system-reset' });
  await ask('blockdev-add', { driver: 'null-co', 'node-name': 'N', size: MiB, 'read-zeroes': true });
  await ask('device_add', { driver: 'virtio-blk-pci', drive: 'N', id: 'hot', serial: 'hot-7' });
  const hot = (await ask('qom-list', { path: '/machine/peripheral' })) as Array<{ name: string }>;
  assert.ok(hot.some(({ name }) => name === 'hot'));
  // QEMU 7.2 may wait for ever, for processors that run, at a device_add that fails.
  await ask('stop');
  const again = await daemon.raw('device_add', { driver: 'virtio-blk-pci', drive: 'N', id: 'hot' });
  assert.equal(again.error?.desc, "Duplicate device ID 'hot'");
  await ask('blockdev-add', { driver: 'null-co', 'node-name': 'M', size: MiB, 'read-zeroes': true });
  const wrong = await daemon.raw('device_add', { driver: 'virtio-blk-pci', drive: 'M', id: 'w', addr: 'zz' });
  assert.ok(wrong.error, 'a wrong address');
  await ask('blockdev-del', { 'node-name': 'M' });
  const left = sockets().filter((name) => !before.includes(name));
  assert.deepEqual(left, [], 'sockets that nobody needs any more');
  assert.equal(await daemon.quit(), 0, daemon.output);
});

/** Every type that is referred to is described, once. */
function assertWhole(schema: ReadonlyArray<{ name: string }>): void {
  const text = JSON.stringify(schema);
  const known = schema.map(({ name }) => name);
  assert.equal(new Set(known).size, known.length);
  for (const [, name = ''] of text.matchAll(/"(?:arg-type|ret-type|element-type|type)":"([^"]+)"/g))
    assert.ok(known.includes(name), name);
}

test('the end of either is the end of both', async (t) => {
  const disk = [...qcow2('A', 'a.qcow2'), '-device', 'virtio-blk,drive=A,id=a'];
  const ends: ReadonlyArray<readonly [string, (daemon: Daemon, child: number) => unknown, number | null]> = [
    ['a machine that is killed', (_daemon, child) => process.kill(child, 'SIGKILL'), 1],
    ['a machine that is told to end', (_daemon, child) => process.kill(child, 'SIGTERM'), 0],
    ['a livedisk that is told to end', (daemon) => daemon.process.kill('SIGTERM'), 0],
    ['a livedisk that is killed', (daemon) => daemon.process.kill('SIGKILL'), null],
  ];
  for (const [what, end, status] of ends) {
    const bed = await bare(t, ...disk);
    if (!bed) return;
    const { daemon, child, folder } = bed;
    await daemon.execute('human-monitor-command', { 'command-line': 'qemu-io -d a "write -P 7 0 1M"' });
    await daemon.execute('human-monitor-command', { 'command-line': 'qemu-io -d a "flush"' });
    const ended = new Promise<number | null>((resolve) => daemon.process.once('exit', resolve));
    end(daemon, child);
    assert.equal(await ended, status, `${what}: ${daemon.output}`);
    await gone(child);
    run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'read -P 7 0 1M', 'a.qcow2');
    run(folder, 'qemu-img', 'check', 'a.qcow2');
    if (status !== null)
      assert.equal(
        events(daemon).filter((name) => name === 'SHUTDOWN').length,
        what.endsWith('killed') ? 0 : 1,
        what,
      );
  }
});

test('what cannot be the machine is refused by name', (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
  const folder = scratch(t);
  const livedisk = (env: NodeJS.ProcessEnv, ...args: string[]): string => {
    const options = { cwd: folder, encoding: 'utf8' as const, env: { ...process.env, ...env } };
    const { status, stderr } = spawnSync(process.execPath, [PROGRAM, ...args], options);
    assert.equal(status, 1, stderr);
    return stderr;
  };
  const launchers = join(folder, 'bin');
  spawnSync(process.execPath, [PROGRAM, 'launchers', launchers]);
  const launcher = join(launchers, 'qemu-system-x86_64');
  const ours = new RegExp(
    `^livedisk: ${launcher} starts livedisk itself, which runs no machine\n.*qemu-system-x86\\.`,
  );
  assert.match(livedisk({}, 'machine', `--machine=${launcher}`), ours);
  assert.match(livedisk({ PATH: `${launchers}:/nowhere` }, 'run', '--machine', '-M', 'q35'), ours);
  const missing = /^livedisk: qemu-system-x86_64 is not installed\n.*package qemu-system-x86\./;
  assert.match(livedisk({ PATH: '/nowhere' }, 'machine', '-M', 'q35'), missing);
  assert.match(livedisk({ LIVEDISK_MACHINE: '1' }, 'machine'), /in the place of a machine by livedisk/);
  const wrong = livedisk({}, 'machine', ...QUIET, '-device', 'no-such-device');
  assert.match(wrong, /'no-such-device' is not a valid device model name/);
  assert.match(wrong, /livedisk: the machine has not started: .* has ended with status 1/);
});
