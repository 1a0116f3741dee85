import { posix } from 'node:path';
import { assert } from '../base/assert.js';
import { errnoError } from '../base/error.js';
import type { DescriptorSets, HostFile, HostFiles, HostRoom, HostStat, OpenFileOptions } from './host.js';
import { SimulatedInode } from './simulated-disk.js';
import { SimulatedFile } from './simulated-file.js';
import type { Machine } from './simulated-machine.js';
import type { SeededRandom } from './simulated-random.js';

/** Of the files of a simulation. */
const FIRST_NUMBER = 10;

/** What a name stands for. */
type Entry = SimulatedInode | 'directory';

/**
 * The names of the simulation. A name that was made or removed is certain to survive a power loss only after a
 * syncDirectory of its folder; before that the disk may have it either way. Relative names start at '/'.
 */
export class SimulatedDirectory {
  readonly #entries = new Map<string, Entry>();
  readonly #durable = new Map<string, Entry>();
  /** Who had each number last. */
  readonly #numbers = new Map<number, SimulatedInode>();

  constructor(directories: readonly string[]) {
    for (const path of directories) {
      this.#entries.set(path, 'directory');
      this.#durable.set(path, 'directory');
    }
  }

  get(path: string): Entry | undefined {
    return this.#entries.get(path);
  }

  set(path: string, entry: Entry): void {
    this.#entries.set(path, entry);
  }

