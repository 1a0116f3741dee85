import { alignDown } from '../base/align.js';
import { deferred } from '../base/async.js';
import { BlockError, errnoError } from '../base/error.js';
import { EPOCH_SECONDS, type EventQueue } from './simulated-clock.js';
import { type Change, SECTOR_BYTES, type SimulatedInode } from './simulated-disk.js';
import type { SeededRandom } from './simulated-random.js';

export type OperationKind =
  | 'open'
  | 'create'
  | 'stat'
  | 'unlink'
  | 'rename'
  | 'mkdir'
  | 'list'
  | 'link'
  | 'syncDirectory'
  | 'read'
  | 'write'
  | 'flush'
  | 'punchHole'
  | 'zeroRange'
  | 'truncate'
  | 'allocate'
  | 'copyFrom'
  | 'compute';

export interface Operation {
  kind: OperationKind;
  path: string;
  /** Counts every operation of the simulation, from 0. */
  index: number;
}

export interface Fault {
  op: OperationKind;
  /** Absolute path, of 'compute' the function's name; every one when left out. */
  path?: string;
  /** Such as 'EIO', 'ENOSPC'; 'ENOTSUP' takes the operation away. */
  errno: string;
  /** Strikes once, then is gone. */
  once?: boolean;
  /** Lets this many matching operations pass first. */
  afterCount?: number;
}

export interface MachineOptions {
  /** Longest time of one operation. */
  latencyMs: number;
  /** How often a try* answers false, 0 to 1. */
  refuseProbability: number;
  /** Answers true for a flush that shall do nothing; `index` counts the flushes of that path from 0. */
  dropFlush?: (path: string, index: number) => boolean;
  /** Called before each operation; may cut the power. */
  onOperation?: (operation: Operation) => void;
}

/** A kernel takes the time of its last tick for files. */
const FILE_CLOCK_STEP_MS = 4;

/** How much the disk holds, of all files together, and when it says that it is full. */
export interface DiskSpace {
  capacityBytes: number;
  /** At the write or allocation, or only at the flush, which keeps what it could not write for a later one. */
  tells: 'early' | 'late';
}

interface Pending {
  inode: SimulatedInode;
  change: Change;
}

/** What all files of a simulation share: latency, faults, counters and the power switch. */
export class Machine {
  /** Goes up when the power goes: handles of an earlier boot are closed. */
  boot = 0;
  operationCount = 0;
  /** No limit when undefined. */
  space: DiskSpace | undefined;
  /** Bytes that all files take; set by the owner of the files. */
  usedBytes: () => number = () => 0;
  readonly queue: EventQueue;
  readonly random: SeededRandom;
  readonly #options: MachineOptions;
  readonly #faults: Array<Fault & { toPass: number }> = [];
  readonly #flushCounts = new Map<string, number>();
  readonly #pending = new Set<Pending>();
  readonly #cancels = new Set<() => void>();

  constructor(queue: EventQueue, random: SeededRandom, options: MachineOptions) {
    this.queue = queue;
    this.random = random;
    this.#options = options;
  }

  injectFault(fault: Fault): () => void {
    const entry = { ...fault, toPass: fault.afterCount ?? 0 };
    this.#faults.push(entry);
    return () => this.#removeFault(entry);
  }

  isFlushDropped(path: string): boolean {
    const index = this.#flushCounts.get(path) ?? 0;
    this.#flushCounts.set(path, index + 1);
    return this.#options.dropFlush?.(path, index) ?? false;
  }

  /** Whether the disk, which tells early, has room for a change. */
  hasRoom(inode: SimulatedInode, change: Change): boolean {
    if (this.space?.tells !== 'early') return true;
    const bytes = inode.spaceFor(change);
    return bytes === 0 || this.usedBytes() + bytes <= this.space.capacityBytes;
  }

  /** Whether a disk that tells late is too full for a flush. */
  get isOverfull(): boolean {
    return this.space?.tells === 'late' && this.usedBytes() > this.space.capacityBytes;
  }

