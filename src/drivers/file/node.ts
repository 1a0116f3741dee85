import { assert } from '../../base/assert.js';
import type {
  DiscardCounts,
  DriverInfo,
  DriverInstance,
  PermissionSet,
  PreparedChange,
  Reopening,
} from '../../block/driver.js';
import { ALL_PERMISSIONS, hasPermission, Permission } from '../../block/permissions.js';
import type { Host, HostFile } from '../../host/host.js';
import { FileIo } from './io.js';
import { acquireLocks, lockBytes, releaseLocks } from './locks.js';
import type { FILE_OPTIONS } from '../../schema/blockdev-options.js';
import { checkFileSettings, type FileSettings } from './options.js';

const NOTHING: PreparedChange = { commit: () => undefined, abort: () => undefined };

/** An open host file and the locks on it. */
export class FileNode implements DriverInstance {
  readonly io: FileIo;
  readonly #host: Host;
  #settings: FileSettings;
  /** What the transaction that is being prepared will make of them. */
  #newSettings: FileSettings | undefined;
  /** Lock bytes that io.file has now; during a transaction those of the old and of the new permissions. */
  #locked: ReadonlySet<number> = new Set();
  /** Opened by the transaction that is being prepared. */
  #reopening: HostFile | undefined;
  #isGivenUp = false;
  /** The locks that a file came with from another process, as long as that one may have it still: none of them is let go. */
  #pinned: ReadonlySet<number> | undefined;
  /** What its users ask by now. */
  #permissions: PermissionSet | undefined;

  /** `locked`: what a file that was passed has locks on. */
  constructor(host: Host, settings: FileSettings, file: HostFile, locked?: readonly number[]) {
    this.#host = host;
    this.#settings = settings;
    this.io = new FileIo(file, settings.cache['no-flush']);
    if (!locked) return;
    this.#locked = new Set(locked);
    this.#pinned = this.#locked;
  }

  /** The open file with its locks, for another process. */
  get passed(): DriverInstance['passed'] & object {
    const { path, writable, descriptor: fd, isDirect: direct = false } = this.io.file;
    return { fd, path, writable, direct, locked: [...this.#locked] };
  }

  get discards(): DiscardCounts {
    return this.io.discards;
  }

  get hasLostWrites(): boolean {
    return this.io.file.hasLostWrites;
  }

  /** Nobody else has the open file any more. */
  own(): void {
    this.#pinned = undefined;
    if (this.#permissions) this.#keepOnly(this.#lockBytesOf(this.#permissions));
  }

  #wanted(): FileSettings {
    return this.#newSettings ?? this.#settings;
  }

  #isAutoReadOnly(): boolean {
    return this.#wanted()['auto-read-only'] ?? false;
  }

  /** 'auto' locks where OFD locks exist, which is wherever livedisk runs. */
  #isLocking(): boolean {
    return this.#settings.locking !== 'off';
  }

  get lengthBytes(): number {
    return this.io.lengthBytes;
  }

  get requestAlignmentBytes(): number {
    return this.io.file.traits.alignmentBytes;
  }

  get hasFixedLength(): boolean {
    return this.io.file.traits.isBlockDevice;
  }

  /** A device holds what it held, whatever is made on it. */
  get readsZeroWhenNew(): boolean {
    return !this.io.file.traits.isBlockDevice;
  }

  flush(): Promise<void> {
    return this.io.flush();
  }

  /** From here on the descriptor and its locks are nobody's business: they go when the kernel lets go of them. */
  cancelInFlight(): void {
    this.#isGivenUp = true;
    this.io.file.abandon();
  }

  truncate(lengthBytes: number): Promise<void> {
    return this.io.truncate(lengthBytes);
  }

  allocatedBytes(): number {
    return this.#isGivenUp ? 0 : this.io.file.allocatedBytes();
  }

  info(): DriverInfo {
    return {};
  }

