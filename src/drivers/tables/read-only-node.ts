import { BlockError, errnoError } from '../../base/error.js';
import type {
  ChildIo,
  DriverContext,
  DriverInfo,
  DriverInstance,
  MapDriver,
  PermissionSet,
  PreparedChange,
  Reservation,
  Settings,
} from '../../block/driver.js';
import { hasPermission, Permission, withoutPermissions } from '../../block/permissions.js';
import type { Mapping } from '../../block/request.js';
import { namingFile } from './format-node.js';

const NOTHING: PreparedChange = { commit: () => undefined, abort: () => undefined };

/** A node that is never written, whatever its options say: what is alike of all of them. */
export class ReadOnlyNode {
  readonly hasFixedLength = true;
  readonly requestAlignmentBytes = 1;
  readonly #driverName: string;
  readonly #nodeName: string;

  constructor(driverName: string, { nodeName }: DriverContext) {
    this.#driverName = driverName;
    this.#nodeName = nodeName;
  }

  async flush(): Promise<void> {}

  async prepareReadOnly(readOnly: boolean): Promise<PreparedChange> {
    if (readOnly) return NOTHING;
    const what = `Block format '${this.#driverName}' used by node '${this.#nodeName}'`;
    throw new BlockError('unsupported', `${what} does not support reopening files`);
  }

  /** A node that became read-only by auto-read-only takes no writers. */
  async preparePermissions({ perm }: PermissionSet): Promise<PreparedChange> {
    if ([Permission.write, Permission.writeUnchanged].some((bit) => hasPermission(perm, bit)))
      throw new BlockError('permission', 'Block node is read-only', { errno: 'EPERM' });
    return NOTHING;
  }

  info(): DriverInfo {
    return { hasNoDirtyFlag: true };
  }
}

/** What an image of a format shows that is only read. */
export interface ReadOnlyContent {
  readonly lengthBytes: number;
  readonly map: MapDriver;
}

/** An image of such a format. */
export class ReadOnlyImage extends ReadOnlyNode implements DriverInstance {
  readonly lengthBytes: number;
  readonly map: MapDriver;

  private constructor(driverName: string, context: DriverContext, { lengthBytes, map }: ReadOnlyContent) {
    super(driverName, context);
    this.lengthBytes = lengthBytes;
    this.map = map;
  }

  /** Errors: permission where it is to be written; those of `load`. */
  static async open(
    driverName: string,
    context: DriverContext,
    settings: Settings,
    load: () => Promise<ReadOnlyContent>,
  ): Promise<ReadOnlyImage> {
    if (!context.readOnly && settings['auto-read-only'] !== true)
      throw new BlockError('permission', 'Image is read-only', { errno: 'EACCES' });
    try {
      return new ReadOnlyImage(driverName, context, await load());
    } catch (error) {
      throw namingFile(error, context);
    }
  }

  async close(): Promise<void> {}
}

/** What it asks of its file. */
export function readingPermissions(_role: string, { shared }: PermissionSet): PermissionSet {
  return {
    perm: Permission.consistentRead,
    shared: withoutPermissions(shared, Permission.write | Permission.resize),
  };
}

/** A mapping that only says where things are; nobody gets as far as to change it. */
export abstract class ReadOnlyMap implements MapDriver {
  readonly isMappingDurable = true;
  readonly events: ChildIo;
  readonly clusterBytes: number;
  readonly unitBytes: number;

  constructor(file: ChildIo, unitBytes: number) {
    this.events = file;
    this.clusterBytes = unitBytes;
    this.unitBytes = unitBytes;
  }

  abstract tryMap(offset: number, lengthBytes: number, out: Mapping): boolean;
  abstract map(offset: number, lengthBytes: number, out: Mapping): Promise<void>;

  reserve(): Promise<Reservation> {
    return Promise.reject(errnoError('EPERM'));
  }

  zeroClusters(): Promise<void> {
    return Promise.reject(errnoError('EPERM'));
  }

  discardClusters(): Promise<void> {
    return Promise.reject(errnoError('EPERM'));
  }
}
