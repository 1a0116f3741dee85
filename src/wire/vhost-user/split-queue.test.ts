import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RingDriver } from '../../../test/kit/ring-driver.js';
import { sharedMemoryOf } from '../../../test/kit/shared-memory.js';
import { GuestMemory, MappedRegion } from './guest-memory.js';
import { Chain } from './chain.js';
import { SplitQueue } from './split-queue.js';

const BASE = 0x10000;
const USER = 0x7000_0000;
const BYTES = 1024 * 1024;
const SIZE = 16;

interface Bed {
  driver: RingDriver;
  queue: SplitQueue;
  memory: GuestMemory;
  chain: Chain;
}

function bed(hasEventIndex = false): Bed {
  const buffer = Buffer.alloc(BYTES);
  const region = { guestAddress: BASE, lengthBytes: BYTES, userAddress: USER, fileOffset: 0 };
  const memory = new GuestMemory([new MappedRegion(region, sharedMemoryOf(buffer))]);
  const driver = new RingDriver(buffer, BASE, 0, SIZE, hasEventIndex);
  const queue = new SplitQueue(0);
  queue.setSize(SIZE);
  const { descriptors, available, used } = driver.places;
  const user = (address: number): number => address - BASE + USER;
  queue.setAddresses({
    ...{ index: 0, flags: 0, log: 0 },
    ...{ descriptors: user(descriptors), available: user(available), used: user(used) },
  });
  queue.map(memory, hasEventIndex);
  queue.start();
  return { driver, queue, memory, chain: new Chain() };
}

const piece = (offset: number, lengthBytes: number): { address: number; lengthBytes: number } => ({
  address: BASE + 8192 + offset,
  lengthBytes,
});

test('chains are taken in order and given back in any, round and round', () => {
  const { driver, queue, memory, chain } = bed();
  for (let round = 0; round < 70_000; round += 2) {
    const one = driver.add([piece(0, 16)], [piece(64, 512), piece(1024, 1)]);
    const other = driver.add([piece(16, 16), piece(2048, 100)], [piece(1025, 1)]);
    assert.equal(queue.take(memory, chain), one);
    assert.deepEqual([chain.out.totalBytes, chain.in.totalBytes], [16, 513]);
    assert.equal(queue.take(memory, chain), other);
    assert.deepEqual([chain.out.totalBytes, chain.in.totalBytes], [116, 1]);
    assert.equal(queue.take(memory, chain), -1);
    queue.give(other, 1);
    queue.give(one, 513);
    assert.deepEqual(driver.take(), [
      { head: other, filledBytes: 1 },
      { head: one, filledBytes: 513 },
    ]);
  }
});

test('without event indexes the flags say who wants to be told', () => {
  const { driver, queue } = bed();
  queue.suppress();
  assert.equal(driver.mustKick, false);
  assert.equal(queue.listen(), false);
  assert.equal(driver.mustKick, true);
  driver.add([piece(0, 16)], [piece(64, 1)]);
  assert.equal(queue.listen(), true);
  queue.give(0, 1);
  assert.equal(queue.mustTell(false), true);
  assert.equal(queue.mustTell(false), false);
  driver.noNotification = true;
  queue.give(0, 1);
  assert.equal(queue.mustTell(false), false);
});

test('with event indexes the driver is told when its place is passed, across the end of the numbers', () => {
  const { driver, queue, memory, chain } = bed(true);
  for (let given = 0; given < 70_000; given++) {
    const head = driver.add([piece(0, 16)], [piece(64, 1)]);
    queue.take(memory, chain);
    // The driver wants to hear of this one, or of the next.
    const wants = given % 3 === 0;
    driver.wantEvent(wants ? given : given + 1);
    queue.give(head, 1);
    assert.equal(queue.mustTell(false), wants || given === 0, String(given));
    driver.take();
  }
});

