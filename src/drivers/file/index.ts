import { assert } from '../../base/assert.js';
import { BlockError, errnoError } from '../../base/error.js';
import type {
  DriverContext,
  DriverDescription,
  DriverInfo,
  DriverInstance,
  IoDriver,
  NodeOptions,
  PermissionSet,
  PreparedChange,
} from '../../block/driver.js';
import { booleanOption, stringOption } from '../../block/options.js';
import { ALL_PERMISSIONS, hasPermission, Permission } from '../../block/permissions.js';
import { type BlockStatus, Flag, hasFlag } from '../../block/request.js';
import type { Host, HostFile } from '../../host/host.js';
import { acquireLocks, lockBytes, releaseLocks } from './locks.js';

interface FileOptions {
  filename: string;
  direct: boolean;
  noFlush: boolean;
  locking: boolean;
  autoReadOnly: boolean;
}

/** An open host file and the locks on it. */
class FileNode implements DriverInstance {
  readonly io: FileIo;
  readonly #host: Host;
  readonly #options: FileOptions;
  #held = new Set<number>();
  #permissions: PermissionSet = { perm: 0, shared: ALL_PERMISSIONS };

  constructor(host: Host, options: FileOptions, file: HostFile) {
    this.#host = host;
    this.#options = options;
    this.io = new FileIo(file);
  }

  get lengthBytes(): number {
    return this.io.lengthBytes;
  }

  get requestAlignmentBytes(): number {
    return this.io.file.traits.alignmentBytes;
  }

  flush(): Promise<void> {
    return this.#options.noFlush ? Promise.resolve() : this.io.file.flush();
  }

  truncate(lengthBytes: number): Promise<void> {
    return this.io.truncate(lengthBytes);
  }

  allocatedBytes(): number {
    return this.io.file.allocatedBytes();
  }

  info(): DriverInfo {
    return {};
  }

  /** New locks are taken now, those no longer needed dropped at commit. */
  async preparePermissions(set: PermissionSet): Promise<PreparedChange> {
    const { file } = this.io;
    if (wantsWrite(set) && !file.writable) {
      // auto-read-only: opened read-only because nobody wrote; now somebody does.
      const reopened = await this.#prepareReopen(true, set);
      return reopened;
    }
    const old = this.#held;
    const wanted = this.#options.locking ? acquireLocks(file, old, set) : new Set<number>();
    return {
      commit: () => {
        releaseLocks(
          file,
          [...old].filter((byte) => !wanted.has(byte)),
        );
        this.#held = wanted;
        this.#permissions = set;
      },
      abort: () =>
        releaseLocks(
          file,
          [...wanted].filter((byte) => !old.has(byte)),
        ),
    };
  }

  prepareReadOnly(readOnly: boolean): Promise<PreparedChange> {
    if (readOnly !== this.io.file.writable) {
      return Promise.resolve({ commit: () => undefined, abort: () => undefined });
    }
    return this.#prepareReopen(!readOnly, this.#permissions);
  }

