import { BlockError, errnoError } from '../../base/error.js';
import { AssertionFailure } from '../../base/assert.js';
import { alignUp } from '../../base/align.js';
import type { ChildIo, DriverDescription, DriverInstance, MapDriver, Settings } from '../../block/driver.js';
import { Permission, withoutPermissions } from '../../block/permissions.js';
import { Flag, type Mapping } from '../../block/request.js';
import { RAW_OPTIONS } from '../../schema/blockdev-options.js';
import { RAW_CREATE } from '../../schema/create-options.js';

/** A disk is a whole number of sectors: beyond the end of the file the last one reads as zeroes. */
const SECTOR_BYTES = 512;

/** Maps every byte to the file, `start` further on. */
class RawMap implements MapDriver {
  readonly clusterBytes = 1;
  readonly unitBytes = 1;
  readonly events: ChildIo;
  readonly #file: ChildIo;
  readonly #start: number;
  readonly #sizeBytes: number;

  constructor(file: ChildIo, { start, sizeBytes }: Window) {
    this.#file = this.events = file;
    this.#start = start;
    this.#sizeBytes = sizeBytes ?? Infinity;
  }

  /** Errors: no-space beyond a window, which does not grow: what lies there is somebody else's. */
  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    if (offset + lengthBytes > this.#sizeBytes) throw errnoError('ENOSPC', undefined, { offset });
    out.kind = 'data';
    out.lengthBytes = lengthBytes;
    out.child = this.#file;
    out.hostOffset = this.#start + offset;
    out.plain = true;
    out.writable = true;
    return true;
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    this.tryMap(offset, lengthBytes, out);
  }

  reserve(): Promise<never> {
    return Promise.reject(new AssertionFailure('raw data is always writable in place'));
  }

  async zeroClusters(offset: number, lengthBytes: number, mayUnmap: boolean): Promise<void> {
    if (offset + lengthBytes > this.#sizeBytes) throw errnoError('ENOSPC', undefined, { offset });
    await this.#file.writeZeroes(this.#start + offset, lengthBytes, mayUnmap ? Flag.mayUnmap : Flag.none);
  }

  discardClusters(offset: number, lengthBytes: number): Promise<void> {
    return this.#file.discard(this.#start + offset, lengthBytes);
  }
}

/** The bytes of the file as they are, or a window (offset, size) of them. */
class RawNode implements DriverInstance {
  readonly requestAlignmentBytes = 1;
  readonly readsZeroWhenNew = true;
  readonly map: MapDriver;
  readonly #file: ChildIo;
  readonly #start: number;
  readonly #sizeBytes: number | undefined;
  /** What the file's length was when last asked for, and what follows from it. */
  #fileBytes = -1;
  #lengthBytes = 0;

  constructor(file: ChildIo, { start, sizeBytes }: Window) {
    this.#file = file;
    this.#start = start;
    this.#sizeBytes = sizeBytes;
    this.map = new RawMap(file, { start, sizeBytes });
  }

  get lengthBytes(): number {
    if (this.#sizeBytes !== undefined) return this.#sizeBytes;
    const fileBytes = this.#file.lengthBytes;
    if (fileBytes !== this.#fileBytes) {
      this.#fileBytes = fileBytes;
      this.#lengthBytes = alignUp(Math.max(0, fileBytes - this.#start), SECTOR_BYTES);
    }
    return this.#lengthBytes;
  }

  flush(): Promise<void> {
    return this.#file.flush();
  }

  async truncate(lengthBytes: number): Promise<void> {
    if (this.#sizeBytes !== undefined)
      throw new BlockError('unsupported', 'Cannot resize fixed-size raw disks');
    await this.#file.truncate(this.#start + lengthBytes);
  }

  info(): Record<string, never> {
    return {};
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

interface Window {
  start: number;
  sizeBytes: number | undefined;
}

/** Errors: kind invalid, in QEMU's words (its double space too). */
function windowOf(settings: Settings<typeof RAW_OPTIONS>, fileBytes: number): Window {
  const { offset: start, size: sizeBytes } = settings;
  if (start > fileBytes) {
    throw new BlockError(
      'invalid',
      `Offset (${start}) cannot be greater than size of the containing file (${fileBytes})`,
    );
  }
  if (sizeBytes !== undefined && sizeBytes % SECTOR_BYTES !== 0) {
    throw new BlockError('invalid', `Specified size is not multiple of ${SECTOR_BYTES}`);
  }
  if (sizeBytes !== undefined && sizeBytes > fileBytes - start) {
    throw new BlockError(
      'invalid',
      `The sum of offset (${start}) and size (${sizeBytes}) has to be smaller or equal to the  actual size of the ` +
        `containing file (${fileBytes})`,
    );
  }
  return { start, sizeBytes };
}

/** Images without a format. */
export const rawDriver: DriverDescription<typeof RAW_OPTIONS, typeof RAW_CREATE> = {
  name: 'raw',
  kind: 'format',
  options: RAW_OPTIONS,
  identityOptions: ['offset', 'size'],

  async open(context, settings) {
    const file = context.child('file');
    return new RawNode(file, windowOf(settings, file.lengthBytes));
  },

  /** Nothing of its own lies in the file: users' permissions pass through. Nobody else may resize below a window. */
  childPermissions(_role, users, _readOnly, { offset, size }) {
    if (offset === 0 && size === undefined) return users;
    return { perm: users.perm, shared: withoutPermissions(users.shared, Permission.resize) };
  },

  createOptions: RAW_CREATE,
  toolOptions: [
    { name: 'size' },
    { name: 'preallocation', member: 'preallocation' },
    { name: 'nocow' },
    { name: 'extent_size_hint' },
  ],

  async create(file, { sizeBytes, backingFile }) {
    if (backingFile !== undefined) {
      throw new BlockError('unsupported', "Backing file not supported for file format 'raw'");
    }
    await file.truncate(sizeBytes);
    await file.flush();
  },
};
