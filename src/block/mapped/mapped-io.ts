import type { MapDriver } from '../driver.js';
import type { Node } from '../node.js';
import type { RangeLock } from '../range-lock.js';
import { Flag, hasFlag, type IoRequest } from '../request.js';
import { MappedCompressing } from './compressing.js';
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

  readonly mapped: MappedNode;
  readonly #compressing: MappedCompressing;

  constructor(node: Node, driver: MapDriver, ranges: RangeLock) {
    const mapped = new MappedNode(node, driver, ranges);
    this.mapped = mapped;
    this.reading = new MappedReading(mapped);
    this.writing = new MappedWriting(mapped, this.reading);
    this.zeroing = new MappedZeroing(mapped, this.writing);
    this.#compressing = new MappedCompressing(mapped, this.writing);
    this.copyingUp = new MappedCopyingUp(mapped, this.writing, this.zeroing);
    this.status = new MappedStatus(mapped);
    this.space = new MappedSpace(mapped);
  }

  /** What is compressed is durable with the next flush. */
  async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<boolean> {
    if (!hasFlag(flags, Flag.compressed) || this.mapped.driver.takesUncompressed === true)
      return this.writing.write(request, from, lengthBytes, offset, flags);
    await this.#compressing.write(request, from, lengthBytes, offset);
    return false;
  }
}
