import { alignUp } from '../../base/align.js';
import { BlockError, errnoError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import type { DiscardCounts, IoDriver } from '../../block/driver.js';
import { RangeLock } from '../../block/range-lock.js';
import { type BlockStatus, Flag, hasFlag, IoRequest } from '../../block/request.js';
import type { HostExtent, HostFile } from '../../host/host.js';

/** A node's size is a multiple of this: the last bytes of a file that ends elsewhere read as zeroes. */
export const SECTOR_BYTES = 512;

/** What a file system may be unable to do; asked once, then remembered. */
type Ability = 'punchHole' | 'zeroRange' | 'allocate';

/**
 * Requests to a host file. Its size is kept here, as the one who has the file open for writing; `reopened` and
 * `lookAgain` ask.
 */
export class FileIo implements IoDriver {
  #file: HostFile;
  #sizeBytes = 0;
  /** #sizeBytes in whole sectors: it is asked for with each request. */
  #lengthBytes = 0;
  /**
   * Writes that make the file longer hold it shared, truncates exclusively: a truncate to a length decided before
   * such a write would cut off what it wrote. Its one byte stands for the end of the file.
   */
  readonly #growth = new RangeLock();
  readonly #unable = new Set<Ability>();
  /** A stretch known to be data. Asking the file system anew may take it a walk over all pages of the file. */
  #knownData = { start: 0, end: 0 };
  /** What was to be durable is lost, whatever is written later, also by another descriptor. */
  #loss: { readonly error: unknown } | undefined;
  readonly discards: DiscardCounts = { done: 0, doneBytes: 0, failed: 0 };
  /** Flushes are not sent on. */
  noFlush: boolean;

  constructor(file: HostFile, noFlush: boolean) {
    this.#file = file;
    this.noFlush = noFlush;
    this.#setSize(file.sizeBytes());
  }

  get file(): HostFile {
    return this.#file;
  }

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  #setSize(sizeBytes: number): void {
    this.#sizeBytes = sizeBytes;
    this.#lengthBytes = alignUp(sizeBytes, SECTOR_BYTES);
  }

  /** The same file by another descriptor. It is asked now: while others prepared, a parent may have cut it. */
  reopened(file: HostFile): void {
    this.#file = file;
    this.#grown(file.sizeBytes());
  }

  /** Another process may have changed the file; from here on requests go to `file`. The answer takes that back. */
  lookAgain(file: HostFile): () => void {
    const before = { file: this.#file, sizeBytes: this.#sizeBytes };
    this.#forgetData(0, Infinity);
    this.#file = file;
    this.#setSize(file.sizeBytes());
    return () => {
      this.#forgetData(0, Infinity);
      this.#file = before.file;
      this.#setSize(before.sizeBytes);
    };
  }

  tryRead(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    const { taker } = request;
    if (taker && lengthBytes === request.lengthBytes && this.#isAllData(offset, lengthBytes))
      if (taker.takeFrom(this.#file, offset, lengthBytes)) return true;
    return this.#file.tryRead(offset, request, from, lengthBytes);
  }

  read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    return this.#file.read(offset, request, from, lengthBytes);
  }

  tryWrite(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    const end = offset + lengthBytes;
    if (end > this.#sizeBytes && !this.#growth.isFree) return false;
    if (!this.#file.tryWrite(offset, request, from, lengthBytes)) return false;
    this.#grown(end);
    return true;
  }

  /** In memory a flush costs nothing, nor where none is sent on. */
  get honoursFua(): boolean {
    return !this.noFlush && !this.#file.traits.inMemory;
  }

  write(request: IoRequest, from: number, lengthBytes: number, offset: number, flags: number): Promise<void> {
    const isDurable = hasFlag(flags, Flag.fua) && this.honoursFua;
    const write = (): Promise<void> =>
      isDurable
        ? this.#writeDurable(request, from, lengthBytes, offset)
        : this.#file.write(offset, request, from, lengthBytes);
    if (offset + lengthBytes <= this.#sizeBytes) return write();
    const { generation } = request;
    return this.#growing(offset, lengthBytes, () => {
      request.assertIs(generation);
      return write();
    });
  }

  async #writeDurable(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    if (this.#loss) throw this.#loss.error;
    await this.#watched((file) => file.writeDurable(offset, request, from, lengthBytes));
  }

  async flush(): Promise<void> {
    if (this.noFlush) return;
    if (this.#loss) throw this.#loss.error;
    await this.#watched((file) => file.flush());
  }

  /** Reopening the file must not make it look healthy again. */
  async #watched(settle: (file: HostFile) => Promise<void>): Promise<void> {
    const file = this.#file;
    try {
      await settle(file);
    } catch (error) {
      if (file.hasLostWrites) this.#loss ??= { error };
      throw error;
    }
  }

  /** Runs a request that may end beyond the end of the file. */
  async #growing(offset: number, lengthBytes: number, request: () => Promise<void>): Promise<void> {
    const release = await this.#growth.lockShared(0, 1);
    try {
      await request();
      this.#grown(offset + lengthBytes);
    } catch (error) {
      // Part of it may have been done.
      this.#grown(this.#file.sizeBytes());
      throw error;
    } finally {
      release();
    }
  }

  async writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    const end = offset + lengthBytes;
    const inside = Math.min(end, this.#sizeBytes) - offset;
    if (inside > 0 && !(await this.#zeroInside(offset, inside, flags))) {
      throw errnoError('ENOTSUP', undefined, { path: this.#file.path });
    }
    // What a longer file gains reads as zeroes.
    if (end > this.#sizeBytes) await this.#extend(end);
  }

  /** Without mayUnmap the space must stay reserved, so that later writes cannot run out of it. */
  async #zeroInside(offset: number, lengthBytes: number, flags: number): Promise<boolean> {
    const mayUnmap = hasFlag(flags, Flag.mayUnmap);
    if (mayUnmap && (await this.#attempt('punchHole', offset, lengthBytes))) return true;
    if (await this.#attempt('zeroRange', offset, lengthBytes)) return true;
    if (this.#unable.has('allocate') || !(await this.#attempt('punchHole', offset, lengthBytes)))
      return false;
    // Where blocks cannot be reserved, the hole is zero all the same.
    await this.#attempt('allocate', offset, lengthBytes);
    return true;
  }

  tryAllocate(offset: number, lengthBytes: number): boolean {
    const end = offset + lengthBytes;
    if (this.#file.traits.isBlockDevice) return end <= this.#sizeBytes;
    if (this.#unable.has('allocate') || (end > this.#sizeBytes && !this.#growth.isFree)) return false;
    if (!this.#file.tryAllocate(offset, lengthBytes)) return false;
    this.#grown(end);
    return true;
  }

  async allocate(offset: number, lengthBytes: number): Promise<void> {
    if (this.#file.traits.isBlockDevice) return this.#checkDeviceSpace(offset + lengthBytes);
    await this.#growing(offset, 0, async () => {
      if (await this.#attempt('allocate', offset, lengthBytes)) this.#grown(offset + lengthBytes);
    });
    if (this.#unable.has('allocate')) await this.#fillHoles(offset, offset + lengthBytes);
  }

  /** File systems that cannot reserve blocks find them when data is written. */
  async #fillHoles(offset: number, end: number): Promise<void> {
    for (let at = offset; at < end;) {
      const { isHole, lengthBytes } = await this.#file.extentAt(at, end - at);
      const length = isHole ? Math.min(lengthBytes, MiB) : lengthBytes;
      if (isHole) await this.write(IoRequest.ofBuffer(Buffer.alloc(length)), 0, length, at, Flag.none);
      at += length;
    }
  }

  tryExtend(sizeBytes: number): boolean {
    if (sizeBytes <= this.#sizeBytes) return true;
    if (this.#file.traits.isBlockDevice || !this.#growth.isFree) return false;
    if (!this.#file.tryTruncate(sizeBytes)) return false;
    this.#grown(sizeBytes);
    return true;
  }

  async extend(sizeBytes: number): Promise<void> {
    if (this.#file.traits.isBlockDevice) this.#checkDeviceSpace(sizeBytes);
    else await this.#extend(sizeBytes);
  }

  #checkDeviceSpace(end: number): void {
    if (end > this.#sizeBytes) throw errnoError('ENOSPC', undefined, { path: this.#file.path });
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    let isDone = false;
    try {
      isDone = await this.#attempt('punchHole', offset, lengthBytes);
    } finally {
      if (isDone) {
        this.discards.done++;
        this.discards.doneBytes += lengthBytes;
      } else this.discards.failed++;
    }
  }

  /** False when the file system cannot do it, which is then not asked again. */
  async #attempt(what: Ability, offset: number, lengthBytes: number): Promise<boolean> {
    if (this.#unable.has(what)) return false;
    if (what !== 'allocate') this.#forgetData(offset, lengthBytes);
    try {
      await this.#file[what](offset, lengthBytes);
      return true;
    } catch (error) {
      if (!(error instanceof BlockError) || error.kind !== 'unsupported') throw error;
      this.#unable.add(what);
      return false;
    }
  }

  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    const found = this.#extentAt(offset, lengthBytes);
    const extent = found instanceof Promise ? await found : found;
    const isData = !extent.isHole;
    // What ends within a unit of O_DIRECT ends with it.
    const unit = this.#file.traits.alignmentBytes;
    const length = Math.min(lengthBytes, alignUp(offset + extent.lengthBytes, unit) - offset);
    return { lengthBytes: length, allocated: true, zero: !isData, data: isData, hostOffset: offset };
  }

  #extentAt(offset: number, lengthBytes: number): HostExtent | Promise<HostExtent> {
    if (offset >= this.#sizeBytes) return { isHole: true, lengthBytes };
    const known = this.#knownData;
    if (offset >= known.start && offset < known.end)
      return { isHole: false, lengthBytes: Math.min(lengthBytes, known.end - offset) };
    const found = this.#file.extentAt(offset, Math.max(lengthBytes, this.#sizeBytes - offset));
    // What was a while ago is not kept: it may be a hole now.
    if (found instanceof Promise) return found.then((extent) => cut(extent, lengthBytes));
    if (!found.isHole) this.#knownData = { start: offset, end: offset + found.lengthBytes };
    return cut(found, lengthBytes);
  }

  #isAllData(offset: number, lengthBytes: number): boolean {
    if (offset + lengthBytes > this.#sizeBytes) return false;
    const extent = this.#extentAt(offset, lengthBytes);
    return !(extent instanceof Promise) && !extent.isHole && extent.lengthBytes >= lengthBytes;
  }

  /** Before a range may turn into a hole. */
  #forgetData(offset: number, lengthBytes: number): void {
    const { start, end } = this.#knownData;
    if (offset < end && offset + lengthBytes > start) this.#knownData = { start: 0, end: 0 };
  }

  async truncate(sizeBytes: number): Promise<void> {
    if (this.#file.traits.isBlockDevice) return this.#checkDeviceSize(sizeBytes);
    const release = await this.#growth.lockExclusive(0, 1);
    this.#forgetData(0, Infinity);
    try {
      await this.#file.truncate(sizeBytes);
      this.#setSize(sizeBytes);
    } finally {
      release();
    }
  }

  async #extend(sizeBytes: number): Promise<void> {
    const release = await this.#growth.lockExclusive(0, 1);
    try {
      if (sizeBytes <= this.#sizeBytes) return;
      await this.#file.truncate(sizeBytes);
      this.#setSize(sizeBytes);
    } finally {
      release();
    }
  }

  #checkDeviceSize(sizeBytes: number): void {
    if (sizeBytes <= this.#sizeBytes) return;
    throw new BlockError('invalid', 'Cannot grow device files', { path: this.#file.path });
  }

  startWriteback(offset: number, lengthBytes: number): void {
    this.#file.startWriteback(offset, lengthBytes);
  }

  async copyFrom(
    source: IoDriver,
    sourceOffset: number,
    offset: number,
    lengthBytes: number,
  ): Promise<number> {
    if (!(source instanceof FileIo)) throw errnoError('ENOTSUP');
    const grows = offset + lengthBytes > this.#sizeBytes;
    const copied =
      grows && !this.#growth.isFree
        ? -1
        : this.#file.tryCopyFrom(source.file, sourceOffset, offset, lengthBytes);
    if (copied >= 0) {
      this.#grown(offset + copied);
      return copied;
    }
    if (!grows) return this.#file.copyFrom(source.file, sourceOffset, offset, lengthBytes);
    let done = 0;
    await this.#growing(offset, 0, async () => {
      done = await this.#file.copyFrom(source.file, sourceOffset, offset, lengthBytes);
      this.#grown(offset + done);
    });
    return done;
  }

  #grown(end: number): void {
    if (end > this.#sizeBytes) this.#setSize(end);
  }
}

function cut({ isHole, lengthBytes }: HostExtent, mostBytes: number): HostExtent {
  return { isHole, lengthBytes: Math.min(mostBytes, lengthBytes) };
}
