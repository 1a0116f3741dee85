import type { CancelSignal } from '../../base/cancel-signal.js';
import type { MapDriver } from '../driver.js';
import type { Node } from '../node.js';
import type { RangeLock } from '../range-lock.js';
import type { IoRequest } from '../request.js';
import { MappedCopyingUp } from './copying-up.js';
import { MappedNode } from './mapped-node.js';
import { MappedReading } from './reading.js';
import { MappedSpace } from './space.js';
import { MappedStatus } from './status.js';
import { MappedWriting } from './writing.js';
import { MappedZeroing } from './zeroing.js';

/** Reading, writing, zeroing, discarding and block status, written once for every driver that only maps. */
export class MappedIo {
  readonly reading: MappedReading;
  readonly writing: MappedWriting;
  readonly zeroing: MappedZeroing;
  readonly copyingUp: MappedCopyingUp;
  readonly status: MappedStatus;
  readonly space: MappedSpace;

  readonly #mapped: MappedNode;

  constructor(node: Node, driver: MapDriver, ranges: RangeLock) {
    const mapped = new MappedNode(node, driver, ranges);
    this.#mapped = mapped;
    this.reading = new MappedReading(mapped);
    this.writing = new MappedWriting(mapped, this.reading);
    this.zeroing = new MappedZeroing(mapped, this.writing);
    this.copyingUp = new MappedCopyingUp(mapped, this.writing, this.zeroing);
    this.status = new MappedStatus(mapped);
    this.space = new MappedSpace(mapped);
  }

  /** Whoever listens hears of the whole request. */
  async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<boolean> {
    const { generation } = request;
    if (this.#mapped.isHeard) await this.#mapped.announce('pwritev');
    request.assertIs(generation);
    const isDurable = await this.writing.write(request, from, lengthBytes, offset, flags);
    if (this.#mapped.isHeard) await this.#mapped.announce('pwritev_done');
    return isDurable;
  }

  async writeZeroes(
    offset: number,
    lengthBytes: number,
    flags: number,
    signal?: CancelSignal,
  ): Promise<void> {
    if (this.#mapped.isHeard) await this.#mapped.announce('pwritev_zero');
    await this.zeroing.writeZeroes(offset, lengthBytes, flags, signal);
    if (this.#mapped.isHeard) await this.#mapped.announce('pwritev_done');
  }
}
