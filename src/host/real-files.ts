import fs from 'node:fs';
import { posix } from 'node:path';
import { assert } from '../base/assert.js';
import { Slots } from '../base/async.js';
import { errnoError } from '../base/error.js';
import { CopyBuffers } from './copy-through-memory.js';
import { type BorrowedDescriptor, isDescriptorSetPath, RealDescriptorSets } from './descriptor-sets.js';
import type { FileTraits, HostFile, HostFiles, HostRoom, HostStat, OpenFileOptions } from './host.js';
import { RealFile } from './real-file.js';
import { nodeError } from './call-error.js';
import { Syscalls } from './syscalls.js';
import { TurnBudget } from './sync-writes.js';

/** statfs(2) f_type of file systems that live in memory: tmpfs and ramfs (linux/magic.h). */
const IN_MEMORY_MAGIC = new Set([0x01021994, 0x858458f6]);
/** Least unit of O_DIRECT requests, and the one that every common device takes. */
const LEAST_DIRECT_BYTES = 512;
const SAFE_DIRECT_BYTES = 4096;
/**
 * f_type of file systems whose calls no other program and no other machine answers: ext2 to ext4, xfs, btrfs, f2fs, zfs,
 * bcachefs, overlayfs, squashfs, ISO 9660, FAT, exFAT, NTFS3, and the devices' own.
 */
const LOCAL_MAGIC = new Set([
  ...IN_MEMORY_MAGIC,
  ...[0xef53, 0x58465342, 0x9123683e, 0xf2f52010, 0x2fc12fc1, 0xca451a4e, 0x794c7630, 0x73717368],
  ...[0x9660, 0x4d44, 0x2011bab0, 0x7366746e, 0x1373],
]);
/** f_type of ext2 to ext4. */
const EXT_MAGIC = 0xef53;
/**
 * f_type of file systems whose copy_file_range moves page after page under the target's lock, since they have no blocks
 * to share: tmpfs, ramfs, ext2 to ext4. Reads and writes of large pieces are a third faster there, for less work.
 */
const MOVES_PAGES_MAGIC = new Set([...IN_MEMORY_MAGIC, EXT_MAGIC]);
/** Calls to remote files that may be in the pool at a time, of all files together: the rest of it is for the others. */
const REMOTE_CALLS = 4;
const PAGE_BYTES = 4096;
/** Permissions of a new image, less the umask. */
const NEW_FILE_MODE = 0o644;
const PRIVATE_FILE_MODE = 0o600;
const NEW_FOLDER_MODE = 0o777;
const PRIVATE_FOLDER_MODE = 0o700;
/** What others than the owner may do. */
const OTHERS_MASK = 0o077;
/** Page cache writes per turn of the event loop, all files together: as long as a job works in one turn. */
const SYNC_WRITE_MS_PER_TURN = 4;

export class RealFiles implements HostFiles {
  readonly #system: Syscalls;
  readonly #budget = new TurnBudget(SYNC_WRITE_MS_PER_TURN);
  readonly #remoteCalls = new Slots(REMOTE_CALLS);
  readonly #copyBuffers = new CopyBuffers();
  readonly #isRemote: (fileSystem: number) => boolean;
  readonly descriptorSets: RealDescriptorSets;

  constructor(system: Syscalls, isRemote = (fileSystem: number) => !LOCAL_MAGIC.has(fileSystem)) {
    this.#system = system;
    this.descriptorSets = new RealDescriptorSets(system);
    this.#isRemote = isRemote;
  }

  buffer(lengthBytes: number): Buffer {
    return this.#system.alignedBuffer(lengthBytes, PAGE_BYTES);
  }

  async open(path: string, options: OpenFileOptions): Promise<HostFile> {
    const what = `Could not ${options.create ? 'create' : 'open'} '${path}'`;
    let opened: BorrowedDescriptor | undefined;
    try {
      opened = await this.#descriptor(path, options);
      const { fd, release } = opened;
      const stat = fs.fstatSync(fd);
      if (stat.isDirectory()) throw errnoError('EISDIR', what, { path });
      const direct = options.direct ?? false;
      const fileSystem = stat.isFile() ? (await fs.promises.statfs(`/proc/self/fd/${fd}`)).type : undefined;
      const isRemote = fileSystem !== undefined && this.#isRemote(fileSystem);
      const traits: FileTraits = {
        inMemory: fileSystem !== undefined && !isRemote && IN_MEMORY_MAGIC.has(fileSystem),
        isRemote,
        isBlockDevice: stat.isBlockDevice(),
        alignmentBytes: direct ? this.#directAlignment(fd, isRemote) : 1,
      };
      const allocatedBytes = stat.blocks * 512;
      const copiesPages = fileSystem !== undefined && !direct && MOVES_PAGES_MAGIC.has(fileSystem);
      const writable = options.write;
      const knowsHoles = fileSystem !== EXT_MAGIC || !this.#system.isMappedByBlocks(fd);
      const properties = {
        ...{ fd, release, path, writable, direct, traits },
        ...{ allocatedBytes, copiesPages, knowsHoles },
      };
      const shared = { budget: this.#budget, remoteCalls: this.#remoteCalls, copyBuffers: this.#copyBuffers };
      return new RealFile(properties, this.#system, shared);
    } catch (error) {
      if (opened) fs.closeSync(opened.fd);
      opened?.release();
      throw nodeError(error, what, { path });
    }
  }

  async #descriptor(path: string, options: OpenFileOptions): Promise<BorrowedDescriptor> {
    const { descriptor } = options;
    if (descriptor !== undefined) return { fd: descriptor, release: this.descriptorSets.usedBy(path) };
    if (isDescriptorSetPath(path))
      return this.descriptorSets.borrow(path, { write: options.write, direct: options.direct ?? false });
    const { again } = options;
    assert(!again || again instanceof RealFile, 'a file of another host is opened again');
    const open = (at: string): Promise<number> =>
      openDescriptor(at, openFlags(options), options.isPrivate === true ? PRIVATE_FILE_MODE : NEW_FILE_MODE);
    return { fd: await (again ? again.openAgain(open) : open(path)), release: () => undefined };
  }

  /** A smaller unit than is needed fails, a larger one makes a file longer that ends within a unit. */
  #directAlignment(fd: number, isRemote: boolean): number {
    // Nobody waits for another machine here.
    if (isRemote) return SAFE_DIRECT_BYTES;
    const told = this.#system.directAlignment(fd);
    if (told !== undefined) return Math.max(told, LEAST_DIRECT_BYTES);
    return this.#takesDirect(fd, LEAST_DIRECT_BYTES) ? LEAST_DIRECT_BYTES : SAFE_DIRECT_BYTES;
  }

