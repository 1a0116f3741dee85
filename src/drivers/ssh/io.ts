import { alignUp } from '../../base/align.js';
import { Slots } from '../../base/async.js';
import { BlockError, errnoError } from '../../base/error.js';
import type { DriverContext, IoDriver } from '../../block/driver.js';
import { RangeLock } from '../../block/range-lock.js';
import type { BlockStatus, IoRequest } from '../../block/request.js';
import type { SftpClient, SftpHandle } from '../../wire/sftp/client.js';

/** A node is a whole number of these: what a file lacks of the last one reads as zeroes. */
const SECTOR_BYTES = 512;
/** Requests to the server at a time. */
const MAX_IN_FLIGHT = 64;

/** Requests to an open file of an SFTP server, whose size is kept here. */
export class SshIo implements IoDriver {
  readonly #client: SftpClient;
  readonly #context: DriverContext;
  readonly #slots = new Slots(MAX_IN_FLIGHT);
  /** Writes that make the file longer hold it shared, changes of its length exclusively. */
  readonly #growth = new RangeLock();
  #sizeBytes: number;
  /** The open file. */
  handle: SftpHandle;

  constructor(client: SftpClient, handle: SftpHandle, sizeBytes: number, context: DriverContext) {
    this.#client = client;
    this.handle = handle;
    this.#sizeBytes = sizeBytes;
    this.#context = context;
  }

  get lengthBytes(): number {
    return alignUp(this.#sizeBytes, SECTOR_BYTES);
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const view = request.view(from, lengthBytes);
    const target = view ?? Buffer.allocUnsafe(lengthBytes);
    await this.#inPieces(lengthBytes, this.#client.maxReadBytes, (at, length) =>
      this.#readPiece(offset + at, target.subarray(at, at + length)),
    );
    request.assertIs(generation);
    if (!view) request.copyFrom(target, from);
  }

  /** A server may answer with less than was asked for. */
  async #readPiece(offset: number, target: Uint8Array): Promise<void> {
    for (let at = 0; at < target.length;) {
      const came = await this.#client.read(this.handle, offset + at, target.subarray(at));
      if (came === 0) return void target.fill(0, at);
      at += came;
    }
  }

  async write(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const bytes = request.gather(from, lengthBytes);
    const write = (): Promise<void> =>
      this.#inPieces(lengthBytes, this.#client.maxWriteBytes, (at, length) =>
        this.#client.write(this.handle, offset + at, bytes.subarray(at, at + length)),
      );
    if (offset + lengthBytes <= this.#sizeBytes) await write();
    else {
      const release = await this.#growth.lockShared(0, 1);
      try {
        await write();
        this.#sizeBytes = Math.max(this.#sizeBytes, offset + lengthBytes);
      } finally {
        release();
      }
    }
    request.assertIs(generation);
  }

  async #inPieces(
    lengthBytes: number,
    pieceBytes: number,
    body: (at: number, lengthBytes: number) => Promise<void>,
  ): Promise<void> {
    const pieces: Array<Promise<void>> = [];
    for (let at = 0; at < lengthBytes; at += pieceBytes) {
      await this.#slots.take();
      const piece = body(at, Math.min(pieceBytes, lengthBytes - at)).finally(() => this.#slots.giveBack());
      // Told below; one that fails before the others have begun is no surprise.
      piece.catch(() => undefined);
      pieces.push(piece);
    }
    // The memory is the caller's again only when nobody reads into it.
    const failed = (await Promise.allSettled(pieces)).find(({ status }) => status === 'rejected');
    if (failed?.status === 'rejected') throw this.#failure(failed.reason);
  }

  /** Whoever asked sees an I/O error, but for what has a meaning of its own; why, people are told. */
  #failure(error: unknown): unknown {
    if (!(error instanceof BlockError) || ['cancelled', 'no-space'].includes(error.kind)) return error;
    this.#context.tell(`ssh: ${error.message}`);
    return errnoError('EIO', undefined, { cause: error });
  }

  async flush(): Promise<void> {
    await this.#client.flush(this.handle).catch((error: unknown) => {
      throw this.#failure(error);
    });
  }

  /** Makes the file longer; what it gains reads as zeroes. */
  async extend(sizeBytes: number): Promise<void> {
    if (sizeBytes <= this.#sizeBytes) return;
    const release = await this.#growth.lockExclusive(0, 1);
    try {
      if (sizeBytes <= this.#sizeBytes) return;
      await this.#client.setSize(this.handle, sizeBytes);
      this.#sizeBytes = sizeBytes;
    } finally {
      release();
    }
  }

  async writeZeroes(offset: number, lengthBytes: number): Promise<void> {
    if (offset < this.#sizeBytes) throw errnoError('ENOTSUP');
    await this.extend(offset + lengthBytes);
  }

  async discard(): Promise<void> {}

  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    return { lengthBytes, allocated: true, zero: false, data: true, hostOffset: offset };
  }
}
