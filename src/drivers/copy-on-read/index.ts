import type { ChildIo, DriverDescription } from '../../block/driver.js';
import type { FrozenChain } from '../../block/frozen-chain.js';
import type { IoRequest } from '../../block/request.js';
import { COPY_ON_READ_OPTIONS } from '../../schema/blockdev-options.js';
import { PassThrough } from '../pass-through/pass-through.js';
import { COPY_ON_READ, copyOnReadPermissions } from './copy-on-read.js';

/** What is read comes into the layer below first, from the backing files. */
class CopyOnReadNode extends PassThrough {
  readonly #file: () => ChildIo;
  /** Only what is in layers down to its end is copied. */
  readonly #chain: FrozenChain | undefined;

  constructor(file: () => ChildIo, chain: FrozenChain | undefined) {
    super(file);
    this.#file = file;
    this.#chain = chain;
  }

  /** Whether there is something to copy is not known at once. */
  override tryRead(): boolean {
    return false;
  }

  override async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const file = this.#file();
    if (file.isWritable) await file.copyOnRead(offset, lengthBytes, this.#chain);
    request.assertIs(generation);
    await super.read(request, from, lengthBytes, offset);
  }

  override async close(): Promise<void> {
    this.#chain?.release();
  }
}

/** A filter that copies what is read into the image below it. */
export const copyOnReadDriver: DriverDescription<typeof COPY_ON_READ_OPTIONS> = {
  name: COPY_ON_READ.name,
  kind: 'filter',
  compresses: true,
  isNamedWhole: true,
  options: COPY_ON_READ_OPTIONS,

  async open(context, { bottom }) {
    const chain = bottom === undefined ? undefined : context.freezeChain(bottom);
    return new CopyOnReadNode(() => context.child('file'), chain);
  },

  childPermissions: (_role, users) => copyOnReadPermissions(users),
};
