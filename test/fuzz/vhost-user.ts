import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { MiB } from '../../src/base/limits.js';
import { createRealHost } from '../../src/host/real.js';
import type { SeededRandom } from '../../src/host/simulated-random.js';
import { LostChanges } from '../../src/wire/nbd/lost-changes.js';
import { encodeMessage } from '../../src/wire/vhost-user/codec.js';
import { Feature, Request } from '../../src/wire/vhost-user/constants.js';
import { VhostServer } from '../../src/wire/vhost-user/server.js';
import { MemoryTarget } from '../kit/memory-target.js';
import { PackedRingDriver } from '../kit/packed-ring-driver.js';
import type { Piece, RingDriver } from '../kit/ring-driver.js';
import { GUEST_BASE, newEvent, USER_BASE, VhostFrontEnd } from '../kit/vhost-front-end.js';
import type { UnderFuzz } from './main.js';
import { damaged, oddNumber, pick } from './random-bytes.js';

const MEMORY_BYTES = 4 * MiB;
const DISK_BYTES = MiB;
const REQUESTS = Object.values(Request);
/** How long a hostile front-end stays that has said all it has to say. */
const STAYS_MS = 30;
const host = createRealHost();

interface Disk {
  readonly server: VhostServer;
  readonly target: MemoryTarget;
  readonly path: string;
}

/** A disk's server whose front-ends say anything, in messages and in their guest's memory. */
export class VhostUnderFuzz implements UnderFuzz {
  readonly #folder: string;

  private constructor(folder: string) {
    this.#folder = folder;
  }

  static async start(folder: string): Promise<VhostUnderFuzz> {
    return new VhostUnderFuzz(folder);
  }

  async #disk(): Promise<Disk> {
    const path = join(this.#folder, randomUUID().slice(0, 8));
    const target = new MemoryTarget(DISK_BYTES);
    const changes = new LostChanges<object>();
    const lost = {
      add: (change: Parameters<typeof changes.add>[1]) => changes.add(target, change),
      overlapping: (offset: number, lengthBytes: number) => changes.overlapping(target, offset, lengthBytes),
    };
    const disk = { target, writable: true, blockSizeBytes: 512, queueCount: 2, serial: 'disk', lost };
    const address = { type: 'unix', path } as const;
    const server = await VhostServer.listen(host, address, { disk, onBroken: () => undefined });
    return { server, target, path };
  }

  /** One front-end that says anything, and then one that is honest, on one disk. */
  async meet(random: SeededRandom): Promise<void> {
    const disk = await this.#disk();
    try {
      const guest = random.chance(0.6)
        ? await this.#withRings(random, disk.path)
        : await VhostFrontEnd.connect({ host, path: disk.path, memoryBytes: MEMORY_BYTES });
      try {
        for (let left = random.below(20); left > 0 && !guest.isClosed; left--) {
          if (random.chance(0.5) || guest.queues.length === 0) sayAnything(random, guest);
          else spoilMemory(random, guest);
          if (random.chance(0.3)) await new Promise((resolve) => setImmediate(resolve));
        }
        await new Promise((resolve) => setTimeout(resolve, random.below(STAYS_MS)));
      } finally {
        guest.close();
      }
      await honest(disk.path);
    } finally {
      disk.target.release();
      await disk.server.close();
    }
  }

  #withRings(random: SeededRandom, path: string): Promise<VhostFrontEnd> {
    const features = Feature.version1 + (random.chance(0.5) ? Feature.indirect : 0n);
    return VhostFrontEnd.start({
      ...{ host, path, memoryBytes: MEMORY_BYTES, queueSize: pick(random, [1, 4, 64]), queueCount: 2 },
      features:
        features +
        (random.chance(0.5) ? Feature.eventIndex : 0n) +
        (random.chance(0.5) ? Feature.packedRing : 0n),
      wantsInflight: random.chance(0.3),
    });
  }

  async check(): Promise<void> {}

  async close(): Promise<void> {}
}

/** One that does all right is served. */
async function honest(path: string): Promise<void> {
  const guest = await VhostFrontEnd.start({ host, path, memoryBytes: MEMORY_BYTES });
  try {
    assert.equal(await guest.write(8, Buffer.alloc(512, 7)), 0);
    assert.ok((await guest.read(8, 512)).equals(Buffer.alloc(512, 7)), 'what was written is read');
  } finally {
    guest.close();
  }
}

function sayAnything(random: SeededRandom, guest: VhostFrontEnd): void {
  const request = random.chance(0.95) ? pick(random, REQUESTS) : random.below(100);
  const payload = payloadOf(random, request, guest);
  const message = damaged(random, encodeMessage(request, pick(random, [0, 0, 8]), payload), 0.1);
  const fds = descriptorsFor(random, guest);
  if (fds.length === 0 || message.length === 0) guest.socket.write(message);
  else guest.socket.sendFds?.(message, fds);
  for (const fd of fds) guest.sharing.close(fd);
}

