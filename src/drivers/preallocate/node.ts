import { alignUp } from '../../base/align.js';
import { AsyncMutex } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type {
  ChildIo,
  DriverInstance,
  PermissionSet,
  PreparedChange,
  PreparedReopening,
  Reopening,
  Settings,
} from '../../block/driver.js';
import { hasPermission, Permission } from '../../block/permissions.js';
import type { IoRequest } from '../../block/request.js';
import type { PassedMemory } from '../../host/passing.js';
import type { PREALLOCATE_OPTIONS } from '../../schema/blockdev-options.js';
import { PassThrough } from '../pass-through/pass-through.js';

type PreallocateSettings = Settings<typeof PREALLOCATE_OPTIONS>;

/** Of the node, besides its options. */
interface Memory {
  dataEnd?: number;
}

const SECTOR_BYTES = 512;

/**
 * When its users write behind the file's end, it makes the file longer than they need, with space of its own; what they
 * did not use is given back when nobody may write any more. Its users see the end of what they wrote.
 */
export class PreallocateNode extends PassThrough implements DriverInstance {
  readonly #child: () => ChildIo;
  #alignBytes = 0;
  #aheadBytes = 0;
  /** Its users may make it longer, and nobody else. */
  #mayGrow = false;
  /** Where what was written ends; undefined: at the file's end. */
  #dataEnd: number | undefined;
  readonly #growing = new AsyncMutex();

  /** `memory`: of another process's. Errors: invalid. */
  constructor(child: () => ChildIo, settings: PreallocateSettings, memory?: PassedMemory) {
    super(child);
    this.#child = child;
    this.#dataEnd = (memory?.data as Memory | undefined)?.dataEnd;
    this.#configure(checked(settings));
  }

  get memory(): PassedMemory {
    const data: Memory = given({ dataEnd: this.#dataEnd });
    return { data, parts: [] };
  }

  #configure(settings: PreallocateSettings): void {
    this.#alignBytes = Math.max(1, settings['prealloc-align']);
    this.#aheadBytes = settings['prealloc-size'];
  }

  override get lengthBytes(): number {
    return this.#dataEnd ?? super.lengthBytes;
  }

  override get hasSpaceAhead(): boolean {
    return this.#aheadBytes > 0;
  }

  override tryWrite(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    const end = offset + lengthBytes;
    if (this.#needsSpace(end) || !super.tryWrite(request, from, lengthBytes, offset)) return false;
    this.#reached(end);
    return true;
  }

  override async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    const { generation } = request;
    await this.#makeSpace(offset + lengthBytes);
    request.assertIs(generation);
    await super.write(request, from, lengthBytes, offset, flags);
    this.#reached(offset + lengthBytes);
  }

  override async writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    await this.#makeSpace(offset + lengthBytes);
    await super.writeZeroes(offset, lengthBytes, flags);
    this.#reached(offset + lengthBytes);
  }

  override async allocate(offset: number, lengthBytes: number): Promise<void> {
    await this.#makeSpace(offset + lengthBytes);
    await super.allocate(offset, lengthBytes);
    this.#reached(offset + lengthBytes);
  }

  override tryAllocate(offset: number, lengthBytes: number): boolean {
    const end = offset + lengthBytes;
    if (this.#needsSpace(end) || !super.tryAllocate(offset, lengthBytes)) return false;
    this.#reached(end);
    return true;
  }

  override async extend(lengthBytes: number): Promise<void> {
    await this.#makeSpace(lengthBytes);
    await super.extend(lengthBytes);
    this.#reached(lengthBytes);
  }

  override tryExtend(lengthBytes: number): boolean {
    if (this.#needsSpace(lengthBytes) || !super.tryExtend(lengthBytes)) return false;
    this.#reached(lengthBytes);
    return true;
  }

  override async truncate(lengthBytes: number): Promise<void> {
    await super.truncate(lengthBytes);
    this.#dataEnd = undefined;
  }

  #needsSpace(end: number): boolean {
    return this.#mayGrow && end > super.lengthBytes;
  }

  #reached(end: number): void {
    if (this.#dataEnd !== undefined) this.#dataEnd = Math.max(this.#dataEnd, end);
  }

  /** Space up to `end` and ahead of it; where there is none, the write itself will tell. */
  async #makeSpace(end: number): Promise<void> {
    if (!this.#needsSpace(end)) return;
    await this.#growing.run(async () => {
      if (!this.#needsSpace(end)) return;
      const fileEnd = super.lengthBytes;
      const wanted = alignUp(end + this.#aheadBytes, this.#alignBytes);
      this.#dataEnd ??= fileEnd;
      await this.#child()
        .allocate(fileEnd, wanted - fileEnd)
        .catch(() => undefined);
    });
  }

  /** The file ends where the data does. */
  async #giveBack(): Promise<void> {
    const end = this.#dataEnd;
    if (end !== undefined && super.lengthBytes > end) await this.#child().truncate(end);
    this.#dataEnd = undefined;
  }

  async preparePermissions({ perm }: PermissionSet): Promise<PreparedChange> {
    const mayGrow = hasPermission(perm, Permission.write) && hasPermission(perm, Permission.resize);
    // The users that were may still resize it, those that come may not.
    if (this.#mayGrow && !mayGrow) await this.#giveBack();
    return { commit: () => void (this.#mayGrow = mayGrow), abort: () => undefined };
  }

  /** Errors: invalid. */
  async prepareReopen({ settings }: Reopening): Promise<PreparedReopening> {
    const next = checked(settings as PreallocateSettings);
    return { commit: () => this.#configure(next), abort: () => undefined };
  }
}

function checked(settings: PreallocateSettings): PreallocateSettings {
  if (settings['prealloc-align'] % SECTOR_BYTES === 0) return settings;
  const text = `prealloc-align parameter of preallocate filter is not aligned to ${SECTOR_BYTES}`;
  throw new BlockError('invalid', text);
}
