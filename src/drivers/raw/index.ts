import { BlockError } from '../../base/error.js';
import { AssertionFailure } from '../../base/assert.js';
import type {
  ChildIo,
  DriverContext,
  DriverDescription,
  DriverInstance,
  MapDriver,
  NodeOptions,
} from '../../block/driver.js';
import { numberOption } from '../../block/options.js';
import { hasPermission, Permission } from '../../block/permissions.js';
import { Flag, type Mapping } from '../../block/request.js';

/** Maps every byte to the file, `start` further on. */
class RawMap implements MapDriver {
  readonly clusterBytes = 1;
  readonly #file: ChildIo;
  readonly #start: number;

  constructor(file: ChildIo, start: number) {
    this.#file = file;
    this.#start = start;
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    out.kind = 'data';
    out.lengthBytes = lengthBytes;
    out.hostOffset = this.#start + offset;
    out.writable = true;
    return true;
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    this.tryMap(offset, lengthBytes, out);
  }

  reserve(): Promise<never> {
    return Promise.reject(new AssertionFailure('raw data is always writable in place'));
  }

  zeroClusters(offset: number, lengthBytes: number, mayUnmap: boolean): Promise<void> {
    return this.#file.writeZeroes(this.#start + offset, lengthBytes, mayUnmap ? Flag.mayUnmap : Flag.none);
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

  constructor(file: ChildIo, start: number, sizeBytes: number | undefined) {
    this.#file = file;
    this.#start = start;
    this.#sizeBytes = sizeBytes;
    this.map = new RawMap(file, start);
  }

  get lengthBytes(): number {
    return this.#sizeBytes ?? Math.max(0, this.#file.lengthBytes - this.#start);
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

function openWindow(context: DriverContext, options: NodeOptions): RawNode {
  const file = context.child('file');
  const start = numberOption(options, 'offset') ?? 0;
  const size = numberOption(options, 'size');
  const real = file.lengthBytes;
  if (start > real) {
    throw new BlockError(
      'invalid',
      `Offset (${start}) cannot be greater than size of the containing file (${real})`,
    );
  }
  if (size !== undefined && real - start < size) {
    throw new BlockError(
      'invalid',
      `The sum of offset (${start}) and size (${size}) has to be smaller or equal to the  actual size of the ` +
        `containing file (${real})`,
    );
  }
  return new RawNode(file, start, size);
}

/** Images without a format. */
export const rawDriver: DriverDescription = {
  name: 'raw',
  kind: 'format',
  children: [{ role: 'file', required: true }],
  optionKeys: ['offset', 'size'],

  open: async (context, options) => openWindow(context, options),

  /** Nothing of its own lies in the file, so users' permissions pass through; a writer may make it grow. */
  childPermissions(_role, users) {
    const grows =
      hasPermission(users.perm, Permission.write) && !hasPermission(users.perm, Permission.resize);
    return { perm: users.perm + (grows ? Permission.resize : 0), shared: users.shared };
  },

  async create(file, { sizeBytes, backingFile }) {
    if (backingFile !== undefined) {
      throw new BlockError('unsupported', "Backing file not supported for file format 'raw'");
    }
    await file.truncate(sizeBytes);
    await file.flush();
  },
};
