import fs from 'node:fs';
import { BlockError, errnoError, errnoText } from '../base/error.js';
import type { DescriptorSetInfo, DescriptorSets } from './host.js';
import type { Syscalls } from './syscalls.js';

const PREFIX = '/dev/fdset/';
const { O_RDONLY, O_RDWR, O_WRONLY, O_DIRECT } = fs.constants;
const ACCESS = O_RDONLY | O_WRONLY | O_RDWR;

interface Member {
  readonly fd: number;
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
    set.members.push({ fd, opaque });
    this.#sets.set(id, set);
    return { setId: id, fd };
  }

  adopt(fd: number, setId: number, opaque?: string): void {
    try {
      fs.fstatSync(fd);
    } catch (error) {
      throw new BlockError('invalid', 'fd is not valid or already in use', { cause: error });
    }
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
      fs.closeSync(member.fd);
      set.members.splice(set.members.indexOf(member), 1);
    }
    this.#forgetIfUnused(setId, set);
  }

  list(): DescriptorSetInfo[] {
    const sets = [...this.#sets].map(([setId, { members }]) => ({ setId, members: [...members] }));
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
    const found = set.members.find(({ fd }) => (this.#system.fileFlags(fd) & ACCESS) === access);
    if (!found) throw failure('EACCES');
    const { value: fd, errno } = this.#system.sockets.duplicate(found.fd);
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