  /** A new file. It gets the lowest number that is free: one whose file has no name, and that nobody has open. */
  make(path: string, { operationCount, fileTimeMs }: Machine): SimulatedInode {
    const named = new Set<Entry>(this.#entries.values());
    const isTaken = (inode: SimulatedInode): boolean => named.has(inode) || inode.handles.size > 0;
    let number = FIRST_NUMBER;
    for (let last = this.#numbers.get(number); last && isTaken(last); last = this.#numbers.get(number))
      number++;
    const inode = new SimulatedInode(number, operationCount, fileTimeMs);
    this.#numbers.set(number, inode);
    this.#entries.set(path, inode);
    return inode;
  }

  delete(path: string): void {
    this.#entries.delete(path);
  }

  /** Makes the names in one folder durable as they are. */
  sync(folder: string): void {
    for (const path of this.#differing()) if (posix.dirname(path) === folder) this.#settle(path);
  }

  names(folder: string): string[] {
    const inside = [...this.#entries.keys()].filter((path) => path !== '/' && posix.dirname(path) === folder);
    return inside.map((path) => posix.basename(path));
  }

  /** Files by name, for looking at them from outside. */
  files(): Map<string, SimulatedInode> {
    const files = new Map<string, SimulatedInode>();
    for (const [path, entry] of this.#entries) if (entry !== 'directory') files.set(path, entry);
    return files;
  }

  /** Every file that a name leads to, or may lead to after a power loss. */
  inodes(): Set<SimulatedInode> {
    const all = new Set<SimulatedInode>();
    for (const entry of [...this.#entries.values(), ...this.#durable.values()])
      if (entry !== 'directory') all.add(entry);
    return all;
  }

  losePower(random: SeededRandom): void {
    for (const path of this.#differing()) if (random.chance(0.5)) this.#settle(path);
    forgetReplaced(this.#durable);
    this.#entries.clear();
    for (const [path, entry] of this.#durable) if (this.#isReachable(path)) this.#entries.set(path, entry);
  }

  /** The names as they would be if the power went now, each inode as `copy` makes it. */
  ifPowerWent(keepsNames: boolean, copy: (inode: SimulatedInode) => SimulatedInode): SimulatedDirectory {
    const directory = new SimulatedDirectory([]);
    const copies = new Map<SimulatedInode, SimulatedInode>();
    const names = new Map(keepsNames ? this.#entries : this.#durable);
    forgetReplaced(names);
    for (const [path, entry] of names) {
      const kept = entry === 'directory' ? entry : (copies.get(entry) ?? copy(entry));
      if (entry !== 'directory' && kept !== 'directory') {
        copies.set(entry, kept);
        directory.#numbers.set(kept.number, kept);
      }
      directory.#entries.set(path, kept);
      directory.#durable.set(path, kept);
    }
    return directory;
  }

  #isReachable(path: string): boolean {
    return path === '/' || this.#durable.get(posix.dirname(path)) === 'directory';
  }

  #differing(): string[] {
    const paths = new Set([...this.#entries.keys(), ...this.#durable.keys()]);
    return [...paths].filter((path) => this.#entries.get(path) !== this.#durable.get(path));
  }

  #settle(path: string): void {
    const entry = this.#entries.get(path);
    if (entry) this.#durable.set(path, entry);
    else this.#durable.delete(path);
  }
}

/** A file is there whose number another one had: that one's removal came before, and is durable with it. */
function forgetReplaced(names: Map<string, Entry>): void {
  const newest = new Map<number, SimulatedInode>();
  for (const entry of names.values())
    if (entry !== 'directory' && (newest.get(entry.number)?.born ?? -1) < entry.born)
      newest.set(entry.number, entry);
  for (const [path, entry] of names)
    if (entry !== 'directory' && newest.get(entry.number) !== entry) names.delete(path);
}

/** The file system as one boot of the machine sees it. */
export class SimulatedFiles implements HostFiles {
  readonly #machine: Machine;
  readonly #directory: SimulatedDirectory;
  readonly #boot: number;

  constructor(machine: Machine, directory: SimulatedDirectory) {
    this.#machine = machine;
    this.#directory = directory;
    this.#boot = machine.boot;
  }

  /** Nobody passes descriptors to this machine. */
  readonly descriptorSets: DescriptorSets = {
    add: () => {
      throw errnoError('EBADF');
    },
    adopt: () => {
      throw errnoError('EBADF');
    },
    remove: () => {
      throw errnoError('EBADF');
    },
    list: () => [],
    close: () => undefined,
    removeUnused: () => undefined,
  };

  buffer(lengthBytes: number): Buffer {
    return Buffer.alloc(lengthBytes);
  }

  open(path: string, options: OpenFileOptions): Promise<HostFile> {
    const what = `Could not ${options.create ? 'create' : 'open'} '${path}'`;
    const at = absolute(path);
    return this.#perform(options.create ? 'create' : 'open', path, what, () => {
      const { again } = options;
      assert(!again || again instanceof SimulatedFile, 'a file of another host is opened again');
      let entry = again ? again.inode : this.#directory.get(at);
      if (entry === 'directory') throw errnoError('EISDIR');
      if (entry && options.create && options.exclusive) throw errnoError('EEXIST');
      if (!entry) {
        if (!options.create) throw errnoError('ENOENT');
        this.#checkFolder(at);
        entry = this.#directory.make(at, this.#machine);
      }
      if (options.truncate && entry.sizeBytes > 0)
        entry.change({ type: 'truncate', sizeBytes: 0 }, this.#machine.fileTimeMs);
      return new SimulatedFile(this.#machine, at, entry, options.write);
    });
  }

  stat(path: string): Promise<HostStat | undefined> {
    return this.#perform('stat', path, `Could not open '${path}'`, () => {
      const entry = this.#directory.get(absolute(path));
      if (!entry) return undefined;
      const isDirectory = entry === 'directory';
      const sizeBytes = isDirectory ? 0 : entry.sizeBytes;
      return {
        sizeBytes,
        isBlockDevice: false,
        isDirectory,
        isSpecial: 'no',
        identity: isDirectory ? absolute(path) : String(entry.number),
        modifiedMs: isDirectory ? 0 : entry.modifiedMs,
        ...(!isDirectory && { bornMs: entry.born }),
        isPrivate: true,
      };
    });
  }

  room(path: string): Promise<HostRoom> {
    return this.#perform('stat', path, `Could not open '${path}'`, () => {
      const { space } = this.#machine;
      const freeBytes = space ? space.capacityBytes - this.#machine.usedBytes() : Number.MAX_SAFE_INTEGER;
      if (!this.#directory.get(absolute(path))) this.#checkFolder(absolute(path));
      return { freeBytes: Math.max(0, freeBytes), isWritable: true };
    });
  }

  unlink(path: string): Promise<void> {
    return this.#perform('unlink', path, `Could not remove '${path}'`, () => {
      const entry = this.#directory.get(absolute(path));
      if (!entry) throw errnoError('ENOENT');
      if (entry === 'directory') throw errnoError('EISDIR');
      this.#directory.delete(absolute(path));
    });
  }

  link(path: string, newPath: string): Promise<void> {
    return this.#perform('link', newPath, `Could not create '${newPath}'`, () => {
      const entry = this.#directory.get(absolute(path));
      if (!entry) throw errnoError('ENOENT');
      if (entry === 'directory') throw errnoError('EPERM');
      if (this.#directory.get(absolute(newPath))) throw errnoError('EEXIST');
      this.#checkFolder(absolute(newPath));
      this.#directory.set(absolute(newPath), entry);
    });
  }

  syncDirectory(path: string): Promise<void> {
    return this.#perform('syncDirectory', path, `Could not sync '${path}'`, () => {
      const entry = this.#directory.get(absolute(path));
      if (entry !== 'directory') throw errnoError(entry ? 'ENOTDIR' : 'ENOENT');
      this.#directory.sync(absolute(path));
    });
  }

  mkdir(path: string): Promise<void> {
    return this.#perform('mkdir', path, `Could not create '${path}'`, () => {
      if (this.#directory.get(absolute(path))) throw errnoError('EEXIST');
      this.#checkFolder(absolute(path));
      this.#directory.set(absolute(path), 'directory');
    });
  }

  rename(from: string, to: string): Promise<void> {
    return this.#perform('rename', from, `Could not rename '${from}'`, () => {
      const entry = this.#directory.get(absolute(from));
      if (!entry) throw errnoError('ENOENT');
      if (entry === 'directory' || this.#directory.get(absolute(to)) === 'directory')
        throw errnoError('EISDIR');
      this.#checkFolder(absolute(to));
      this.#directory.set(absolute(to), entry);
      this.#directory.delete(absolute(from));
    });
  }

  list(path: string): Promise<string[]> {
    return this.#perform('list', path, `Could not open '${path}'`, () => {
      const entry = this.#directory.get(absolute(path));
      if (entry !== 'directory') throw errnoError(entry ? 'ENOTDIR' : 'ENOENT');
      return this.#directory.names(absolute(path));
    });
  }

  #checkFolder(path: string): void {
    const folder = this.#directory.get(posix.dirname(path));
    if (folder !== 'directory') throw errnoError(folder ? 'ENOTDIR' : 'ENOENT');
  }

  /** `what` comes before the error's own text. */
  async #perform<T>(
    kind: Parameters<Machine['perform']>[0]['kind'],
    path: string,
    what: string,
    action: () => T,
  ): Promise<T> {
    const operation = { kind, path: absolute(path), boot: this.#boot };
    try {
      return await this.#machine.perform(operation, action);
    } catch (error) {
      const errno = error instanceof Error && 'errno' in error ? error.errno : undefined;
      throw typeof errno === 'string' ? errnoError(errno, what, { path }) : error;
    }
  }
}

export function absolute(path: string): string {
  return posix.resolve('/', path);
}