  /** Whether a read of so many bytes is allowed. At the end of a file the kernel does not look: then nobody knows. */
  #takesDirect(fd: number, lengthBytes: number): boolean {
    try {
      return fs.readSync(fd, this.buffer(PAGE_BYTES), 0, lengthBytes, 0) > 0;
    } catch {
      return false;
    }
  }

  async stat(path: string): Promise<HostStat | undefined> {
    try {
      const stat = await fs.promises.stat(this.#pathOf(path));
      const isBlockDevice = stat.isBlockDevice();
      const sizeBytes = isBlockDevice ? await this.#deviceSize(path) : stat.size;
      const identity = isBlockDevice ? `device ${stat.rdev}` : `${stat.dev}:${stat.ino}`;
      const isDirectory = stat.isDirectory();
      const isSpecial = specialKind(stat);
      const isPrivate = stat.uid === process.getuid?.() && (stat.mode & OTHERS_MASK) === 0;
      const modifiedMs = stat.mtimeMs;
      const born = stat.birthtimeMs > 0 ? { bornMs: stat.birthtimeMs } : {};
      return { sizeBytes, isBlockDevice, isDirectory, isSpecial, identity, modifiedMs, ...born, isPrivate };
    } catch (error) {
      const wrapped = nodeError(error, `Could not open '${path}'`, { path });
      if (wrapped.errno === 'ENOENT' || wrapped.errno === 'ENOTDIR') return undefined;
      throw wrapped;
    }
  }

  /** Where the kernel finds what lies at a path: of a set of descriptors, any that are left. */
  #pathOf(path: string): string {
    if (!isDescriptorSetPath(path)) return path;
    const set = this.descriptorSets.passed().find(({ setId }) => path === `/dev/fdset/${setId}`);
    const [first] = set?.members ?? [];
    return first === undefined ? path : `/proc/self/fd/${first.open}`;
  }

  async unlink(path: string): Promise<void> {
    await named(`Could not remove '${path}'`, path, fs.promises.unlink(path));
  }

  async room(path: string): Promise<HostRoom> {
    const at = (await this.stat(path)) ? this.#pathOf(path) : posix.dirname(path);
    const { bavail, bsize } = await named(`Could not open '${path}'`, path, fs.promises.statfs(at));
    const isWritable = await fs.promises.access(at, fs.constants.W_OK).then(
      () => true,
      () => false,
    );
    return { freeBytes: bavail * bsize, isWritable };
  }

  async link(path: string, newPath: string): Promise<void> {
    await named(`Could not create '${newPath}'`, newPath, fs.promises.link(path, newPath));
  }

  async syncDirectory(path: string): Promise<void> {
    const directory = await named(`Could not open '${path}'`, path, fs.promises.open(path, 'r'));
    try {
      await named(`Could not sync '${path}'`, path, directory.sync());
    } finally {
      await directory.close();
    }
  }

  async mkdir(path: string, { isPrivate = false } = {}): Promise<void> {
    const mode = isPrivate ? PRIVATE_FOLDER_MODE : NEW_FOLDER_MODE;
    await named(`Could not create '${path}'`, path, fs.promises.mkdir(path, { mode }));
  }

  async rename(from: string, to: string): Promise<void> {
    await named(`Could not rename '${from}'`, from, fs.promises.rename(from, to));
  }

  list(path: string): Promise<string[]> {
    return named(`Could not open '${path}'`, path, fs.promises.readdir(path));
  }

  async #deviceSize(path: string): Promise<number> {
    const device = await this.open(path, { write: false });
    try {
      return device.sizeBytes();
    } finally {
      await device.close();
    }
  }
}

function specialKind(stat: fs.Stats): HostStat['isSpecial'] {
  if (stat.isSocket()) return 'socket';
  if (stat.isCharacterDevice()) return 'character device';
  return stat.isFIFO() ? 'other' : 'no';
}

function openFlags(options: OpenFileOptions): number {
  const { O_RDONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_DIRECT } = fs.constants;
  let flags = options.write ? O_RDWR : O_RDONLY;
  if (options.create) flags |= O_CREAT;
  if (options.create && options.exclusive) flags |= O_EXCL;
  if (options.truncate) flags |= O_TRUNC;
  if (options.direct) flags |= O_DIRECT;
  return flags;
}

function openDescriptor(path: string, flags: number, mode: number): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.open(path, flags, mode, (error, fd) => {
      if (error) reject(error);
      else resolve(fd);
    });
  });
}

async function named<T>(what: string, path: string, action: Promise<T>): Promise<T> {
  try {
    return await action;
  } catch (error) {
    throw nodeError(error, what, { path });
  }
}
