import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { Daemon, PROGRAM, scratch, skipWithout } from './daemon.js';
import { bootWords, type GuestKernel, type GuestKind, kernelFor } from './guest-machine.js';

/** The QEMU that runs guests; another one than what is installed can be given. */
export const MACHINE_QEMU = process.env['MACHINE_QEMU'] ?? 'qemu-system-x86_64';

/**
 * QEMU 7.2 by itself, without any of livedisk, sends a guest of its TCG with pages that are out of date, about once in ten moves
 * of a busy guest. 10.0 does not.
 */
const OLDEST_SOUND = 10;

/** Why guests are not moved often here, or undefined. */
export function unsoundMoves(): string | undefined {
  const told = spawnSync(MACHINE_QEMU, ['--version']).stdout?.toString() ?? '';
  const version = Number(/version (\d+)/.exec(told)?.[1]);
  if (version >= OLDEST_SOUND) return undefined;
  return `QEMU ${version} loses changes of a TCG guest's memory that moves: MACHINE_QEMU=program of ${OLDEST_SOUND}.0`;
}

/** A machine of livedisk's without anything that is not asked for. */
export const BARE = [
  ...['machine', `--machine=${MACHINE_QEMU}`],
  ...['-display', 'none', '-nodefaults', '-accel', 'tcg'],
];

/** One process of a machine that moves, with its guest's console in a file. */
export class End {
  readonly daemon: Daemon;
  readonly #console: string;

  private constructor(daemon: Daemon, console: string) {
    this.daemon = daemon;
    this.#console = console;
  }

  static async start(
    t: TestContext,
    { folder, kernel }: Bed,
    name: string,
    image: string,
    ...more: string[]
  ): Promise<End> {
    const console = join(folder, `${name}.console`);
    const words = [
      ...[...BARE, '-M', 'q35', '-no-reboot'],
      ...bootWords(kernel),
      ...['-blockdev', `node-name=disk,driver=qcow2,file.driver=file,file.filename=./${image}`],
      ...['-serial', `file:${console}`, '-qmp', `unix:${name}.qmp,server=on,wait=off`, ...more],
    ];
    const argv = [process.execPath, PROGRAM, ...words];
    return new End(await Daemon.start(t, folder, argv, `${name}.qmp`, ['x-livedisk']), console);
  }

  get text(): string {
    return existsSync(this.#console) ? readFileSync(this.#console, 'latin1') : '';
  }

  get lastRecord(): number {
    return Number([...this.text.matchAll(/GUEST WROTE (\d+)\r?\n/g)].at(-1)?.[1] ?? -1);
  }

  /** The first whole line that its guest has told here. */
  get firstRecord(): number {
    return Number(/GUEST WROTE (\d+)\r?\n/.exec(this.text)?.[1] ?? -1);
  }

  async reached(record: number): Promise<void> {
    const end = Date.now() + 240_000;
    while (this.lastRecord < record) {
      if (Date.now() > end)
        throw new Error(`record ${record} did not come:\n${this.text.slice(-2000)}\n${this.daemon.output}`);
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }

  async status(): Promise<string> {
    return ((await this.daemon.execute('query-status')) as { status: string }).status;
  }

  async moved(): Promise<string> {
    const end = Date.now() + 240_000;
    for (;;) {
      const told = (await this.daemon.execute('query-migrate')) as { status?: string; 'error-desc'?: string };
      const { status = '', 'error-desc': why } = told;
      if (['completed', 'failed', 'cancelled'].includes(status)) return why ?? status;
      if (Date.now() > end) throw new Error(`still ${JSON.stringify(told)}\n${this.daemon.output}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

export interface Bed {
  folder: string;
  kernel: GuestKernel;
}

/** undefined: the test is skipped. `kind`: what the guest does, else numbered records. */
export function newBed(t: TestContext, kind?: GuestKind): Bed | undefined {
  if (skipWithout(t, 'qemu-img', MACHINE_QEMU)) return undefined;
  const folder = scratch(t);
  const kernel = kernelFor(t, folder, kind);
  return kernel && { folder, kernel };
}

export const VIRTIO = ['-m', '128', '-device', 'virtio-blk-pci,drive=disk,id=virtio0,serial=disk-7'];
/** Memory that livedisk cannot map: the disk comes over NBD. */
export const PRIVATE = ['-object', 'memory-backend-ram,id=ram,size=128M', '-machine', 'memory-backend=ram'];
