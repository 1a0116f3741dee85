import { BlockError } from '../../base/error.js';
import type { ChildIo, DriverDescription } from '../../block/driver.js';
import { Flag, type IoRequest } from '../../block/request.js';
import { COMPRESS_OPTIONS } from '../../schema/blockdev-options.js';
import { PassThrough } from '../pass-through/pass-through.js';

/** What guests write is compressed, in whole clusters; what is smaller is read first, and padded. */
class CompressNode extends PassThrough {
  override readonly requestAlignmentBytes: number;
  readonly #file: () => ChildIo;

  constructor(file: () => ChildIo, clusterBytes: number) {
    super(file);
    this.#file = file;
    this.requestAlignmentBytes = clusterBytes;
  }

  override tryWrite(): boolean {
    return false;
  }

  /** The last cluster may be longer than the disk. */
  override write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    const inside = Math.min(lengthBytes, this.#file().lengthBytes - offset);
    return super.write(request, from, inside, offset, flags | Flag.compressed);
  }
}

/** A filter that compresses what is written through it. */
export const compressDriver: DriverDescription<typeof COMPRESS_OPTIONS> = {
  name: 'compress',
  kind: 'filter',
  options: COMPRESS_OPTIONS,

  async open(context) {
    const { isPossible, clusterBytes, driverName } = context.child('file').compression;
    if (isPossible) return new CompressNode(() => context.child('file'), clusterBytes);
    throw new BlockError('unsupported', `Compression is not supported for underlying format: ${driverName}`);
  },
};
