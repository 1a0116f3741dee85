import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { assertUnbroken, ringOf } from './guest-ring.js';
import { BARE, End, MACHINE_QEMU, newBed, PRIVATE, VIRTIO } from './machine-end.js';
import { endUnlessTold, quit, successor, update } from './takeover-sides.js';

/** A machine that livedisk runs goes on, with its guest, in the process that takes over. */

const SIZE = '64M';
const TIMEOUT_MS = 60_000;

/** Processes with these words in their command line. */
function programs(...words: string[]): number[] {
  const { stdout } = spawnSync('ps', ['-eo', 'pid=,args='], { encoding: 'utf8' });
  return stdout.split('\n').flatMap((line) => {
    const [, pid, args = ''] = /^\s*(\d+) (.*)$/.exec(line) ?? [];
    return words.every((word) => args.includes(word)) && !args.startsWith('sh ') && !args.includes(' sh ')
      ? [Number(pid)]
      : [];
  });
}

/** QEMU that has its console there. */
function guestOf(console: string): number {
  const found = programs(console, 'livedisk.monitor').filter((pid) =>
    readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('qemu-system'),
  );
  assert.equal(found.length, 1, 'one guest');
  return found[0] ?? 0;
}

async function gone(pid: number): Promise<void> {
  for (let looks = 0; looks < 3000 && existsSync(`/proc/${pid}/exe`); looks++)
    await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(!existsSync(`/proc/${pid}/exe`), `process ${pid} is gone`);
}

for (const [how, more] of Object.entries({ 'vhost-user': [], NBD: PRIVATE }))
  test(`a guest on a disk over ${how} writes through updates, and has one QMP socket`, async (t) => {
    const bed = newBed(t);
    if (!bed) return;
    const { folder } = bed;
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', SIZE);
    const end = await End.start(t, bed, 'm', 'a.qcow2', ...VIRTIO, ...more);
    const { daemon } = end;
    await end.reached(10);
    const guest = guestOf(`${folder}/m.console`);
    const answers = async (): Promise<unknown> => {
      const all = [await daemon.execute('query-block'), await daemon.execute('query-cpus-fast')];
      // The guest writes.
      return JSON.parse(JSON.stringify(all, (key, value: unknown) => (key === 'actual-size' ? 0 : value)));
    };
    const before = await answers();
    let serving = daemon.process;
    for (let round = 0; round < 2; round++) {
      serving = await update(t, folder, { daemon, serving, timeout: TIMEOUT_MS });
      await end.reached(end.lastRecord + 10);
    }
    assert.equal(guestOf(`${folder}/m.console`), guest, 'the same program runs it');
    assert.deepEqual(await answers(), before);
    const overlay = { 'snapshot-file': 'b.qcow2', 'snapshot-node-name': 'B', format: 'qcow2' };
    await daemon.execute('blockdev-snapshot-sync', { 'node-name': 'disk', ...overlay });
    await daemon.execute('block-stream', { device: 'B', 'job-id': 's' });
    serving = await update(t, folder, { daemon, serving, timeout: TIMEOUT_MS });
    await daemon.event('BLOCK_JOB_COMPLETED', { device: 's' });
    await end.reached(end.lastRecord + 10);
    await daemon.execute('stop');
    await daemon.event('STOP');
    serving = await update(t, folder, { daemon, serving, timeout: TIMEOUT_MS });
    const stopped = end.lastRecord;
    assert.equal(await end.status(), 'paused');
    await daemon.execute('cont');
    await end.reached(stopped + 10);
    assert.doesNotMatch(end.text, /GUEST ERROR/);
    await daemon.execute('stop');
    const last = end.lastRecord;
    const ended = once(serving, 'exit');
    await quit(daemon, serving);
    assert.deepEqual(await ended, [0, null]);
    await gone(guest);
    run(folder, 'qemu-img', 'check', '-q', 'b.qcow2');
    assertUnbroken(ringOf(folder, 'b.qcow2'), last, 'the disk');
  });

test('disks come and go before and after updates', async (t) => {
  if (skipWithout(t, 'qemu-img', MACHINE_QEMU)) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', SIZE);
  const words = [
    ...[...BARE, '-M', 'pc'],
    ...['-m', '64', '-S', '-blockdev', 'node-name=A,driver=qcow2,file.driver=file,file.filename=./a.qcow2'],
    ...['-device', 'virtio-blk,drive=A,id=a', '-device', 'virtio-scsi-pci,id=s'],
    ...['-qmp', 'unix:qmp.sock,server=on,wait=off'],
  ];
  const argv = [process.execPath, PROGRAM, ...words];
  const daemon = await Daemon.start(t, folder, argv, 'qmp.sock', ['x-livedisk']);
  let serving = daemon.process;
  const ask = (name: string, args = {}): Promise<unknown> => daemon.execute(name, args);
  const addNode = (name: string): Promise<unknown> =>
    ask('blockdev-add', { driver: 'null-co', 'node-name': name, size: 1024 * 1024, 'read-zeroes': true });
  const add = async (driver: string, id: string, more = {}): Promise<void> => {
    await addNode(`of-${id}`);
    await ask('device_add', { driver, id, drive: `of-${id}`, ...more });
  };
  const remove = async (id: string): Promise<void> => {
    await ask('device_del', { id });
    await daemon.event('DEVICE_DELETED', { device: id });
    await ask('blockdev-del', { 'node-name': `of-${id}` });
  };
  const expectDisks = async (...ids: string[]): Promise<void> => {
    const ours = (await ask('query-block')) as Array<{ inserted: { 'node-name': string } }>;
    assert.deepEqual(
      ours.map(({ inserted }) => inserted['node-name']).sort(),
      ids
        .map((id) => `of-${id}`)
        .concat('A')
        .sort(),
    );
    const theirs = (await ask('qom-list', { path: '/machine/peripheral' })) as Array<{ name: string }>;
    assert.deepEqual(
      theirs
        .map(({ name }) => name)
        .filter((name) => name !== 'type')
        .sort(),
      ['a', 's', ...ids].sort(),
    );
    const inQemu = (await ask('human-monitor-command', { 'command-line': 'info qtree' })) as string;
    for (const id of ids) assert.match(inQemu, new RegExp(`id "${id}"`));
  };
  await add('scsi-hd', 'scsi1', { bus: 's.0' });
  await add('virtio-blk-pci', 'virtio1');
  await expectDisks('scsi1', 'virtio1');
  for (const round of [2, 3]) {
    serving = await update(t, folder, { daemon, serving, timeout: TIMEOUT_MS });
    await expectDisks(`scsi${round - 1}`, ...range(1, round - 1).map((one) => `virtio${one}`));
    await remove(`scsi${round - 1}`);
    const wrong = await daemon.raw('device_add', { driver: 'scsi-hd', drive: 'A', id: 'w', bus: 's.0' });
    assert.match(wrong.error?.desc ?? '', /^Permission conflict/);
    await add('scsi-hd', `scsi${round}`, { bus: 's.0' });
    await add('virtio-blk-pci', `virtio${round}`);
    await expectDisks(`scsi${round}`, ...range(1, round).map((one) => `virtio${one}`));
  }
  await quit(daemon, serving);
});

