import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';

/** QEMU's programs as they are run: those of the system, or those in a folder where a package was unpacked. */
export class Peer {
  readonly #folder: string | undefined;

  /** `folder`: has `usr/bin` or `bin`, or the programs themselves. */
  constructor(folder?: string) {
    this.#folder = folder === undefined ? undefined : resolve(folder);
  }

  /** What starts a program; arguments go behind. */
  argv(program: string): string[] {
    if (this.#folder === undefined) return [program];
    const bin = ['usr/bin', 'bin', '']
      .map((part) => join(this.#folder ?? '', part, program))
      .find(existsSync);
    return bin === undefined
      ? [join(this.#folder, program)]
      : ['env', `LD_LIBRARY_PATH=${this.#libraries()}`, bin];
  }

  /** Such as "QEMU 7.2.22". */
  name(): string {
    const [program = '', ...args] = this.argv('qemu-img');
    const { stdout } = spawnSync(program, [...args, '--version'], { encoding: 'utf8' });
    return `QEMU ${/version ([\d.]+)/.exec(stdout ?? '')?.[1] ?? '?'}`;
  }

  /** Those that cannot be run. */
  lacks(...programs: string[]): string[] {
    return programs.filter((each) => {
      const [program = '', ...args] = this.argv(each);
      return spawnSync(program, [...args, '--version']).status !== 0;
    });
  }

  /** lib folders of the package, with one for the machine's architecture below as Debian has it. */
  #libraries(): string {
    const folders: string[] = [];
    for (const part of ['usr/lib', 'lib', 'usr/lib64', 'lib64']) {
      const folder = join(this.#folder ?? '', part);
      if (!existsSync(folder)) continue;
      const triplets = readdirSync(folder).filter((name) => name.endsWith('-linux-gnu'));
      folders.push(...triplets.map((name) => join(folder, name)), folder);
    }
    return folders.join(':');
  }
}