  /** New locks are taken now, those no longer needed dropped at commit. Errors: kind busy. */
  async preparePermissions(set: PermissionSet, isActivation: boolean): Promise<PreparedChange> {
    if (this.#isGivenUp) return NOTHING;
    const reopen = await this.#prepareAccess(wantsWrite(set), isActivation);
    const before = this.#locked;
    try {
      this.#locked = this.#acquire(set);
    } catch (error) {
      reopen.abort();
      throw error;
    }
    return {
      commit: () => {
        reopen.commit();
        this.#permissions = set;
        this.#keepOnly(this.#lockBytesOf(set));
      },
      abort: () => {
        this.#keepOnly(before);
        reopen.abort();
      },
    };
  }

  /** With auto-read-only the file is open for writing only while somebody may write. */
  #prepareAccess(write: boolean, isActivation: boolean): Promise<PreparedChange> {
    const { writable } = this.#reopening ?? this.io.file;
    // It came as its users will need it.
    if (this.#pinned && (writable || !write)) return Promise.resolve(NOTHING);
    if (write) return writable ? Promise.resolve(NOTHING) : this.#prepareReopen(true, isActivation);
    if (!writable || !this.#isAutoReadOnly()) return Promise.resolve(NOTHING);
    // Whoever wants less has it: of a file that is not ours to read the descriptor stays as it is.
    return this.#prepareReopen(false).catch(() => NOTHING);
  }

  prepareReadOnly(readOnly: boolean): Promise<PreparedChange> {
    if (this.#isGivenUp) return Promise.resolve(NOTHING);
    const isSo = readOnly !== this.io.file.writable;
    return isSo || (!readOnly && this.#isAutoReadOnly())
      ? Promise.resolve(NOTHING)
      : this.#prepareReopen(!readOnly);
  }

  /** Cache modes and auto-read-only; what has the file open for writing by that goes on to have it so. */
  async prepareReopen({ settings, readOnly }: Reopening<typeof FILE_OPTIONS>): Promise<PreparedChange> {
    if (this.#isGivenUp) return NOTHING;
    checkFileSettings('file', settings);
    const { file } = this.io;
    this.#newSettings = settings;
    const write = !readOnly && (settings['auto-read-only'] !== true || file.writable);
    const isAlike = write === file.writable && settings.cache.direct === this.#settings.cache.direct;
    const forget = (): void => void (this.#newSettings = undefined);
    try {
      const reopen = isAlike ? NOTHING : await this.#prepareReopen(write);
      return {
        commit: () => {
          this.#settings = settings;
          this.io.noFlush = settings.cache['no-flush'];
          forget();
          reopen.commit();
        },
        abort: () => {
          forget();
          reopen.abort();
        },
      };
    } catch (error) {
      forget();
      throw error;
    }
  }

  /**
   * Opens the same file anew, whatever lies at its path by now: what is known of it must stay true. Only what becomes ours
   * is taken from the path, since all of it is read anew. Locks stay on the old descriptor until commit, where they move
   * without a gap.
   */
  async #prepareReopen(write: boolean, isActivation = false): Promise<PreparedChange> {
    const before = this.#reopening;
    const old = this.io.file;
    const file = await this.#open(write, isActivation);
    this.#reopening = file;
    return {
      commit: () => {
        this.#reopening = undefined;
        this.#swap(old, file);
      },
      abort: () => {
        this.#reopening = before;
        closeQuietly(file);
      },
    };
  }

  #open(write: boolean, byPath: boolean): Promise<HostFile> {
    const again = this.#reopening ?? this.io.file;
    const options = { write, direct: this.#wanted().cache.direct };
    return this.#host.files.open(again.path, byPath ? options : { ...options, again });
  }

  #swap(old: HostFile, file: HostFile): void {
    // Shared locks do not exclude each other: first both descriptors have them, then only the new one.
    for (const byte of this.#locked)
      assert(file.lockByteShared(byte), () => `lock byte ${byte} of '${file.path}' after reopening`);
    this.io.reopened(file);
    releaseLocks(old, this.#locked);
    closeQuietly(old);
  }

  #lockBytesOf(set: PermissionSet): Set<number> {
    if (!this.#isLocking()) return new Set();
    return lockBytes(this.#lockable(set));
  }

  #acquire(set: PermissionSet): ReadonlySet<number> {
    if (!this.#isLocking()) return this.#locked;
    return acquireLocks(this.io.file, this.#locked, this.#lockable(set));
  }

  /** force-share: whatever we ask of other nodes, other processes may do as they like. */
  #lockable({ perm, shared }: PermissionSet): PermissionSet {
    return { perm, shared: this.#settings['force-share'] ? ALL_PERMISSIONS : shared };
  }

  #keepOnly(wanted: ReadonlySet<number>): void {
    const bytes = this.#pinned ? new Set([...wanted, ...this.#pinned]) : wanted;
    releaseLocks(
      this.io.file,
      [...this.#locked].filter((byte) => !bytes.has(byte)),
    );
    this.#locked = bytes;
  }

  /** The locks are ours, and what is read from here on is what stays: also of a file put in the place of the old. */
  async prepareActivation(): Promise<PreparedChange> {
    const abort = this.io.lookAgain(this.#reopening ?? this.io.file);
    return { commit: () => undefined, abort };
  }

  close(): Promise<void> {
    return this.io.file.close();
  }
}

function wantsWrite({ perm }: PermissionSet): boolean {
  return (
    hasPermission(perm, Permission.write) ||
    hasPermission(perm, Permission.writeUnchanged) ||
    hasPermission(perm, Permission.resize)
  );
}

/** Of a descriptor through which nothing was written that another does not flush. */
function closeQuietly(file: HostFile): void {
  file.close().catch(() => undefined);
}