function range(first: number, last: number): number[] {
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}

const KILLS = Number(process.env['TAKEOVER_KILLS'] ?? 2);

test(`${KILLS} updates of a machine of which one side is killed: the guest goes on with the other, or ends`, async (t) => {
  const bed = newBed(t);
  if (!bed) return;
  const { folder } = bed;
  const count = { old: 0, new: 0, none: 0 };
  for (let round = 0; round < KILLS; round++) {
    const [name, image] = [`k${round}`, `k${round}.qcow2`];
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', image, SIZE);
    const end = await End.start(t, bed, name, image, ...VIRTIO);
    const { daemon } = end;
    await end.reached(5);
    const guest = guestOf(`${folder}/${name}.console`);
    const old = daemon.process;
    const next = await successor(t, folder);
    const asked = daemon.raw('x-takeover', { socket: 'next.sock', timeout: TIMEOUT_MS });
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 800));
    const [victim, other] = round % 2 === 0 ? [next, old] : [old, next];
    victim.kill('SIGKILL');
    if (victim === old) void endUnlessTold(other, `${folder}/next.sock`);
    const isServed = await Promise.race([
      asked.then(({ error }) => (error ? error.class !== 'Closed' : victim === old)),
      once(other, 'exit').then(() => false),
    ]);
    count[isServed ? (other === old ? 'old' : 'new') : 'none']++;
    if (isServed) {
      await end.reached(end.lastRecord + 10);
      assert.doesNotMatch(end.text, /GUEST ERROR/);
      await daemon.execute('stop');
      const last = end.lastRecord;
      await quit(daemon, other);
      run(folder, 'qemu-img', 'check', '-q', image);
      assertUnbroken(ringOf(folder, image), last, 'the disk');
    }
    await gone(guest);
  }
  t.diagnostic(`the old one served ${count.old} times, the new one ${count.new}, nobody ${count.none}`);
});

test('SIGUSR2 updates a machine, and its words are those of what serves', async (t) => {
  const bed = newBed(t);
  if (!bed) return;
  const { folder } = bed;
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', SIZE);
  const end = await End.start(t, bed, 'm', 'a.qcow2', ...VIRTIO);
  const { daemon } = end;
  const guest = guestOf(`${folder}/m.console`);
  const words = [PROGRAM, 'machine', '-takeover', 'next.sock', '-smp', '2'];
  const { status, stderr } = spawnSync(process.execPath, words, { cwd: folder, encoding: 'utf8' });
  assert.equal(status, 1);
  assert.match(stderr, /-takeover: what the machine is comes from what serves/);
  const ended = once(daemon.process, 'exit');
  daemon.process.kill('SIGUSR2');
  assert.deepEqual(await ended, [0, null]);
  assert.equal(guestOf(`${folder}/m.console`), guest);
  await end.reached(end.lastRecord + 5);
  await daemon.execute('quit');
  await gone(guest);
});

test('the end of either is the end of both after an update, too', async (t) => {
  const bed = newBed(t);
  if (!bed) return;
  const { folder } = bed;
  const ends = {
    'a guest that is killed': { victim: 'guest', signal: 'SIGKILL', status: [1, null] },
    'a guest that is told to end': { victim: 'guest', signal: 'SIGTERM', status: [0, null] },
    'a livedisk that is told to end': { victim: 'livedisk', signal: 'SIGTERM', status: [0, null] },
    'a livedisk that is killed': { victim: 'livedisk', signal: 'SIGKILL', status: [null, 'SIGKILL'] },
  } as const;
  for (const [i, [what, { victim, signal, status }]] of Object.entries(ends).entries()) {
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${i}.qcow2`, SIZE);
    const { daemon } = await End.start(t, bed, `m${i}`, `${i}.qcow2`, ...VIRTIO);
    const guest = guestOf(`${folder}/m${i}.console`);
    const serving = await update(t, folder, {
      ...{ daemon, serving: daemon.process, timeout: TIMEOUT_MS },
    });
    const ended = once(serving, 'exit');
    process.kill(victim === 'guest' ? guest : (serving.pid ?? 0), signal);
    assert.deepEqual(await ended, status, what);
    await gone(guest);
    run(folder, 'qemu-img', 'check', '-q', `${i}.qcow2`);
  }
});
