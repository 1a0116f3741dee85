import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { Daemon, PROGRAM, run } from './daemon.js';
import { bootWords, MODULES, RECORD_BYTES, RING_RECORDS } from './guest-machine.js';
import { BARE, type Bed, PRIVATE } from './machine-end.js';

export const PATIENCE_MS = 240_000;

/**
 * Writes numbered records to each disk, and goes on after the last one that is there. A disk of some names has the guest switch
 * itself off, or begin anew.
 */
export const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
for module in ${MODULES.join(' ')}; do insmod /modules/$module.ko; done
mkdir /count
while true; do
  for disk in /sys/block/vd*; do
    name=\${disk##*/}
    serial=$(cat $disk/serial 2>/dev/null)
    [ -n "$serial" ] && [ -b /dev/$name ] || continue
    [ $serial = poweroff ] && poweroff -f
    [ $serial = reboot ] && reboot -f
    if [ ! -e /count/$serial ]; then
      last=$(dd if=/dev/$name bs=${RECORD_BYTES} count=${RING_RECORDS} iflag=direct 2>/dev/null | tr -d '\\000' | grep -o 'record [0-9]*' | sort | tail -n 1)
      if [ -n "$last" ]; then number=$((1\${last#record } - 999999999999)); else number=0; fi
      echo GUEST FOUND $serial $number
      echo $number > /count/$serial
    fi
    number=$(cat /count/$serial)
    printf 'record %012d' $number > /record
    if dd if=/record of=/dev/$name bs=${RECORD_BYTES} seek=$((number % ${RING_RECORDS})) conv=notrunc,sync,fsync 2>/dev/null
    then echo GUEST WROTE $serial $number; echo $((number + 1)) > /count/$serial
    else echo GUEST ERROR $serial $number; sleep 0.2
    fi
  done
done
`;

export type Process = Daemon['process'];

/** A process that has the machine, or is to get it. */
export interface End {
  daemon: Daemon;
  console: string;
  /** Who serves now, after updates. */
  serving: Process;
}

/** A machine of livedisk's with a disk A and, now and then, a disk B, whichever process it is in. */
export class ChaosMachine {
  readonly folder: string;
  readonly #t: TestContext;
  readonly #bed: Bed;
  readonly #memory: readonly string[];
  #count = 0;
  end!: End;
  /** Of all processes. */
  readonly #consoles: string[] = [];
  /** What A has on top. */
  image = 'A.qcow2';
  hasB = false;

  /** `isShared`: its disks come over vhost-user, else over NBD. */
  constructor(t: TestContext, bed: Bed, isShared: boolean) {
    this.#t = t;
    this.#bed = bed;
    this.folder = bed.folder;
    this.#memory = isShared ? [] : PRIVATE;
  }

  newName(): string {
    return `i${this.#count++}`;
  }

  /** How much the guest has said in this process. */
  saidLength(): number {
    return this.#text(this.end.console).length;
  }

  #text(console: string): string {
    return existsSync(console) ? readFileSync(console, 'latin1') : '';
  }

  async begin(): Promise<void> {
    for (const name of ['A', 'B'])
      run(this.folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, '16M');
    this.end = await this.start();
    await this.goesOn();
  }

  lastRecord(serial: string): number {
    const line = new RegExp(`GUEST WROTE ${serial} (\\d+)\\r?\\n`, 'g');
    const last = this.#consoles.map((one) => Number([...this.#text(one).matchAll(line)].at(-1)?.[1] ?? -1));
    return Math.max(-1, ...last);
  }

  async goesOn(): Promise<void> {
    for (const serial of this.hasB ? ['A', 'B'] : ['A']) {
      const next = this.lastRecord(serial) + 3;
      const end = Date.now() + PATIENCE_MS;
      while (this.lastRecord(serial) < next) {
        if (Date.now() > end) throw new Error(`no record ${next} of ${serial}:\n${this.told()}`);
        await pause(50);
      }
    }
    const text = this.#text(this.end.console);
    assert.doesNotMatch(text, /GUEST ERROR A|[Pp]anic|BUG|Oops/, this.told());
  }

  told(): string {
    const lines = this.#text(this.end.console).split('\n');
    return [...lines.slice(-30), this.end.daemon.output].join('\n');
  }

  /** A process with the machine, which boots, or waits for it at `incoming`. */
  async start(incoming?: string): Promise<End> {
    const name = `e${this.#count++}`;
    const console = join(this.folder, `${name}.console`);
    const disk = (id: string, file: string): string[] => [
      ...['-blockdev', `node-name=${id},driver=qcow2,file.driver=file,file.filename=${file}`],
      ...['-device', `virtio-blk-pci,drive=${id},id=${id},serial=${id},addr=${id === 'A' ? 5 : 6}`],
    ];
    const words = [
      ...[...BARE, '-M', 'pc', '-m', '128', ...this.#memory, ...bootWords(this.#bed.kernel)],
      ...[...disk('A', this.image), ...(this.hasB ? disk('B', 'B.qcow2') : [])],
      ...['-serial', `file:${console}`, '-qmp', `unix:${name}.qmp,server=on,wait=off`],
      ...(incoming === undefined ? [] : ['-incoming', `unix:${incoming}`]),
    ];
    const argv = [process.execPath, PROGRAM, ...words];
    const daemon = await Daemon.start(this.#t, this.folder, argv, `${name}.qmp`, ['x-livedisk']);
    this.#consoles.push(console);
    return { daemon, console, serving: daemon.process };
  }

  /** The machine boots, and finds what was synced before. `from`: where its console begins to tell of that. */
  async boots(before: Record<string, number>, from = 0): Promise<void> {
    const found = async (serial: string): Promise<number> => {
      const end = Date.now() + PATIENCE_MS;
      for (;;) {
        const line = new RegExp(`GUEST FOUND ${serial} (\\d+)\\r?\\n`, 'g');
        const number = [...this.#text(this.end.console).slice(from).matchAll(line)].at(-1)?.[1];
        if (number !== undefined) return Number(number);
        if (Date.now() > end) throw new Error(`${serial} is not found:\n${this.told()}`);
        await pause(50);
      }
    };
    for (const [serial, last] of Object.entries(before)) {
      const number = await found(serial);
      assert.ok(number > last, `${serial}: it had synced ${last}, and goes on with ${number}`);
    }
  }

  synced(): Record<string, number> {
    return Object.fromEntries((this.hasB ? ['A', 'B'] : ['A']).map((one) => [one, this.lastRecord(one)]));
  }

  ask(name: string, args = {}): Promise<unknown> {
    return this.end.daemon.execute(name, args);
  }

  /** The machine has ended, and is started. */
  async again(): Promise<void> {
    await ended(this.end.serving);
    const before = this.synced();
    this.end = await this.start();
    await this.boots(before);
  }

  /** The guest is told by a disk of that name. */
  async tell(serial: string): Promise<void> {
    const node = `n${this.#count++}`;
    await this.ask('blockdev-add', { driver: 'null-co', 'node-name': node, size: 512 });
    const device = { driver: 'virtio-blk-pci', id: serial, drive: node, serial, addr: '7' };
    const { daemon } = this.end;
    // Of earlier resets.
    daemon.events.length = 0;
    await this.ask('device_add', device);
    if (serial !== 'reboot') return;
    // A guest that begins anew is not to find it.
    await daemon.event('RESET', { guest: true });
    await this.unplug(serial);
  }

  async plugB(): Promise<void> {
    const file = { driver: 'file', filename: 'B.qcow2' };
    await this.ask('blockdev-add', { driver: 'qcow2', 'node-name': 'B', file });
    const device = { driver: 'virtio-blk-pci', id: 'B', drive: 'B', serial: 'B', addr: '6' };
    await this.ask('device_add', device);
    this.hasB = true;
  }

  /** A guest that boots does not hear that it is asked. */
  async unplug(id: string): Promise<void> {
    const { daemon } = this.end;
    for (let tries = 0; ; tries++) {
      await daemon.raw('device_del', { id });
      const isGone = await daemon.event('DEVICE_DELETED', { device: id }, 5000).then(
        () => true,
        () => false,
      );
      if (isGone) break;
      if (tries > 20) throw new Error(`${id} does not go:\n${this.told()}`);
    }
    if (id !== 'B') return;
    await this.ask('blockdev-del', { 'node-name': 'B' });
    this.hasB = false;
  }

  async until(condition: () => boolean | Promise<boolean>): Promise<void> {
    const end = Date.now() + PATIENCE_MS;
    while (!(await condition())) {
      if (Date.now() > end) throw new Error(`it does not come to that:\n${this.told()}`);
      await pause(50);
    }
  }
}

export interface State {
  isGone: boolean;
  runs: boolean;
  migration: string;
  owner: string;
}

export async function state({ daemon }: End): Promise<State> {
  const [status, migration, move] = (await Promise.all(
    ['query-status', 'query-migrate', 'x-query-move'].map((name) => daemon.raw(name)),
  )) as Array<{ return?: { running?: boolean; status?: string; owner?: string }; error?: { class: string } }>;
  return {
    isGone: status?.error?.class === 'Closed',
    runs: status?.return?.running === true,
    migration: migration?.return?.status ?? '',
    owner: move?.return?.owner ?? '',
  };
}

export function ended(child: Process): Promise<[number | null, string | null]> {
  if (child.exitCode !== null || child.signalCode !== null)
    return Promise.resolve([child.exitCode, child.signalCode]);
  return new Promise((resolve) => child.once('exit', (code, signal) => resolve([code, signal])));
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
