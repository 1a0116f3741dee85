import { BlockError, errnoError } from '../../base/error.js';
import type {
  ChildIo,
  DriverContext,
  DriverDescription,
  DriverInfo,
  DriverInstance,
  IoDriver,
} from '../../block/driver.js';
import { RangeLock } from '../../block/range-lock.js';
import type { BlockStatus, IoRequest } from '../../block/request.js';
import { BLKVERIFY_OPTIONS } from '../../schema/blockdev-options.js';

/** Does everything twice, to `raw` and to `test`, and compares what is read: a test of a format against plain bytes. */
class BlkverifyNode implements DriverInstance, IoDriver {
  readonly requestAlignmentBytes = 1;
  readonly io: IoDriver = this;
  readonly #context: DriverContext;
  /** Both see requests for the same bytes in one order. */
  readonly #ranges = new RangeLock();

  constructor(context: DriverContext) {
    this.#context = context;
  }

  #raw(): ChildIo {
    return this.#context.child('raw');
  }

  #test(): ChildIo {
    return this.#context.child('test');
  }

  get lengthBytes(): number {
    return this.#test().lengthBytes;
  }

  /** Errors: EIO where the two differ, which is also told as QEMU tells it. */
  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const release = await this.#ranges.lockShared(offset, lengthBytes, request.signal);
    try {
      request.assertIs(generation);
      await this.#readBoth(request, from, lengthBytes, offset);
    } finally {
      release();
    }
  }

  async #readBoth(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const [raw, test] = [Buffer.allocUnsafe(lengthBytes), Buffer.allocUnsafe(lengthBytes)];
    await this.#both('read', offset, lengthBytes, [
      this.#raw().read(offset, raw),
      this.#test().read(offset, test),
    ]);
    request.assertIs(generation);
    if (!raw.equals(test)) {
      const at = offset + raw.findIndex((byte, i) => byte !== test[i]);
      throw this.#mismatch('read', offset, lengthBytes, `contents mismatch at offset ${at}`);
    }
    request.copyFrom(test, from);
  }

  async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    const { generation } = request;
    // Both are to get the same bytes.
    await request.stabilise();
    request.assertIs(generation);
    const release = await this.#ranges.lockExclusive(offset, lengthBytes, request.signal);
    try {
      request.assertIs(generation);
      await this.#both('write', offset, lengthBytes, [
        this.#raw().writePart(request, from, lengthBytes, offset, flags),
        this.#test().writePart(request, from, lengthBytes, offset, flags),
      ]);
    } finally {
      release();
    }
  }

  /** Errors: the one that both met; EIO where only one fails, which is told. */
  async #both(
    name: string,
    offset: number,
    lengthBytes: number,
    requests: ReadonlyArray<Promise<void>>,
  ): Promise<void> {
    const settled = await Promise.allSettled(requests);
    const failed = settled.filter((result) => result.status === 'rejected');
    const [first] = failed;
    if (first && failed.length === settled.length) throw first.reason;
    if (first) throw this.#mismatch(name, offset, lengthBytes, 'return value mismatch');
  }

  #mismatch(name: string, offset: number, lengthBytes: number, what: string): BlockError {
    this.#context.tell(`blkverify: ${name} offset=${offset} bytes=${lengthBytes} ${what}`);
    return errnoError('EIO', undefined, { node: this.#context.nodeName, offset });
  }

  /** Written as bytes, so that both are compared. */
  writeZeroes(offset: number): Promise<void> {
    return Promise.reject(errnoError('ENOTSUP', undefined, { node: this.#context.nodeName, offset }));
  }

  /** The two may read otherwise afterwards: nothing is discarded. */
  async discard(): Promise<void> {}

  status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    return this.#raw().status(offset, lengthBytes);
  }

  /** The raw copy is of no use after a crash. */
  flush(): Promise<void> {
    return this.#test().flush();
  }

  info(): DriverInfo {
    return {};
  }

  async close(): Promise<void> {}
}

/** Compares an image with a raw copy of it at every request. */
export const blkverifyDriver: DriverDescription<typeof BLKVERIFY_OPTIONS> = {
  name: 'blkverify',
  kind: 'filter',
  options: BLKVERIFY_OPTIONS,

  open: async (context) => new BlkverifyNode(context),

  filename(_options, raw, childName) {
    const test = childName?.('test');
    return raw === undefined || test === undefined ? undefined : `blkverify:${raw}:${test}`;
  },

  parseFilename(filename) {
    if (!filename.startsWith('blkverify:')) return undefined;
    const [, raw, test] = /^blkverify:([^:]*):(.*)$/s.exec(filename) ?? [];
    if (raw === undefined || test === undefined)
      throw new BlockError('invalid', 'blkverify requires raw copy and original image path');
    return { raw: { filename: raw }, test: { filename: test } };
  },
};