/** Events and memory of its own. */
function descriptorsFor(random: SeededRandom, guest: VhostFrontEnd): number[] {
  if (random.chance(0.5)) return [];
  const one = (): number =>
    random.chance(0.5) ? newEvent() : guest.sharing.create('other', pick(random, [4096, MEMORY_BYTES]));
  return Array.from({ length: 1 + random.below(3) }, one);
}

function payloadOf(random: SeededRandom, request: number, guest: VhostFrontEnd): Buffer {
  const number = (): bigint => BigInt(random.chance(0.05) ? 2 ** 53 : oddNumber(random, MEMORY_BYTES));
  const numbers = (...values: bigint[]): Buffer => {
    const bytes = Buffer.alloc(8 * values.length);
    values.forEach((value, i) => bytes.writeBigUInt64LE(value, 8 * i));
    return bytes;
  };
  const region = (): bigint[] => [
    BigInt(GUEST_BASE) + (random.chance(0.5) ? 0n : number()),
    random.chance(0.5) ? BigInt(guest.memory.length) : number(),
    BigInt(USER_BASE) + (random.chance(0.5) ? 0n : number()),
    random.chance(0.7) ? 0n : number(),
  ];
  switch (request) {
    case Request.setMemTable: {
      const count = random.below(10);
      return numbers(BigInt(count), ...Array.from({ length: count }, region).flat());
    }
    case Request.addMemReg:
    case Request.remMemReg:
      return numbers(0n, ...region());
    case Request.setVringAddr: {
      const user = (): bigint => BigInt(USER_BASE) + number();
      return numbers(BigInt(random.below(4)), user(), user(), user(), number());
    }
    case Request.setVringNum:
    case Request.setVringBase:
    case Request.setVringEnable:
    case Request.getVringBase:
      return numbers(BigInt(random.below(3)) + (BigInt(oddNumber(random, 65_536)) % 2n ** 32n) * 2n ** 32n);
    case Request.setVringKick:
    case Request.setVringCall:
    case Request.setVringErr:
      return numbers(BigInt(random.below(3)) + (random.chance(0.3) ? 256n : 0n));
    default:
      return random.chance(0.5) ? numbers(number(), number(), number()) : random.bytes(random.below(300));
  }
}

/** A guest that writes anything to its rings, and tells the device to look. */
function spoilMemory(random: SeededRandom, guest: VhostFrontEnd): void {
  const { driver, kick } = guest.queue(random.below(guest.queues.length));
  const piece = {
    address: GUEST_BASE + oddNumber(random, MEMORY_BYTES),
    lengthBytes: oddNumber(random, MEMORY_BYTES) % 2 ** 32,
  };
  if (random.chance(0.2)) {
    const at = random.below(guest.memory.length - 64);
    guest.memory.set(random.bytes(1 + random.below(64)), at);
  } else if (driver instanceof PackedRingDriver) spoilPacked(random, guest, driver, piece);
  else spoilSplit(random, guest, driver, piece);
  if (random.chance(0.8)) kick.signal();
}

function spoilSplit(random: SeededRandom, guest: VhostFrontEnd, driver: RingDriver, piece: Piece): void {
  switch (random.below(4)) {
    case 0:
      driver.offer(random.below(0x10000));
      break;
    case 1:
      driver.setIndex(random.below(0x10000));
      break;
    case 2:
      guest.memory.set(random.bytes(16 * driver.size), driver.places.descriptors - GUEST_BASE);
      driver.offer(random.below(driver.size));
      break;
    default: {
      const index = random.below(driver.size);
      const { descriptors } = driver.places;
      driver.writeDescriptor(descriptors, index, piece, random.below(8), random.below(0x10000));
      driver.offer(index);
    }
  }
}

function spoilPacked(
  random: SeededRandom,
  guest: VhostFrontEnd,
  driver: PackedRingDriver,
  piece: Piece,
): void {
  const { descriptors } = driver.places;
  const index = random.below(driver.size);
  switch (random.below(4)) {
    case 0:
      driver.offer(random.below(0x10000), [{ piece, flags: random.below(8) }]);
      break;
    case 1:
      driver.writeDescriptor(descriptors, index, piece, random.below(0x10000), random.below(0x10000));
      break;
    case 2:
      guest.memory.set(random.bytes(16 * driver.size), descriptors - GUEST_BASE);
      break;
    default: {
      const count = 1 + random.below(driver.size);
      const id = random.below(driver.size);
      driver.offer(
        id,
        Array.from({ length: count }, () => ({ piece, flags: random.below(8) })),
      );
    }
  }
}
