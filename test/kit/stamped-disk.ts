import { assert } from '../../src/base/assert.js';
import type { DriverDescription, DriverInstance, IoDriver } from '../../src/block/driver.js';
import type { BlockStatus, IoRequest } from '../../src/block/request.js';
import type { HostClock } from '../../src/host/host.js';
import type { SeededRandom } from '../../src/host/simulated.js';
import { driverOptions } from '../../src/schema/blockdev-options.js';

/** What it holds is one number for each such block, which is what is written to the block's first bytes. */
export const STAMPED_BLOCK_BYTES = 64 * 1024;

/** A large disk that takes no memory, with a write cache that a power loss takes away in part. */
export class StampedDisk {
  readonly lengthBytes: number;
  readonly bytesPerMs: number;
  stamps: Uint32Array;
  #durable: Uint32Array;
  writtenBytes = 0;
  #freeAtMs = 0;

  constructor(lengthBytes: number, bytesPerMs: number) {
    this.lengthBytes = lengthBytes;
    this.bytesPerMs = bytesPerMs;
    this.stamps = new Uint32Array(lengthBytes / STAMPED_BLOCK_BYTES);
    this.#durable = this.stamps.slice();
  }

  /** Fills it, durably, with numbers from 1 on. */
  fill(): void {
    this.stamps.forEach((_, block) => (this.stamps[block] = block + 1));
    this.#durable = this.stamps.slice();
  }

  /** Of what was not flushed, some is there. */
  powerLoss(random: SeededRandom): void {
    this.stamps.forEach((_, block) => {
      if (random.below(2) === 0) this.stamps[block] = this.#durable[block] ?? 0;
    });
    this.#durable = this.stamps.slice();
    this.#freeAtMs = 0;
  }

  /** One request after the other, at the disk's rate. */
  async takes(clock: HostClock, lengthBytes: number): Promise<void> {
    const nowMs = clock.nowMs();
    this.#freeAtMs = Math.max(this.#freeAtMs, nowMs) + lengthBytes / this.bytesPerMs;
    await clock.sleep(this.#freeAtMs - nowMs);
  }

  async flush(clock: HostClock): Promise<void> {
    const reached = this.stamps.slice();
    await clock.sleep(2);
    this.#durable = reached;
  }
}

class StampedIo implements IoDriver {
  readonly #disk: StampedDisk;
  readonly #clock: HostClock;

  constructor(disk: StampedDisk, clock: HostClock) {
    this.#disk = disk;
    this.#clock = clock;
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    await this.#clock.sleep(0.1);
    request.assertIs(generation);
    forEachBlock(offset, lengthBytes, (block, at) => {
      const stamp = Buffer.alloc(4);
      stamp.writeUInt32LE(this.#disk.stamps[block] ?? 0);
      request.copyFrom(stamp, from + at);
    });
  }

  async write(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    this.#disk.writtenBytes += lengthBytes;
    await this.#disk.takes(this.#clock, lengthBytes);
    request.assertIs(generation);
    forEachBlock(offset, lengthBytes, (block, at) => {
      const stamp = Buffer.alloc(4);
      request.copyTo(stamp, from + at, 4);
      this.#disk.stamps[block] = stamp.readUInt32LE();
    });
  }

  async writeZeroes(offset: number, lengthBytes: number): Promise<void> {
    await this.#clock.sleep(0.1);
    forEachBlock(offset, lengthBytes, (block) => (this.#disk.stamps[block] = 0));
  }

  discard(): Promise<void> {
    return Promise.resolve();
  }

  async status(_offset: number, lengthBytes: number): Promise<BlockStatus> {
    return { lengthBytes, allocated: true, zero: false, data: true };
  }
}

function forEachBlock(offset: number, lengthBytes: number, visit: (block: number, at: number) => void): void {
  const isWhole = offset % STAMPED_BLOCK_BYTES === 0 && lengthBytes % STAMPED_BLOCK_BYTES === 0;
  assert(isWhole, () => `${lengthBytes} bytes at ${offset} are no whole blocks`);
  for (let at = 0; at < lengthBytes; at += STAMPED_BLOCK_BYTES)
    visit((offset + at) / STAMPED_BLOCK_BYTES, at);
}

/** Nodes of driver 'stamped': each shows the disk that has its name. */
export function stampedDriver(disks: ReadonlyMap<string, StampedDisk>): DriverDescription {
  return {
    name: 'stamped',
    kind: 'protocol',
    options: driverOptions({}, [], false),
    async open(context): Promise<DriverInstance> {
      const disk = disks.get(context.nodeName);
      assert(disk, () => `there is no stamped disk '${context.nodeName}'`);
      const { clock } = context.host;
      return {
        lengthBytes: disk.lengthBytes,
        requestAlignmentBytes: STAMPED_BLOCK_BYTES,
        io: new StampedIo(disk, clock),
        flush: () => disk.flush(clock),
        prepareReopen: async () => ({ commit: () => undefined, abort: () => undefined }),
        info: () => ({}),
        close: () => Promise.resolve(),
      };
    },
  };
}