  /** What a file that is changed now gets as its time. */
  get fileTimeMs(): number {
    const stepped = alignDown(Math.floor(this.queue.nowMs), FILE_CLOCK_STEP_MS);
    return EPOCH_SECONDS * 1000 + stepped;
  }

  latencyMs(): number {
    return (this.random.below(1024) / 1024) * this.#options.latencyMs;
  }

  /** Some length between 1 and this; mostly all of it. */
  shorten(lengthBytes: number): number {
    if (lengthBytes < 2 || this.random.chance(0.8)) return lengthBytes;
    return 1 + this.random.below(lengthBytes);
  }

  /** The same for a copy to `position`: the kernel copies pages and blocks, so it stops at the end of a sector. */
  shortenCopy(position: number, lengthBytes: number): number {
    const end = alignDown(position + this.shorten(lengthBytes), SECTOR_BYTES);
    return end > position ? Math.min(end - position, lengthBytes) : lengthBytes;
  }

  /** Whether a try* may go ahead now; a fault that waits for the operation is left to the promise form. */
  mayTry(kind: OperationKind, path: string): boolean {
    if (this.random.chance(this.#options.refuseProbability)) return false;
    if (this.#faults.some((fault) => matches(fault, kind, path))) return false;
    const boot = this.boot;
    this.#announce(kind, path);
    return this.boot === boot;
  }

  /** One operation: takes a while, then does `action`, unless a fault strikes or the power goes before. */
  async perform<T>(
    operation: { kind: OperationKind; path: string; offset?: number; boot: number },
    action: () => T,
    pending?: Pending,
  ): Promise<T> {
    const { kind, path, boot } = operation;
    if (boot === this.boot) this.#announce(kind, path);
    if (boot !== this.boot) throw powerLost(path);
    const errno = this.#strike(kind, path);
    const result = deferred<T>();
    if (pending) this.#pending.add(pending);
    const timer = this.queue.schedule(this.latencyMs(), () => {
      this.#cancels.delete(cancel);
      if (pending) this.#pending.delete(pending);
      try {
        if (errno !== undefined) throw errnoError(errno, undefined, { path, offset: operation.offset ?? 0 });
        result.resolve(action());
      } catch (error) {
        // A request that failed may have reached the disk all the same.
        if (errno !== undefined && pending && this.random.chance(0.5))
          pending.inode.change(pending.change, this.fileTimeMs);
        result.reject(error);
      }
    });
    const cancel = (): void => {
      timer.cancel();
      result.reject(powerLost(path));
    };
    this.#cancels.add(cancel);
    return result.promise;
  }

  /** The changes that are under way, by inode. */
  inFlight(): Map<SimulatedInode, Change[]> {
    const inFlight = new Map<SimulatedInode, Change[]>();
    for (const { inode, change } of this.#pending) {
      const list = inFlight.get(inode);
      if (list) list.push(change);
      else inFlight.set(inode, [change]);
    }
    return inFlight;
  }

  /** Ends this boot; answers the changes that were under way. */
  cutPower(): Map<SimulatedInode, Change[]> {
    this.boot++;
    const inFlight = this.inFlight();
    this.#pending.clear();
    for (const cancel of this.#cancels) cancel();
    this.#cancels.clear();
    return inFlight;
  }

  #announce(kind: OperationKind, path: string): void {
    const index = this.operationCount++;
    this.#options.onOperation?.({ kind, path, index });
  }

  #strike(kind: OperationKind, path: string): string | undefined {
    for (const fault of [...this.#faults]) {
      if (!matches(fault, kind, path)) continue;
      if (fault.toPass-- > 0) continue;
      if (fault.once) this.#removeFault(fault);
      return fault.errno;
    }
    return undefined;
  }

  #removeFault(fault: Fault & { toPass: number }): void {
    const at = this.#faults.indexOf(fault);
    if (at >= 0) this.#faults.splice(at, 1);
  }
}

function matches(fault: Fault, kind: OperationKind, path: string): boolean {
  return fault.op === kind && (fault.path === undefined || fault.path === path);
}

function powerLost(path: string): BlockError {
  return new BlockError('closed', `The power went while '${path}' was in use`, { path });
}
