import { assert } from '../../src/base/assert.js';
import { isZero } from '../../src/base/zero.js';
import type { DriverDescription, DriverInstance, IoDriver } from '../../src/block/driver.js';
import type { BlockStatus, IoRequest } from '../../src/block/request.js';
import type { HostClock } from '../../src/host/host.js';
import type { SeededRandom } from '../../src/host/simulated.js';
import { driverOptions } from '../../src/schema/blockdev-options.js';

const BLOCK_BYTES = 64 * 1024;
const STAMP_BYTES = 4;

/** A block of nothing but a number at its beginning, or what is in it. */
type Block = number | Buffer;

/**
 * A file that grows, for an image whose guest writes a number to each cluster, which is all that is kept of it; tables are
 * kept whole. What was not flushed, a power loss takes away in part.
 */
export class CompactDisk {
  readonly bytesPerMs: number;
  lengthBytes = 0;
  /** Of guests' data: whole blocks that are no zeroes. */
  dataBytes = 0;
  #blocks: Block[] = [];
  #durable: Block[] = [];
  #freeAtMs = 0;

  constructor(bytesPerMs: number) {
    this.bytesPerMs = bytesPerMs;
  }

  powerLoss(random: SeededRandom): void {
    for (let block = 0; block < this.#blocks.length; block++)
      if (random.below(2) === 0) this.#blocks[block] = this.#durable[block] ?? 0;
    this.#durable = this.#blocks.slice();
    this.#freeAtMs = 0;
  }

  async takes(clock: HostClock, lengthBytes: number): Promise<void> {
    const nowMs = clock.nowMs();
    this.#freeAtMs = Math.max(this.#freeAtMs, nowMs) + lengthBytes / this.bytesPerMs;
    await clock.sleep(this.#freeAtMs - nowMs);
  }

  async flush(clock: HostClock): Promise<void> {
    const reached = this.#blocks.slice();
    await clock.sleep(2);
    this.#durable = reached;
  }

  read(offset: number, bytes: Buffer): void {
    forEachPart(offset, bytes.length, (block, start, at, length) => {
      bytesOf(this.#blocks[block] ?? 0).copy(bytes, at, start, start + length);
    });
  }

  write(offset: number, bytes: Buffer): void {
    forEachPart(offset, bytes.length, (block, start, at, length) => {
      const part = bytes.subarray(at, at + length);
      const isNumber = length === BLOCK_BYTES && isZero(part.subarray(STAMP_BYTES));
      if (isNumber) {
        const stamp = part.readUInt32LE();
        if (stamp !== 0) this.dataBytes += BLOCK_BYTES;
        this.#blocks[block] = stamp;
        return;
      }
      const whole = bytesOf(this.#blocks[block] ?? 0);
      part.copy(whole, start);
      this.#blocks[block] = whole;
    });
    this.lengthBytes = Math.max(this.lengthBytes, offset + bytes.length);
  }
}

/** A copy. */
function bytesOf(block: Block): Buffer {
  if (typeof block !== 'number') return Buffer.from(block);
  const bytes = Buffer.alloc(BLOCK_BYTES);
  bytes.writeUInt32LE(block);
  return bytes;
}

function forEachPart(
  offset: number,
  lengthBytes: number,
  visit: (block: number, start: number, at: number, length: number) => void,
): void {
  for (let at = 0; at < lengthBytes;) {
    const start = (offset + at) % BLOCK_BYTES;
    const length = Math.min(lengthBytes - at, BLOCK_BYTES - start);
    visit((offset + at - start) / BLOCK_BYTES, start, at, length);
    at += length;
  }
}

class CompactIo implements IoDriver {
  readonly #disk: CompactDisk;
  readonly #clock: HostClock;

  constructor(disk: CompactDisk, clock: HostClock) {
    this.#disk = disk;
    this.#clock = clock;
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    await this.#clock.sleep(0.1);
    request.assertIs(generation);
    const bytes = Buffer.alloc(lengthBytes);
    this.#disk.read(offset, bytes);
    request.copyFrom(bytes, from);
  }

  async write(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    await this.#disk.takes(this.#clock, lengthBytes);
    request.assertIs(generation);
    const bytes = Buffer.alloc(lengthBytes);
    request.copyTo(bytes, from, lengthBytes);
    this.#disk.write(offset, bytes);
  }

  async writeZeroes(offset: number, lengthBytes: number): Promise<void> {
    await this.#clock.sleep(0.1);
    this.#disk.write(offset, Buffer.alloc(lengthBytes));
  }

  discard(): Promise<void> {
    return Promise.resolve();
  }

  async status(_offset: number, lengthBytes: number): Promise<BlockStatus> {
    return { lengthBytes, allocated: true, zero: false, data: true };
  }
}

/** Nodes of driver 'compact': each shows the disk that has its name. */
export function compactDriver(disks: ReadonlyMap<string, CompactDisk>): DriverDescription {
  return {
    name: 'compact',
    kind: 'protocol',
    options: driverOptions({}, [], false),
    async open(context): Promise<DriverInstance> {
      const disk = disks.get(context.nodeName);
      assert(disk, () => `there is no compact disk '${context.nodeName}'`);
      const { clock } = context.host;
      return {
        get lengthBytes() {
          return disk.lengthBytes;
        },
        requestAlignmentBytes: 1,
        io: new CompactIo(disk, clock),
        flush: () => disk.flush(clock),
        truncate: async (lengthBytes) => void (disk.lengthBytes = lengthBytes),
        prepareReopen: async () => ({ commit: () => undefined, abort: () => undefined }),
        info: () => ({}),
        close: () => Promise.resolve(),
      };
    },
  };
}
