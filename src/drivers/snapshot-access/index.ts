import { errnoError } from '../../base/error.js';
import type {
  ChildIo,
  DriverContext,
  DriverDescription,
  DriverInfo,
  DriverInstance,
  IoDriver,
} from '../../block/driver.js';
import { ALL_PERMISSIONS } from '../../block/permissions.js';
import type { BlockStatus, IoRequest } from '../../block/request.js';
import type { SnapshotAccess } from '../../block/snapshot-access.js';
import { SNAPSHOT_ACCESS_OPTIONS } from '../../schema/blockdev-options.js';

/** Shows the moment that its child keeps beside what it holds now. What is discarded here is kept no longer. */
class SnapshotAccessNode implements DriverInstance, IoDriver {
  readonly requestAlignmentBytes = 1;
  readonly lengthBytes: number;
  readonly #context: DriverContext;

  constructor(context: DriverContext) {
    this.#context = context;
    this.lengthBytes = this.#file().snapshotAccess?.lengthBytes ?? this.#file().lengthBytes;
  }

  get io(): IoDriver {
    return this;
  }

  #file(): ChildIo {
    return this.#context.child('file');
  }

  /** Errors: unsupported where the child keeps none. */
  #snapshot(): SnapshotAccess {
    const { snapshotAccess } = this.#file();
    if (!snapshotAccess) throw this.#unsupported();
    return snapshotAccess;
  }

  #unsupported(): Error {
    return errnoError('ENOTSUP', undefined, { node: this.#context.nodeName });
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    await this.#snapshot().read(request, from, lengthBytes, offset);
  }

  async write(): Promise<void> {
    throw this.#unsupported();
  }

  async writeZeroes(): Promise<void> {
    throw this.#unsupported();
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    await this.#snapshot().discard(offset, lengthBytes);
  }

  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    return this.#snapshot().status(offset, lengthBytes);
  }

  async flush(): Promise<void> {}

  info(): DriverInfo {
    return { hasNoDirtyFlag: true };
  }

  async close(): Promise<void> {}
}

/** The point in time that a copy-before-write node keeps, as a disk. */
export const snapshotAccessDriver: DriverDescription<typeof SNAPSHOT_ACCESS_OPTIONS> = {
  name: 'snapshot-access',
  opensWithoutWriting: true,
  kind: 'format',
  options: SNAPSHOT_ACCESS_OPTIONS,
  isNamedAsChild: true,

  open: async (context) => new SnapshotAccessNode(context),

  /** It asks its child for what that keeps, not for what that holds. */
  childPermissions: () => ({ perm: 0, shared: ALL_PERMISSIONS }),
};
