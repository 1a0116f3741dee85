import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import {
  accessSync,
  chmodSync,
  constants,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

/** Records of the guest's writer: one block each, its number in the first bytes, in a ring. */
export const RECORD_BYTES = 4096;
export const RING_RECORDS = 256;

/** In the order of their dependencies. */
export const MODULES = [
  'virtio_ring',
  'virtio',
  'virtio_pci_legacy_dev',
  'virtio_pci_modern_dev',
  'virtio_pci',
  'virtio_blk',
];

/** The guest: writes numbered records round and round, each synced before it is reported on the console. */
const INIT = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t sysfs sys /sys
for module in ${MODULES.join(' ')}; do /bin/busybox insmod /modules/$module.ko; done
cd /sys/block/vda 2>/dev/null && echo "GUEST DISK $(/bin/busybox cat serial):$(/bin/busybox cat queue/logical_block_size):$(/bin/busybox cat queue/physical_block_size):$(/bin/busybox cat queue/write_cache):$(/bin/busybox cat ro)"
cd /
echo GUEST READY
number=0
size=0
while [ -b /dev/vda ]; do
  /bin/busybox printf 'record %012d' $number > /record
  /bin/busybox dd if=/record of=/dev/vda bs=${RECORD_BYTES} seek=$((number % ${RING_RECORDS})) conv=notrunc,sync,fsync 2>/dev/null || echo GUEST ERROR $number
  echo GUEST WROTE $number
  number=$((number + 1))
  now=$(/bin/busybox cat /sys/block/vda/size)
  [ $now = $size ] || echo GUEST SIZE $now
  size=$now
done
`;

const KVM_BOOT_MS = 15_000;
const TCG_BOOT_MS = 90_000;

export interface GuestKernel {
  kernel: string;
  initramfs: string;
}

/** What starts it; what the kernel warns of is on the console, so that a guest that locks up says where. */
export function bootWords({ kernel, initramfs }: GuestKernel): string[] {
  return [
    '-kernel',
    kernel,
    '-initrd',
    initramfs,
    '-append',
    'console=ttyS0 loglevel=5 panic=-1 no_timer_check',
  ];
}

/** Why no guest can be started here, or undefined. */
function guestMissing(): string | undefined {
  if (!existsSync('/usr/bin/qemu-system-x86_64')) return 'qemu-system-x86_64 is not installed';
  if (!existsSync('/bin/busybox')) return 'busybox-static is not installed';
  if (!existsSync('/usr/bin/cpio') && !existsSync('/bin/cpio')) return 'cpio is not installed';
  return undefined;
}

/** What a guest does, and which folders of its kernel's modules it has, with all that is needed to load them by name. */
export interface GuestKind {
  init: string;
  moduleFolders: readonly string[];
}

/** Fetches Debian's cloud kernel into `folder` and packs the guest's initramfs. */
function prepareGuest(folder: string, kind?: GuestKind): GuestKernel {
  const run = (file: string, args: string[], cwd = folder): string =>
    execFileSync(file, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  const depends = run('apt-cache', ['depends', 'linux-image-cloud-amd64']);
  const name = /Depends: (\S+)/.exec(depends)?.[1];
  if (name === undefined) throw new Error("apt-cache knows no linux-image-cloud-amd64: run 'apt-get update'");
  run('apt-get', ['download', name]);
  const deb = readdirSync(folder).find((file) => file.endsWith('.deb')) ?? '';
  run('dpkg', ['-x', deb, join(folder, 'kernel')]);
  const version = readdirSync(join(folder, 'kernel/lib/modules'))[0] ?? '';
  const root = join(folder, 'root');
  for (const dir of ['bin', 'proc', 'sys', 'dev', 'modules']) mkdirSync(join(root, dir), { recursive: true });
  copyFileSync('/bin/busybox', join(root, 'bin/busybox'));
  const modules = join(folder, 'kernel/lib/modules', version, 'kernel');
  for (const module of MODULES) {
    const dir = module === 'virtio_blk' ? 'drivers/block' : 'drivers/virtio';
    copyFileSync(join(modules, dir, `${module}.ko`), join(root, 'modules', `${module}.ko`));
  }
  for (const dir of kind?.moduleFolders ?? []) {
    const from = join(modules, dir);
    if (existsSync(from))
      cpSync(from, join(root, 'lib/modules', version, 'kernel', dir), { recursive: true });
  }
  if (kind && kind.moduleFolders.length > 0) execFileSync('/bin/busybox', ['depmod', '-b', root, version]);
  writeFileSync(join(root, 'init'), kind?.init ?? INIT);
  chmodSync(join(root, 'init'), 0o755);
  execFileSync('sh', ['-c', 'find . | cpio -o -H newc --quiet | gzip -1 > ../initramfs.gz'], { cwd: root });
  return { kernel: join(folder, `kernel/boot/vmlinuz-${version}`), initramfs: join(folder, 'initramfs.gz') };
}

/** The same in a folder of its own; undefined: the test is skipped, and says why. */
export function kernelFor(t: TestContext, folder: string, kind?: GuestKind): GuestKernel | undefined {
  const missing = guestMissing();
  if (missing !== undefined) return void t.skip(missing);
  mkdirSync(join(folder, 'guest'));
  try {
    return prepareGuest(join(folder, 'guest'), kind);
  } catch (error) {
    return void t.skip(`no guest kernel: ${String(error)}`);
  }
}

/** How a machine reaches its disk: the export of that name on a unix socket, or vhost-user on one. */
export type GuestDisk = { nbd: string; exportName: string } | { vhostUser: string; isPacked?: boolean };

function diskOptions(disk: GuestDisk): string[] {
  if ('vhostUser' in disk)
    return [
      ...['-object', 'memory-backend-memfd,id=memory,size=256M,share=on', '-numa', 'node,memdev=memory'],
      ...['-chardev', `socket,id=disk,path=${disk.vhostUser},reconnect=1`],
      ...['-device', `vhost-user-blk-pci,chardev=disk,packed=${disk.isPacked === true ? 'on' : 'off'}`],
    ];
  const { nbd, exportName } = disk;
  return [
    '-blockdev',
    `driver=nbd,node-name=disk,server.type=unix,server.path=${nbd},export=${exportName}`,
    ...['-device', 'virtio-blk-pci,drive=disk'],
  ];
}

/** A running QEMU machine. */
export class GuestMachine {
  readonly #process: ChildProcess;
  #console = '';
  #waiting: Array<() => void> = [];

  /** Boots, with KVM where a guest comes up under it (nested KVM may accept a guest and never run it), else TCG. */
  static async boot(guest: GuestKernel, disk: GuestDisk): Promise<GuestMachine> {
    if (canUseKvm()) {
      const machine = new GuestMachine(guest, disk, 'kvm');
      if (await machine.#isUp(KVM_BOOT_MS)) return machine;
      await machine.kill();
    }
    const machine = new GuestMachine(guest, disk, 'tcg');
    if (await machine.#isUp(TCG_BOOT_MS)) return machine;
    await machine.kill();
    throw new Error(`the guest did not boot:\n${machine.console.slice(-2000)}`);
  }

  readonly accelerator: 'kvm' | 'tcg';

  private constructor(guest: GuestKernel, disk: GuestDisk, accelerator: 'kvm' | 'tcg') {
    this.accelerator = accelerator;
    this.#process = spawn('qemu-system-x86_64', [
      ...[
        '-M',
        'q35',
        '-accel',
        accelerator,
        '-m',
        '256',
        '-nodefaults',
        '-display',
        'none',
        '-serial',
        'stdio',
      ],
      ...[...bootWords(guest), '-no-reboot'],
      ...diskOptions(disk),
    ]);
    for (const stream of [this.#process.stdout, this.#process.stderr]) {
      stream?.on('data', (chunk: Buffer) => {
        this.#console += chunk.toString('latin1');
        this.#wake();
      });
    }
    this.#process.on('exit', () => this.#wake());
  }

  get console(): string {
    return this.#console;
  }

  /** Number of the last record that the guest reported as written and synced; -1 before the first. */
  get lastRecord(): number {
    const all = [...this.#console.matchAll(/GUEST WROTE (\d+)\r?\n/g)];
    return all.length === 0 ? -1 : Number(all.at(-1)?.[1]);
  }

  /** Serial, logical and physical block size, write cache and whether it may only be read: what the guest sees of its disk. */
  get disk(): string | undefined {
    return /GUEST DISK (.*?)\r?\n/.exec(this.#console)?.[1];
  }

  get hadError(): boolean {
    return this.#console.includes('GUEST ERROR');
  }

  /** Waits until the guest has written this record. */
  async reached(record: number, timeoutMs = 120_000): Promise<void> {
    if (await this.#until(() => this.lastRecord >= record, timeoutMs)) return;
    throw new Error(`the guest did not reach record ${record}:\n${this.#console.slice(-2000)}`);
  }

  /** Waits until the guest has seen this size of its disk. */
  async sawSize(lengthBytes: number, timeoutMs = 60_000): Promise<void> {
    const line = new RegExp(`GUEST SIZE ${lengthBytes / 512}\\r?\\n`);
    if (await this.#until(() => line.test(this.#console), timeoutMs)) return;
    throw new Error(`the guest did not see ${lengthBytes} bytes:\n${this.#console.slice(-2000)}`);
  }

  #isUp(timeoutMs: number): Promise<boolean> {
    return this.#until(() => this.#console.includes('GUEST READY'), timeoutMs);
  }

  async #until(condition: () => boolean, timeoutMs: number): Promise<boolean> {
    const end = Date.now() + timeoutMs;
    while (!condition()) {
      if (this.#process.exitCode !== null || Date.now() > end) return false;
      await Promise.race([
        new Promise<void>((resolve) => this.#waiting.push(resolve)),
        new Promise((resolve) => setTimeout(resolve, 1000).unref()),
      ]);
    }
    return true;
  }

  /** Pulls the plug. */
  async kill(): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const ended = new Promise((resolve) => this.#process.once('exit', resolve));
    this.#process.kill('SIGKILL');
    await ended;
  }

  #wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}

export function canUseKvm(): boolean {
  try {
    accessSync('/dev/kvm', constants.R_OK);
    accessSync('/dev/kvm', constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** The record that a 4096-byte block holds, -1 for an empty one. */
export function recordNumber(block: Buffer): number {
  const text = /^record (\d{12})/.exec(block.subarray(0, 19).toString('latin1'))?.[1];
  return text === undefined ? -1 : Number(text);
}
