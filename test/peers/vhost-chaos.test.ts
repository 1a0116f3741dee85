import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { seededBelow } from '../kit/crash-states.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { bootWords, kernelFor, MODULES, RECORD_BYTES, RING_RECORDS } from './guest-machine.js';
import { assertUnbroken, ringOf } from './guest-ring.js';
import { MACHINE_QEMU } from './machine-end.js';
import { update } from './takeover-sides.js';

/**
 * A real machine on two disks over vhost-user, of which one comes and goes, while the program that serves both is killed,
 * updated, stopped and told to do jobs. The guest sees no error, and each disk has all that it synced.
 */

/** CHAOS_STEPS=60: so many of them (`npm run proof vhost-chaos`), CHAOS_SEED=7: others. */
const STEPS = Number(process.env['CHAOS_STEPS'] ?? 0);
const SEED = Number(process.env['CHAOS_SEED'] ?? Date.now() % 2 ** 31);
const PATIENCE_MS = 120_000;

/** Writes numbered records to each disk that is there, round and round, and goes on where it was when one comes back. */
const INIT = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t sysfs sys /sys
for module in ${MODULES.join(' ')}; do /bin/busybox insmod /modules/$module.ko; done
/bin/busybox mkdir /count
while true; do
  for disk in /sys/block/vd*; do
    name=\${disk##*/}
    serial=$(/bin/busybox cat $disk/serial 2>/dev/null)
    [ -n "$serial" ] && [ -b /dev/$name ] || continue
    number=0
    [ -e /count/$serial ] && number=$(/bin/busybox cat /count/$serial)
    /bin/busybox printf 'record %012d' $number > /record
    if /bin/busybox dd if=/record of=/dev/$name bs=${RECORD_BYTES} seek=$((number % ${RING_RECORDS})) conv=notrunc,sync,fsync 2>/dev/null
    then echo GUEST WROTE $serial $number; echo $((number + 1)) > /count/$serial
    else echo GUEST ERROR $serial $number; /bin/busybox sleep 0.2
    fi
  done
done
`;

type Inserted = { 'node-name': string; backing_file_depth: number; file: string };

class Chaos {
  readonly #t: TestContext;
  readonly #folder: string;
  readonly #below: (limit: number) => number;
  readonly counts = new Map<string, number>();
  #daemon!: Daemon;
  #serving!: Daemon['process'];
  #qemu!: Daemon;
  #images = 0;
  /** Whether the machine has the second disk. */
  #hasB = false;

  constructor(t: TestContext, folder: string, seed: number) {
    this.#t = t;
    this.#folder = folder;
    this.#below = seededBelow(seed);
  }

  #console(): string {
    const path = join(this.#folder, 'console');
    return existsSync(path) ? readFileSync(path, 'latin1') : '';
  }

  lastRecord(serial: string): number {
    return Number(
      [...this.#console().matchAll(new RegExp(`GUEST WROTE ${serial} (\\d+)\\r?\\n`, 'g'))].at(-1)?.[1] ?? -1,
    );
  }

  async #reached(serial: string, record: number): Promise<void> {
    const end = Date.now() + PATIENCE_MS;
    while (this.lastRecord(serial) < record) {
      if (Date.now() > end) throw new Error(`no record ${record} of ${serial}:\n${this.#told(serial)}`);
      await pause(20);
    }
  }

  /** What all have said, without the other disk's records. */
  #told(serial: string): string {
    const lines = this.#console().split('\n');
    const others = lines.filter((line) => !line.includes('GUEST WROTE') || line.includes(` ${serial} `));
    return [...others.slice(-30), this.#daemon.output, this.#qemu.output].join('\n');
  }

  async #goesOn(): Promise<void> {
    await this.#reached('A', this.lastRecord('A') + 3);
    if (this.#hasB) await this.#reached('B', this.lastRecord('B') + 3);
    assert.doesNotMatch(this.#console(), /GUEST ERROR A/);
  }

  async begin(guest: { kernel: string; initramfs: string }): Promise<void> {
    for (const name of ['A', 'B'])
      run(this.#folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, '16M');
    const disk = (name: string): string[] => [
      ...['-blockdev', `node-name=${name},driver=qcow2,file.driver=file,file.filename=${name}.qcow2`],
      ...[
        '-device',
        `virtio-blk,drive=${name},id=${name},serial=${name},x-endpoint=vhost-user:${name}.vhost`,
      ],
    ];
    await this.#start(...disk('A'), ...disk('B'));
    this.#qemu = await Daemon.start(
      this.#t,
      this.#folder,
      [
        ...[MACHINE_QEMU, '-M', 'pc', '-accel', 'tcg', '-nodefaults', '-display', 'none', '-no-reboot'],
        ...[
          '-m',
          '128',
          '-object',
          'memory-backend-memfd,id=memory,size=128M,share=on',
          '-numa',
          'node,memdev=memory',
        ],
        ...['-chardev', 'socket,id=A,path=A.vhost,reconnect=1', '-device', 'vhost-user-blk-pci,chardev=A'],
        ...['-serial', 'file:console', '-qmp', 'unix:qemu.qmp,server=on,wait=off', ...bootWords(guest)],
      ],
      'qemu.qmp',
    );
    await this.#reached('A', 3);
  }

  async #start(...words: string[]): Promise<void> {
    this.#daemon = await Daemon.start(
      this.#t,
      this.#folder,
      [
        ...[process.execPath, PROGRAM, 'run', '-monitor', 'none', '--state', join(this.#folder, 'state')],
        ...(words.length > 0 ? ['-qmp', 'unix:qmp.sock,server=on,wait=off', ...words] : []),
      ],
      'qmp.sock',
      ['x-livedisk'],
    );
    this.#serving = this.#daemon.process;
  }

  readonly #steps: { [name: string]: () => Promise<void> } = {
    kill: async () => {
      const ended = new Promise((resolve) => this.#serving.once('exit', resolve));
      this.#serving.kill('SIGKILL');
      await ended;
      await pause(this.#below(1500));
      await this.#start();
    },
    update: async () => {
      const args = ['--state', join(this.#folder, 'state')];
      this.#serving = await update(this.#t, this.#folder, {
        daemon: this.#daemon,
        serving: this.#serving,
        args,
      });
    },
    hang: async () => {
      this.#serving.kill('SIGSTOP');
      await pause(this.#below(2000));
      this.#serving.kill('SIGCONT');
    },
    'stop the machine': async () => {
      await this.#qemu.execute('stop');
      await pause(this.#below(300));
      await this.#qemu.execute('cont');
    },
    'stop the disks': async () => {
      await this.#daemon.execute('stop');
      await pause(this.#below(1000));
      await this.#daemon.execute('cont');
    },
    'the second disk': () => (this.#hasB ? this.#unplug() : this.#plug()),
    'the second disk again': () => (this.#hasB ? this.#unplug() : this.#plug()),
    snapshot: async () => {
      const name = `i${this.#images++}`;
      const file = { 'snapshot-file': `${name}.qcow2`, 'snapshot-node-name': name };
      await this.#daemon.execute('blockdev-snapshot-sync', {
        'node-name': (await this.#disk())['node-name'],
        ...file,
      });
    },
    commit: async () => {
      if (await this.#commit()) await this.#completed();
    },
    mirror: async () => {
      const target = `i${this.#images++}`;
      const file = { target: `${target}.qcow2`, 'node-name': target, format: 'qcow2', sync: 'full' };
      await this.#daemon.execute('drive-mirror', {
        'job-id': 'j',
        device: (await this.#disk())['node-name'],
        ...file,
      });
      await this.#completed();
    },
    'commit, killed': async () => {
      if (await this.#commit()) await pause(this.#below(100));
      await this.#steps['kill']?.();
    },
  };

  /** Whether there is something to commit. */
  async #commit(): Promise<boolean> {
    const { 'node-name': device, backing_file_depth: depth } = await this.#disk();
    if (depth > 0) await this.#daemon.execute('block-commit', { 'job-id': 'j', device });
    return depth > 0;
  }

  async #completed(): Promise<void> {
    await this.#daemon.event('BLOCK_JOB_READY', { device: 'j' });
    await this.#daemon.execute('job-complete', { id: 'j' });
    await this.#daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
  }

  async #disk(): Promise<Inserted> {
    const disks = (await this.#daemon.execute('query-block')) as Array<{ qdev: string; inserted: Inserted }>;
    const disk = disks.find(({ qdev }) => qdev.split('/').includes('A'));
    assert.ok(disk);
    return disk.inserted;
  }

  /** QEMU that runs may hang where somebody whom it connects to does not answer. */
  async #plug(): Promise<void> {
    await this.#qemu.execute('stop');
    const addr = { type: 'unix', data: { path: 'B.vhost' } };
    const backend = { type: 'socket', data: { addr, server: false, reconnect: 1 } };
    await this.#qemu.execute('chardev-add', { id: 'B', backend });
    await this.#qemu.execute('device_add', { driver: 'vhost-user-blk-pci', id: 'b', chardev: 'B' });
    await this.#qemu.execute('cont');
    this.#hasB = true;
  }

  async #unplug(): Promise<void> {
    await this.#qemu.execute('device_del', { id: 'b' });
    await this.#qemu.event('DEVICE_DELETED', { device: 'b' }, PATIENCE_MS);
    this.#hasB = false;
    await pause(300);
    await this.#qemu.execute('chardev-remove', { id: 'B' });
  }

  async run(steps: number): Promise<void> {
    const names = Object.keys(this.#steps);
    for (let step = 0; step < steps; step++) {
      const name = names[this.#below(names.length)] ?? '';
      try {
        await this.#steps[name]?.();
        await this.#goesOn();
      } catch (error) {
        throw new Error(`step ${step}, '${name}': ${String(error)}`, { cause: error });
      }
      this.counts.set(name, (this.counts.get(name) ?? 0) + 1);
    }
  }

  /** What was synced is there. */
  async end(): Promise<void> {
    const { file } = await this.#disk();
    await this.#qemu.kill();
    const last = { A: this.lastRecord('A'), B: this.lastRecord('B') };
    const ended = new Promise((resolve) => this.#serving.once('exit', resolve));
    await this.#daemon.execute('quit');
    assert.equal(await ended, 0);
    run(this.#folder, 'qemu-img', 'check', '-q', 'B.qcow2');
    assertUnbroken(ringOf(this.#folder, file), last.A, 'the disk that stays');
    if (last.B >= 0) assertUnbroken(ringOf(this.#folder, 'B.qcow2'), last.B, 'the disk that comes and goes');
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

test(`a guest goes on through ${STEPS} kills, updates, stops, jobs and plugs of its disks (seed ${SEED})`, async (t) => {
  if (STEPS === 0) return t.skip('takes minutes: npm run proof vhost-chaos');
  if (skipWithout(t, 'qemu-img', MACHINE_QEMU)) return;
  const folder = scratch(t);
  const kernel = kernelFor(t, folder, { init: INIT, moduleFolders: [] });
  if (!kernel) return;
  const chaos = new Chaos(t, folder, SEED);
  await chaos.begin(kernel);
  await chaos.run(STEPS);
  await chaos.end();
  const told = [...chaos.counts].map(([name, count]) => `${count} times '${name}'`).join(', ');
  t.diagnostic(
    `${STEPS} steps of chaos: ${told}; ${chaos.lastRecord('A')} and ${chaos.lastRecord('B')} records`,
  );
});
