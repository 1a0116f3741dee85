import { errnoError } from '../../src/base/error.js';
import type { IoVector } from '../../src/base/io-vector.js';
import type { FileTraits, Host, HostExtent, HostFile, OpenFileOptions } from '../../src/host/host.js';

/** What a host can be made unable to do. 'sync': every try* refuses. */
export type Lack = 'sync' | 'punchHole' | 'zeroRange' | 'allocate' | 'copyFrom';

/** The same host, whose files lack what file systems may lack. */
export function hostWithout(host: Host, ...lacks: Lack[]): Host {
  const lacking = new Set(lacks);
  const { files } = host;
  return {
    ...host,
    files: {
      open: async (path: string, { again, ...options }: OpenFileOptions) => {
        const file = await files.open(path, { ...options, ...(again && { again: unwrap(again) }) });
        return new LackingFile(file, lacking);
      },
      descriptorSets: files.descriptorSets,
      stat: (path) => files.stat(path),
      unlink: (path) => files.unlink(path),
      room: (path) => files.room(path),
      link: (path, newPath) => files.link(path, newPath),
      syncDirectory: (path) => files.syncDirectory(path),
      list: (path) => files.list(path),
      mkdir: (path, options) => files.mkdir(path, options),
      rename: (from, to) => files.rename(from, to),
      buffer: (lengthBytes) => files.buffer(lengthBytes),
    },
  };
}

class LackingFile implements HostFile {
  readonly #file: HostFile;
  readonly #lacking: ReadonlySet<Lack>;

  constructor(file: HostFile, lacking: ReadonlySet<Lack>) {
    this.#file = file;
    this.#lacking = lacking;
  }

  get path(): string {
    return this.#file.path;
  }
  get writable(): boolean {
    return this.#file.writable;
  }
  get traits(): FileTraits {
    return this.#file.traits;
  }
  #isSync(): boolean {
    return !this.#lacking.has('sync');
  }
  #need(ability: Lack): void {
    if (this.#lacking.has(ability)) throw errnoError('EOPNOTSUPP', undefined, { path: this.path });
  }

  abandon(): void {
    this.#file.abandon();
  }
  sizeBytes(): number {
    return this.#file.sizeBytes();
  }
  allocatedBytes(): number {
    return this.#file.allocatedBytes();
  }
  tryRead(position: number, memory: IoVector, from: number, lengthBytes: number): boolean {
    return this.#isSync() && this.#file.tryRead(position, memory, from, lengthBytes);
  }
  read(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    return this.#file.read(position, memory, from, lengthBytes);
  }
  tryWrite(position: number, memory: IoVector, from: number, lengthBytes: number): boolean {
    return this.#isSync() && this.#file.tryWrite(position, memory, from, lengthBytes);
  }
  write(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    return this.#file.write(position, memory, from, lengthBytes);
  }
  writeDurable(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    return this.#file.writeDurable(position, memory, from, lengthBytes);
  }
  flush(): Promise<void> {
    return this.#file.flush();
  }
  get hasLostWrites(): boolean {
    return this.#file.hasLostWrites;
  }
  forbidCopyOnWrite(): void {
    this.#file.forbidCopyOnWrite();
  }
  async punchHole(position: number, lengthBytes: number): Promise<void> {
    this.#need('punchHole');
    await this.#file.punchHole(position, lengthBytes);
  }
  async zeroRange(position: number, lengthBytes: number): Promise<void> {
    this.#need('zeroRange');
    await this.#file.zeroRange(position, lengthBytes);
  }
  async allocate(position: number, lengthBytes: number): Promise<void> {
    this.#need('allocate');
    await this.#file.allocate(position, lengthBytes);
  }
  tryAllocate(position: number, lengthBytes: number): boolean {
    return this.#isSync() && !this.#lacking.has('allocate') && this.#file.tryAllocate(position, lengthBytes);
  }
  tryTruncate(sizeBytes: number): boolean {
    return this.#isSync() && this.#file.tryTruncate(sizeBytes);
  }
  truncate(sizeBytes: number): Promise<void> {
    return this.#file.truncate(sizeBytes);
  }
  extentAt(position: number, lengthBytes: number): HostExtent | Promise<HostExtent> {
    return this.#file.extentAt(position, lengthBytes);
  }
  async copyFrom(
    source: HostFile,
    sourcePosition: number,
    position: number,
    lengthBytes: number,
  ): Promise<number> {
    this.#need('copyFrom');
    return this.#file.copyFrom(unwrap(source), sourcePosition, position, lengthBytes);
  }
  tryCopyFrom(source: HostFile, sourcePosition: number, position: number, lengthBytes: number): number {
    if (!this.#isSync() || this.#lacking.has('copyFrom')) return -1;
    return this.#file.tryCopyFrom(unwrap(source), sourcePosition, position, lengthBytes);
  }
  startWriteback(position: number, lengthBytes: number): void {
    this.#file.startWriteback(position, lengthBytes);
  }
  lockByteShared(byteOffset: number): boolean {
    return this.#file.lockByteShared(byteOffset);
  }
  unlockByte(byteOffset: number): void {
    this.#file.unlockByte(byteOffset);
  }
  isByteLockedByOther(byteOffset: number): boolean {
    return this.#file.isByteLockedByOther(byteOffset);
  }
  close(): Promise<void> {
    return this.#file.close();
  }

  static inner(file: LackingFile): HostFile {
    return file.#file;
  }
}

function unwrap(file: HostFile): HostFile {
  return file instanceof LackingFile ? LackingFile.inner(file) : file;
}