  /** Opens the file anew; the graph has drained us, so at commit the old one is idle. */
  async #prepareReopen(write: boolean, set: PermissionSet): Promise<PreparedChange> {
    const old = this.io.file;
    const oldLocks = this.#held;
    const file = await this.#host.files.open(old.path, { write, direct: this.#options.direct });
    // The locks of the two descriptions do not exclude each other: those on the new one are taken when the old
    // ones go, at commit, and are the same or fewer; what is new was checked through the old description.
    const probe = this.#options.locking ? tryLocks(old, oldLocks, set, file) : new Set<number>();
    return {
      commit: () => {
        this.io.file = file;
        this.#held = this.#options.locking ? relock(file, set) : new Set();
        this.#permissions = set;
        void old.close();
      },
      abort: () => {
        releaseLocks(
          old,
          [...probe].filter((byte) => !oldLocks.has(byte)),
        );
        void file.close();
      },
    };
  }

  async inactivate(): Promise<void> {
    releaseLocks(this.io.file, this.#held);
    this.#held = new Set();
  }

  async activate(): Promise<void> {
    if (this.#options.locking) this.#held = acquireLocks(this.io.file, new Set(), this.#permissions);
  }

  close(): Promise<void> {
    return this.io.file.close();
  }
}

/** Checks new permissions through the description that holds the old locks. */
function tryLocks(old: HostFile, held: Set<number>, set: PermissionSet, fresh: HostFile): Set<number> {
  try {
    return acquireLocks(old, held, set);
  } catch (error) {
    void fresh.close();
    throw error;
  }
}

function relock(file: HostFile, set: PermissionSet): Set<number> {
  const bytes = lockBytes(set);
  for (const byte of bytes)
    assert(file.lockByteShared(byte), `lock byte ${byte} of '${file.path}' after reopening`);
  return bytes;
}

function wantsWrite({ perm }: PermissionSet): boolean {
  return (
    hasPermission(perm, Permission.write) ||
    hasPermission(perm, Permission.writeUnchanged) ||
    hasPermission(perm, Permission.resize)
  );
}

/** Requests to the file; its size is kept here, since only this node resizes it. */
class FileIo implements IoDriver {
  file: HostFile;
  #lengthBytes: number;
  #canPunch = true;
  #canZero = true;

  constructor(file: HostFile) {
    this.file = file;
    this.#lengthBytes = file.sizeBytes();
  }

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    return this.file.tryRead(offset, buffer);
  }

  read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.file.read(offset, buffer);
  }

  tryWrite(offset: number, buffer: Uint8Array): boolean {
    if (!this.file.tryWrite(offset, buffer)) return false;
    this.#grown(offset + buffer.length);
    return true;
  }

  async write(offset: number, buffer: Uint8Array): Promise<void> {
    await this.file.write(offset, buffer);
    this.#grown(offset + buffer.length);
  }

  async writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    const end = offset + lengthBytes;
    // Space past the end reads as zeroes once the file is longer.
    if (end > this.#lengthBytes) await this.truncate(end);
    const mayUnmap = hasFlag(flags, Flag.mayUnmap);
    if (mayUnmap && (await this.#attempt('punch', () => this.file.punchHole(offset, lengthBytes)))) return;
    if (await this.#attempt('zero', () => this.file.zeroRange(offset, lengthBytes))) return;
    throw errnoError('ENOTSUP', undefined, { path: this.file.path });
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    await this.#attempt('punch', () => this.file.punchHole(offset, lengthBytes));
  }

  /** False when the file system cannot do it, which is then not asked again. */
  async #attempt(what: 'punch' | 'zero', request: () => Promise<void>): Promise<boolean> {
    if (what === 'punch' ? !this.#canPunch : !this.#canZero) return false;
    try {
      await request();
      return true;
    } catch (error) {
      if (!(error instanceof BlockError) || error.kind !== 'unsupported') throw error;
      if (what === 'punch') this.#canPunch = false;
      else this.#canZero = false;
      return false;
    }
  }

  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    const extent = this.file.extentAt(offset, lengthBytes);
    const zero = extent.isHole;
    return { lengthBytes: extent.lengthBytes, allocated: true, zero, data: !zero, hostOffset: offset };
  }

  async truncate(lengthBytes: number): Promise<void> {
    await this.file.truncate(lengthBytes);
    this.#lengthBytes = lengthBytes;
  }

  startWriteback(offset: number, lengthBytes: number): void {
    this.file.startWriteback(offset, lengthBytes);
  }

  async copyFrom(
    source: IoDriver,
    sourceOffset: number,
    offset: number,
    lengthBytes: number,
  ): Promise<number> {
    if (!(source instanceof FileIo)) throw errnoError('ENOTSUP');
    let copied = this.file.tryCopyFrom(source.file, sourceOffset, offset, lengthBytes);
    if (copied < 0) copied = await this.file.copyFrom(source.file, sourceOffset, offset, lengthBytes);
    this.#grown(offset + copied);
    return copied;
  }

  #grown(end: number): void {
    if (end > this.#lengthBytes) this.#lengthBytes = end;
  }
}

function parseOptions(options: NodeOptions): FileOptions {
  const filename = stringOption(options, 'filename');
  if (filename === undefined) throw new BlockError('invalid', "Parameter 'filename' is missing");
  const cache = options['cache'];
  const flags = typeof cache === 'object' && cache !== null && !Array.isArray(cache) ? cache : {};
  const direct = booleanOption(flags, 'direct') ?? false;
  const aio = stringOption(options, 'aio') ?? 'threads';
  if (aio === 'native' && !direct) {
    throw new BlockError(
      'invalid',
      'aio=native was specified, but it requires cache.direct=on, which was not specified.',
    );
  }
  if (aio !== 'threads')
    throw new BlockError('unsupported', `aio=${aio} is not supported by livedisk; use 'threads'`);
  return {
    filename,
    direct,
    noFlush: booleanOption(flags, 'no-flush') ?? false,
    locking: stringOption(options, 'locking') !== 'off' && booleanOption(options, 'force-share') !== true,
    autoReadOnly: booleanOption(options, 'auto-read-only') ?? false,
  };
}

async function openFile(context: DriverContext, options: FileOptions): Promise<HostFile> {
  const { host, readOnly } = context;
  const found = await host.files.stat(options.filename);
  if (found?.isDirectory) {
    throw new BlockError('invalid', `Could not open '${options.filename}': Is a directory`, {
      path: options.filename,
    });
  }
  const { direct } = options;
  try {
    return await host.files.open(options.filename, { write: !readOnly, direct });
  } catch (error) {
    const retry =
      options.autoReadOnly && !readOnly && error instanceof BlockError && error.kind === 'permission';
    if (!retry) throw error;
    return host.files.open(options.filename, { write: false, direct });
  }
}

/** Regular files and block devices of the host. */
export const fileDriver: DriverDescription = {
  name: 'file',
  kind: 'protocol',
  children: [],
  optionKeys: ['filename', 'locking', 'aio'],

  async open(context, nodeOptions) {
    const options = parseOptions(nodeOptions);
    return new FileNode(context.host, options, await openFile(context, options));
  },

  async createFile(host, filename, sizeBytes) {
    const file = await host.files.open(filename, { write: true, create: true, truncate: true });
    try {
      await file.truncate(sizeBytes);
    } finally {
      await file.close();
    }
  },

  filename: (options) => stringOption(options, 'filename') ?? '',
};
