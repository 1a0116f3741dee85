import fs from 'node:fs';
import { BlockError, errnoError, errnoText } from '../base/error.js';
import type { DescriptorSetInfo, DescriptorSets, PassedMember } from './host.js';
import type { Syscalls } from './syscalls.js';

const PREFIX = '/dev/fdset/';
const { O_RDONLY, O_RDWR, O_WRONLY, O_DIRECT } = fs.constants;
const ACCESS = O_RDONLY | O_WRONLY | O_RDWR;

interface Member {
  /** By which clients know it. */
  readonly fd: number;
  readonly open: number;
  readonly opaque: string | undefined;
}

interface Set {
  readonly members: Member[];
  /** Files that are open by descriptors of it. */
  openFiles: number;
}

/** A descriptor in the place of an open(2), until `release`. */
export interface BorrowedDescriptor {
  readonly fd: number;
  readonly release: () => void;
}

/** Nobody has passed what is something else: Node.js opens descriptors of its own before it runs us. */
function isFile(fd: number): boolean {
  try {
    const stat = fs.fstatSync(fd);
    return stat.isFile() || stat.isBlockDevice() || stat.isCharacterDevice();
  } catch {
    return false;
  }
}

export function isDescriptorSetPath(path: string): boolean {
  return path.startsWith(PREFIX);
}

/**
 * Sets of open descriptors that stand for files: `/dev/fdset/N` opens a duplicate of the member that was opened as is
 * asked for. So a manager opens files for us that we have no right to.
 */
export class RealDescriptorSets implements DescriptorSets {
  readonly #system: Syscalls;
  readonly #sets = new Map<number, Set>();

  constructor(system: Syscalls) {
    this.#system = system;
  }

  add(fd: number, setId?: number, opaque?: string): { setId: number; fd: number } {
    if (setId !== undefined && setId < 0) {
      fs.closeSync(fd);
      throw new BlockError('invalid', "Parameter 'fdset-id' expects a non-negative value");
    }
    const id = setId ?? this.#freeId();
    const set = this.#sets.get(id) ?? { members: [], openFiles: 0 };
    const named = this.#unusedNumber(fd);
    set.members.push({ fd: named, open: named, opaque });
    this.#sets.set(id, set);
    return { setId: id, fd: named };
  }

  /** One that was taken over keeps the number that clients know it by: another descriptor must not get it here. */
  #unusedNumber(fd: number): number {
    const isTaken = [...this.#sets.values()].some(({ members }) =>
      members.some((member) => member.fd === fd),
    );
    if (!isTaken) return fd;
    const { value, errno } = this.#system.sockets.duplicate(fd);
    if (value < 0) throw errnoError(errno);
    const other = this.#unusedNumber(value);
    fs.closeSync(fd);
    return other;
  }

  restore(setId: number, members: ReadonlyArray<PassedMember>): void {
    const set = this.#sets.get(setId) ?? { members: [], openFiles: 0 };
    set.members.push(...members);
    this.#sets.set(setId, set);
  }

  /** A file is open by a descriptor of the set that a path stands for, if it stands for one. The answer ends that. */
  usedBy(path: string): () => void {
    if (!isDescriptorSetPath(path)) return () => undefined;
    const setId = Number(path.slice(PREFIX.length));
    const set = this.#sets.get(setId) ?? { members: [], openFiles: 0 };
    this.#sets.set(setId, set);
    set.openFiles++;
    return () => this.#release(setId, set);
  }

  /** Those that files are open by, too. */
  passed(): Array<{ setId: number; members: readonly PassedMember[] }> {
    return [...this.#sets].map(([setId, { members }]) => ({ setId, members: [...members] }));
  }

  adopt(fd: number, setId: number, opaque?: string): void {
    if (!isFile(fd)) throw new BlockError('invalid', 'fd is not valid or already in use');
    this.add(fd, setId, opaque);
  }

  #freeId(): number {
    let id = 0;
    while (this.#sets.has(id)) id++;
    return id;
  }

  remove(setId: number, fd?: number): void {
    const set = this.#sets.get(setId);
    const gone = set?.members.filter((member) => fd === undefined || member.fd === fd) ?? [];
    if (!set || (fd !== undefined && gone.length === 0)) {
      const what = fd === undefined ? `fdset-id:${setId}` : `fdset-id:${setId}, fd:${fd}`;
      throw new BlockError('not-found', `File descriptor named '${what}' not found`);
    }
    for (const member of gone) {
      fs.closeSync(member.open);
      set.members.splice(set.members.indexOf(member), 1);
    }
    this.#forgetIfUnused(setId, set);
  }

  list(): DescriptorSetInfo[] {
    const sets = [...this.#sets].map(([setId, { members }]) => ({
      setId,
      members: members.map(({ fd, opaque }) => ({ fd, opaque })),
    }));
    return sets.sort((a, b) => b.setId - a.setId);
  }

  close(fd: number): void {
    fs.closeSync(fd);
  }

  removeUnused(): void {
    for (const [setId, { openFiles }] of [...this.#sets]) if (openFiles === 0) this.remove(setId);
  }

  #forgetIfUnused(setId: number, { members, openFiles }: Set): void {
    if (members.length === 0 && openFiles === 0) this.#sets.delete(setId);
  }

  /** A descriptor that stands for a path of ours. Errors: invalid, not-found, permission; in QEMU's words. */
  borrow(path: string, { write, direct }: { write: boolean; direct: boolean }): BorrowedDescriptor {
    const number = path.slice(PREFIX.length);
    const setId = Number(number);
    if (!/^\d+$/.test(number)) throw new BlockError('invalid', `Could not parse fdset ${path}`, { path });
    const flags = (write ? O_RDWR : O_RDONLY) | (direct ? O_DIRECT : 0);
    const failure = (errno: string): BlockError => {
      const { kind } = errnoError(errno);
      const text = `Could not dup FD for ${path} flags ${flags.toString(16)}: ${errnoText(errno)}`;
      return new BlockError(kind, text, { errno, path });
    };
    const set = this.#sets.get(setId);
    if (!set) throw failure('ENOENT');
    const access = write ? O_RDWR : O_RDONLY;
    const found = set.members.find(({ open }) => (this.#system.fileFlags(open) & ACCESS) === access);
    if (!found) throw failure('EACCES');
    const { value: fd, errno } = this.#system.sockets.duplicate(found.open);
    if (fd < 0) throw failure(errno);
    try {
      this.#setDirect(fd, direct, set, path);
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
    set.openFiles++;
    return { fd, release: () => this.#release(setId, set) };
  }

  /** Duplicates have it in common: who asks for the other way finds the descriptor in use. */
  #setDirect(fd: number, direct: boolean, { openFiles }: Set, path: string): void {
    const flags = this.#system.fileFlags(fd);
    if ((flags & O_DIRECT) === (direct ? O_DIRECT : 0)) return;
    if (openFiles > 0)
      throw new BlockError('busy', `'${path}' is in use with another value of cache.direct`, { path });
    this.#system.setFileFlags(fd, flags ^ O_DIRECT);
  }

  #release(setId: number, set: Set): void {
    set.openFiles--;
    this.#forgetIfUnused(setId, set);
  }
}
