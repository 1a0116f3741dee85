import type { ChildIo } from '../../block/driver.js';

/** Where an image is: its metadata, and its guest data, which may lie in the same child. */
export class ImageStorage {
  readonly meta: ChildIo;
  readonly data: ChildIo;

  constructor(meta: ChildIo, data: ChildIo) {
    this.meta = meta;
    this.data = data;
  }

  /** All that was written, guest data too, is durable on return: before anything may point at it. */
  async flush(): Promise<void> {
    if (this.data !== this.meta) await this.data.flush();
    await this.meta.flush();
  }
}
