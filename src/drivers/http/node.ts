import { alignUp } from '../../base/align.js';
import { BlockError, errnoError } from '../../base/error.js';
import type {
  DriverContext,
  DriverInfo,
  DriverInstance,
  IoDriver,
  PermissionSet,
  PreparedChange,
} from '../../block/driver.js';
import { hasPermission, Permission } from '../../block/permissions.js';
import type { BlockStatus, IoRequest } from '../../block/request.js';
import type { HttpClient } from '../../host/http.js';
import { ReadAhead } from './read-ahead.js';
import type { HttpSource } from './source.js';

/** A node is a whole number of these: what a file lacks of the last one reads as zeroes. */
const SECTOR_BYTES = 512;
const NOTHING: PreparedChange = { commit: () => undefined, abort: () => undefined };

/** A file of a web server. */
export class HttpNode implements DriverInstance {
  readonly io: IoDriver;
  readonly hasFixedLength = true;
  readonly requestAlignmentBytes = 1;
  readonly lengthBytes: number;
  readonly #client: HttpClient;
  readonly #driverName: string;
  readonly #nodeName: string;

  constructor(
    driverName: string,
    client: HttpClient,
    source: HttpSource,
    aheadBytes: number,
    context: DriverContext,
  ) {
    this.#client = client;
    this.#driverName = driverName;
    this.#nodeName = context.nodeName;
    this.lengthBytes = alignUp(source.lengthBytes, SECTOR_BYTES);
    this.io = new HttpIo(source, aheadBytes, context);
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

  cancelInFlight(): void {
    this.#client.close();
  }

  yank(): void {
    this.#client.close();
  }

  async close(): Promise<void> {
    this.#client.close();
  }
}

/** It was to be opened for writing. */
export function readOnlyError(): BlockError {
  return new BlockError('permission', 'curl driver does not support writes', { errno: 'EACCES' });
}

class HttpIo implements IoDriver {
  readonly #ahead: ReadAhead;
  readonly #lengthBytes: number;
  readonly #context: DriverContext;

  constructor(source: HttpSource, aheadBytes: number, context: DriverContext) {
    this.#lengthBytes = source.lengthBytes;
    this.#ahead = new ReadAhead(
      (start, end, take) => source.fetch(start, end, take),
      source.lengthBytes,
      aheadBytes,
    );
    this.#context = context;
  }

  tryRead(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    const inside = this.#inside(offset, lengthBytes);
    const bytes = inside === 0 ? undefined : this.#ahead.tryRead(offset, inside);
    if (!bytes) return false;
    request.copyFrom(bytes, from);
    if (inside < lengthBytes) request.fillZero(from + inside, lengthBytes - inside);
    return true;
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const inside = this.#inside(offset, lengthBytes);
    const view = request.view(from, inside);
    const bytes = view ?? Buffer.allocUnsafe(inside);
    try {
      await this.#ahead.read(offset, bytes);
    } catch (error) {
      throw this.#failed(error, offset);
    }
    request.assertIs(generation);
    if (!view) request.copyFrom(bytes, from);
    if (inside < lengthBytes) request.fillZero(from + inside, lengthBytes - inside);
  }

  async write(): Promise<void> {
    throw errnoError('EPERM');
  }

  async writeZeroes(): Promise<void> {
    throw errnoError('EPERM');
  }

  async discard(): Promise<void> {}

  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    return { lengthBytes, allocated: true, zero: false, data: true, hostOffset: offset };
  }

  /** How much of a range lies in the file. */
  #inside(offset: number, lengthBytes: number): number {
    return Math.max(0, Math.min(lengthBytes, this.#lengthBytes - offset));
  }

  /** Whoever reads sees an I/O error; why, people are told. */
  #failed(error: unknown, offset: number): unknown {
    if (!(error instanceof BlockError) || error.kind === 'cancelled') return error;
    this.#context.tell(`curl: ${error.message}`);
    return errnoError('EIO', undefined, { cause: error, offset });
  }
}