test('what cannot be a chain is found', () => {
  const wrong: ReadonlyArray<readonly [string, (bed: Bed) => void, RegExp]> = [
    ['an index too far', ({ driver }) => driver.setIndex(SIZE + 1), /more chains than places/],
    ['an index that goes back', ({ driver }) => driver.setIndex(0xffff), /more chains than places/],
    ['a head beyond the table', ({ driver }) => driver.offer(SIZE), /no descriptor 16/],
    ['a descriptor of no bytes', ({ driver }) => driver.add([piece(0, 0)], []), /no bytes/],
    [
      'an address beyond',
      ({ driver }) => driver.add([{ address: BASE + BYTES, lengthBytes: 1 }], []),
      /no region/,
    ],
    ['an address before', ({ driver }) => driver.add([{ address: 0, lengthBytes: 1 }], []), /no region/],
    [
      'a length beyond',
      ({ driver }) => driver.add([{ address: BASE + BYTES - 16, lengthBytes: 17 }], []),
      /no region/,
    ],
    ['a length of 4 GiB', ({ driver }) => driver.add([piece(0, 0xffff_ffff)], []), /no region/],
    [
      'out after in',
      ({ driver }) => {
        const { descriptors } = driver.places;
        driver.writeDescriptor(descriptors, 0, piece(0, 1), 2 + 1, 1);
        driver.writeDescriptor(descriptors, 1, piece(0, 1), 0, 0);
        driver.offer(0);
      },
      /not in order/,
    ],
    [
      'a loop',
      ({ driver }) => {
        driver.writeDescriptor(driver.places.descriptors, 0, piece(0, 1), 1, 1);
        driver.writeDescriptor(driver.places.descriptors, 1, piece(0, 1), 1, 0);
        driver.offer(0);
      },
      /loop/,
    ],
    [
      'a next beyond the table',
      ({ driver }) => {
        driver.writeDescriptor(driver.places.descriptors, 0, piece(0, 1), 1, SIZE);
        driver.offer(0);
      },
      /no descriptor 16/,
    ],
    ...[0, 15, 17, 16 * 1025].map(
      (lengthBytes) =>
        [
          `an indirect table of ${lengthBytes} bytes`,
          ({ driver }: Bed) => {
            driver.writeDescriptor(driver.places.descriptors, 0, piece(0, lengthBytes), 4, 0);
            driver.offer(0);
          },
          /indirect table/,
        ] as const,
    ),
    [
      'an indirect table in an indirect table',
      ({ driver }) => {
        driver.writeDescriptor(BASE + 8192, 0, piece(64, 16), 4, 0);
        driver.writeDescriptor(driver.places.descriptors, 0, piece(0, 16), 4, 0);
        driver.offer(0);
      },
      /indirect descriptor in a chain/,
    ],
    [
      'a chain after an indirect table',
      ({ driver }) => {
        driver.writeDescriptor(driver.places.descriptors, 0, piece(0, 16), 4 + 1, 1);
        driver.offer(0);
      },
      /goes on/,
    ],
  ];
  for (const [what, spoil, message] of wrong) {
    const one = bed();
    spoil(one);
    assert.throws(() => one.queue.take(one.memory, one.chain), { message, errno: 'EPROTO' }, what);
  }
});

test('rings lie in one region, aligned, and have a power of two of places', () => {
  const { queue, memory } = bed();
  const { addresses } = queue;
  assert.ok(addresses);
  for (const size of [0, 3, 65536]) assert.throws(() => queue.setSize(size), /a queue of/);
  const places = [
    [{ descriptors: USER + 8 }, /not aligned/],
    [{ available: USER + 1 }, /not aligned/],
    [{ used: USER + 2 }, /not aligned/],
    [{ used: USER + BYTES - 64 }, /no region/],
    [{ used: USER - 64 }, /no region/],
    [{ descriptors: 2 ** 52 }, /no region/],
  ] as const;
  for (const [change, message] of places) {
    queue.setAddresses({ ...addresses, ...change });
    assert.throws(() => queue.map(memory, false), message);
  }
});

test('memory that spans two regions is two stretches', () => {
  const [low, high] = [Buffer.alloc(4096, 1), Buffer.alloc(4096, 2)];
  const at = (buffer: Buffer, guestAddress: number): MappedRegion =>
    new MappedRegion(
      { guestAddress, lengthBytes: buffer.length, userAddress: guestAddress, fileOffset: 0 },
      sharedMemoryOf(buffer),
    );
  const memory = new GuestMemory([at(high, 8192), at(low, 4096)]);
  const { in: stretches } = new Chain();
  memory.addTo(stretches, 8190, 4);
  assert.deepEqual(stretches.lengths, [2, 2]);
  assert.equal(stretches.readUint32(0), 0x02020101);
  assert.throws(() => memory.addTo(stretches, 8190, 4 + 4096), /no region/);
  assert.throws(() => new GuestMemory([at(high, 8192), at(low, 4097)]), /overlap/);
});
