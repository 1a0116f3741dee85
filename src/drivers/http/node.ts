import { alignUp } from '../../base/align.js';
import { BlockError, errnoError } from '../../base/error.js';
import type { DriverContext, DriverInstance, IoDriver } from '../../block/driver.js';
import type { BlockStatus, IoRequest } from '../../block/request.js';
import type { HttpClient } from '../../host/http.js';
import { ReadOnlyNode } from '../tables/read-only-node.js';
import { ReadAhead } from './read-ahead.js';
import type { HttpSource } from './source.js';

/** A node is a whole number of these: what a file lacks of the last one reads as zeroes. */
const SECTOR_BYTES = 512;

/** A file of a web server. */
export class HttpNode extends ReadOnlyNode implements DriverInstance {
  readonly io: IoDriver;
  readonly lengthBytes: number;
  readonly #client: HttpClient;

  constructor(
    driverName: string,
    client: HttpClient,
    source: HttpSource,
    aheadBytes: number,
    context: DriverContext,
  ) {
    super(driverName, context);
    this.#client = client;
    this.lengthBytes = alignUp(source.lengthBytes, SECTOR_BYTES);
    this.io = new HttpIo(source, aheadBytes, context);
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
      if (inside > 0) await this.#ahead.read(offset, bytes);
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
