import { ByteRanges } from '../../base/byte-ranges.js';
import { BlockError, errnoError } from '../../base/error.js';
import { AssertionFailure } from '../../base/assert.js';
import { alignUp } from '../../base/align.js';
import type {
  ChildIo,
  DriverDescription,
  DriverInfo,
  DriverInstance,
  MapDriver,
  PreparedReopening,
  Reopening,
  Settings,
} from '../../block/driver.js';
import { checkFileSpace, takeFileSpace, takeFirstBlock } from '../../block/new-space.js';
import { Permission, withoutPermissions } from '../../block/permissions.js';
import { type Mapping } from '../../block/request.js';
import { RAW_OPTIONS } from '../../schema/blockdev-options.js';
import { RAW_CREATE } from '../../schema/create-options.js';

/** A disk is a whole number of sectors: beyond the end of the file the last one reads as zeroes. */
const SECTOR_BYTES = 512;

/** Maps every byte to the file, `start` further on. */
class RawMap implements MapDriver {
  readonly clusterBytes = 1;
  readonly unitBytes = 1;
  readonly isMappingDurable = true;
  readonly isFixed = true;
  window: Window;

  constructor(window: Window) {
    this.window = window;
  }

  get events(): ChildIo {
    return this.window.file;
  }

  /** Errors: no-space beyond a window, which does not grow: what lies there is somebody else's. */
  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    this.#assertInside(offset, lengthBytes);
    out.kind = 'data';
    out.lengthBytes = lengthBytes;
    out.child = this.window.file;
    out.hostOffset = this.window.start + offset;
    out.plain = true;
    out.writable = true;
    return true;
  }

  #assertInside(offset: number, lengthBytes: number): void {
    const { sizeBytes } = this.window;
    if (sizeBytes !== undefined && offset + lengthBytes > sizeBytes)
      throw errnoError('ENOSPC', undefined, { offset });
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    this.tryMap(offset, lengthBytes, out);
  }

  reserve(): Promise<never> {
    return Promise.reject(new AssertionFailure('raw data is always writable in place'));
  }

  async zeroClusters(offset: number, lengthBytes: number, flags: number): Promise<void> {
    this.#assertInside(offset, lengthBytes);
    const { file, start } = this.window;
    await file.writeZeroes(start + offset, lengthBytes, flags);
  }

  discardClusters(offset: number, lengthBytes: number): Promise<void> {
    const { file, start } = this.window;
    return file.discard(start + offset, lengthBytes);
  }
}

/** The bytes of the file as they are, or a window (offset, size) of them. */
class RawNode implements DriverInstance {
  readonly requestAlignmentBytes = 1;
  readonly readsZeroWhenNew = true;
  readonly map: RawMap;
  /** What the file's length was when last asked for, and what follows from it. */
  #fileBytes = -1;
  #lengthBytes = 0;

  constructor(window: Window) {
    this.map = new RawMap(window);
  }

  get lengthBytes(): number {
    const { file, sizeBytes } = this.map.window;
    if (sizeBytes !== undefined) return sizeBytes;
    const fileBytes = file.lengthBytes;
    if (fileBytes !== this.#fileBytes) {
      this.#fileBytes = fileBytes;
      this.#lengthBytes = lengthOf(this.map.window);
    }
    return this.#lengthBytes;
  }

  get hasFixedLength(): boolean {
    const { file, sizeBytes } = this.map.window;
    return sizeBytes !== undefined || file.hasFixedLength === true;
  }

  flush(): Promise<void> {
    return this.map.window.file.flush();
  }

  takeDoubtful(): ByteRanges {
    const { file, start } = this.map.window;
    const found = new ByteRanges();
    for (const { offset, lengthBytes } of file.takeDoubtful()) {
      const from = Math.max(offset, start);
      const end = Math.min(offset + lengthBytes, start + this.lengthBytes);
      if (from < end) found.add(from - start, end - from);
    }
    return found;
  }

  async truncate(lengthBytes: number): Promise<void> {
    const { file, start, sizeBytes } = this.map.window;
    if (sizeBytes !== undefined) throw new BlockError('unsupported', 'Cannot resize fixed-size raw disks');
    await file.truncate(start + lengthBytes);
  }

  async prepareReopen(reopening: Reopening<typeof RAW_OPTIONS>): Promise<PreparedReopening> {
    const file = reopening.newChild('file') ?? this.map.window.file;
    const window = windowOf(reopening.settings, file);
    return {
      lengthBytes: lengthOf(window),
      commit: () => {
        this.map.window = window;
        this.#fileBytes = -1;
      },
      abort: () => undefined,
    };
  }

  info(): DriverInfo {
    return this.map.window.file.driverInfo().hasNoDirtyFlag === true ? { hasNoDirtyFlag: true } : {};
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

interface Window {
  file: ChildIo;
  start: number;
  sizeBytes: number | undefined;
}

function lengthOf({ file, start, sizeBytes }: Window): number {
  return sizeBytes ?? alignUp(Math.max(0, file.lengthBytes - start), SECTOR_BYTES);
}

/** Errors: kind invalid, in QEMU's words (its double space too). */
function windowOf(settings: Settings<typeof RAW_OPTIONS>, file: ChildIo): Window {
  const { offset: start, size: sizeBytes } = settings;
  const fileBytes = file.lengthBytes;
  if (start > fileBytes) {
    throw new BlockError(
      'invalid',
      `Offset (${start}) cannot be greater than size of the containing file (${fileBytes})`,
    );
  }
  if (sizeBytes !== undefined && sizeBytes > fileBytes - start) {
    throw new BlockError(
      'invalid',
      `The sum of offset (${start}) and size (${sizeBytes}) has to be smaller or equal to the  actual size of the ` +
        `containing file (${fileBytes})`,
    );
  }
  if (sizeBytes !== undefined && sizeBytes % SECTOR_BYTES !== 0) {
    throw new BlockError('invalid', `Specified size is not multiple of ${SECTOR_BYTES}`);
  }
  return { file, start, sizeBytes };
}

/** Images without a format. */
export const rawDriver: DriverDescription<typeof RAW_OPTIONS, typeof RAW_CREATE> = {
  name: 'raw',
  opensWithoutWriting: true,
  kind: 'format',
  options: RAW_OPTIONS,
  identityOptions: ['offset', 'size'],
  mutableOptions: ['offset', 'size'],
  followsChildSize: true,
  isFallback: true,

  async open(context, settings) {
    return new RawNode(windowOf(settings, context.child('file')));
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

  measure: ({ sizeBytes }) => Promise.resolve({ requiredBytes: sizeBytes, fullyAllocatedBytes: sizeBytes }),

  checkNew: ({ options }) => checkFileSpace(options.preallocation),

  async create(file, { sizeBytes, options }) {
    const isEmpty = file.lengthBytes === 0;
    await file.truncate(sizeBytes);
    await takeFileSpace(file, 0, sizeBytes, options.preallocation);
    if (isEmpty && options.preallocation !== 'full') await takeFirstBlock(file, sizeBytes);
    await file.flush();
  },
};
