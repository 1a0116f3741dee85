import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PackedRingDriver } from '../../../test/kit/packed-ring-driver.js';
import { sharedMemoryOf } from '../../../test/kit/shared-memory.js';
import { Chain } from './chain.js';
import { GuestMemory, MappedRegion } from './guest-memory.js';
import { packedInflightBytes } from './packed-inflight.js';
import { PackedQueue } from './packed-queue.js';

const BASE = 0x10000;
const USER = 0x7000_0000;
const BYTES = 1024 * 1024;
const SIZE = 16;

interface Bed {
  buffer: Buffer;
  driver: PackedRingDriver;
  queue: PackedQueue;
  memory: GuestMemory;
  chain: Chain;
}

/** A device on a ring in `buffer`; `kept`: where it keeps its requests. Answers what it is to repeat, too. */
function deviceOn(
  buffer: Buffer,
  { places }: PackedRingDriver,
  hasEventIndex: boolean,
  kept?: Buffer,
): { queue: PackedQueue; memory: GuestMemory; heads: number[] } {
  const region = { guestAddress: BASE, lengthBytes: BYTES, userAddress: USER, fileOffset: 0 };
  const memory = new GuestMemory([new MappedRegion(region, sharedMemoryOf(buffer))]);
  const queue = new PackedQueue(0);
  queue.setSize(SIZE);
  const user = (address: number): number => address - BASE + USER;
  queue.setAddresses({
    ...{ index: 0, flags: 0, log: 0 },
    descriptors: user(places.descriptors),
    available: user(places.available),
    used: user(places.used),
  });
  if (kept) queue.setInflight(sharedMemoryOf(kept), SIZE);
  queue.map(memory, hasEventIndex);
  return { queue, memory, heads: queue.start() };
}

function bed(hasEventIndex = false): Bed {
  const buffer = Buffer.alloc(BYTES);
  const driver = new PackedRingDriver(buffer, BASE, 0, SIZE, hasEventIndex);
  return { buffer, driver, ...deviceOn(buffer, driver, hasEventIndex), chain: new Chain() };
}

const piece = (offset: number, lengthBytes: number): { address: number; lengthBytes: number } => ({
  address: BASE + 8192 + offset,
  lengthBytes,
});

test('chains of a packed ring are taken in order and given back in any, round and round', () => {
  const { driver, queue, memory, chain } = bed();
  for (let round = 0; round < 5000; round++) {
    const one = driver.add([piece(0, 16)], [piece(64, 512), piece(1024, 1)]);
    const table = BASE + 65536;
    const other = driver.add([piece(16, 16), piece(2048, 100)], [piece(1025, 1)], table);
    const third = driver.add([piece(32, 16)], [piece(1026, 1)]);
    assert.equal(queue.take(memory, chain), one);
    assert.deepEqual([chain.out.totalBytes, chain.in.totalBytes], [16, 513]);
    assert.equal(queue.take(memory, chain), other);
    assert.deepEqual([chain.out.totalBytes, chain.in.totalBytes], [116, 1]);
    assert.equal(queue.take(memory, chain), third);
    assert.equal(queue.hasMore(), false);
    assert.equal(queue.take(memory, chain), -1);
    queue.give(third, 1);
    queue.give(other, 0);
    assert.deepEqual(
      driver.take().map(({ head }) => head),
      [third, other],
    );
    queue.give(one, 513);
    assert.deepEqual(driver.take(), [{ head: one, filledBytes: 513 }]);
  }
});

test('a packed ring without event indexes says who wants to be told by flags', () => {
  const { driver, queue, memory, chain } = bed();
  queue.suppress();
  assert.equal(driver.mustKick, false);
  assert.equal(queue.listen(), false);
  assert.equal(driver.mustKick, true);
  const give = (): void => {
    driver.add([piece(0, 16)], [piece(64, 1)]);
    queue.give(queue.take(memory, chain), 1);
  };
  give();
  assert.equal(queue.mustTell(false), true);
  assert.equal(queue.mustTell(false), false);
  driver.noNotification = true;
  give();
  assert.equal(queue.mustTell(false), false);
  give();
  assert.equal(queue.mustTell(true), true, 'nothing is left');
});

test('a packed ring with event indexes tells when the descriptor is given back, across rounds', () => {
  const { driver, queue, memory, chain } = bed(true);
  for (let given = 0; given < 1000; given++) {
    const head = driver.add([piece(0, 16)], [piece(64, 1)]);
    assert.equal(queue.hasMore(), true);
    queue.take(memory, chain);
    assert.equal(queue.listen(), false);
    // The driver wants to hear of its second descriptor, or of the one behind it.
    const wants = given % 3 === 0;
    driver.wantEvent(wants ? 1 : 2);
    queue.give(head, 1);
    assert.equal(queue.mustTell(false), wants || given === 0, String(given));
    driver.take();
  }
  queue.listen();
  driver.add([piece(0, 16)], [], BASE + 65536);
  assert.equal(driver.mustKick, true);
  driver.add([piece(0, 16)], [], BASE + 65536);
  assert.equal(driver.mustKick, false);
});

test('a device that begins tells once, whatever one before it has told', () => {
  for (const hasEventIndex of [false, true]) {
    const { queue } = bed(hasEventIndex);
    assert.equal(queue.mustTell(false), true);
    assert.equal(queue.mustTell(false), false);
  }
});

for (const hasEventIndex of [false, true])
  test(`two whole rounds given back at once are told, event indexes: ${hasEventIndex}`, () => {
    const { driver, queue, memory, chain } = bed(hasEventIndex);
    const give = (count: number): void => {
      for (let i = 0; i < count; i++) {
        driver.add([piece(0, 16)], [piece(64, 1)]);
        queue.give(queue.take(memory, chain), 1);
        // It polls, and wants to be told of the next one all the same.
        driver.take();
      }
    };
    give(1);
    assert.equal(queue.mustTell(false), true);
    assert.equal(queue.mustTell(false), false);
    // Chains have two descriptors: SIZE of them come to the same place with the same wrap counter.
    for (const count of [SIZE, SIZE + 1, 3 * SIZE]) {
      give(count);
      assert.equal(queue.mustTell(false), true, String(count));
      assert.equal(queue.mustTell(false), false);
    }
  });

test('what cannot be a chain of a packed ring is found', () => {
  const wrong: ReadonlyArray<readonly [string, (bed: Bed) => void, RegExp]> = [
    ['a descriptor of no bytes', ({ driver }) => driver.add([piece(0, 0)], []), /no bytes/],
    [
      'an address beyond',
      ({ driver }) => driver.add([{ address: BASE + BYTES, lengthBytes: 1 }], []),
      /no region/,
    ],
    [
      'an identifier beyond',
      ({ driver }) => driver.offer(SIZE, [{ piece: piece(0, 1), flags: 0 }]),
      /no buffer 16/,
    ],
    [
      'out after in',
      ({ driver }) =>
        driver.offer(0, [
          { piece: piece(0, 1), flags: 2 },
          { piece: piece(0, 1), flags: 0 },
        ]),
      /not in order/,
    ],
    [
      'a chain that never ends',
      ({ driver }) =>
        driver.offer(
          0,
          Array.from({ length: SIZE + 1 }, () => ({ piece: piece(0, 1), flags: 1 })),
        ),
      /more chains than places/,
    ],
    ...[0, 15, 17, 16 * 1025].map(
      (lengthBytes) =>
        [
          `an indirect table of ${lengthBytes} bytes`,
          ({ driver }: Bed) => driver.offer(0, [{ piece: piece(0, lengthBytes), flags: 4 }]),
          /indirect table/,
        ] as const,
    ),
    [
      'an indirect table in an indirect table',
      ({ driver }) => {
        driver.writeDescriptor(BASE + 8192, 0, piece(64, 16), 4, 0);
        driver.offer(0, [{ piece: piece(0, 16), flags: 4 }]);
      },
      /indirect descriptor in a table/,
    ],
    [
      'an indirect table in a chain',
      ({ driver }) =>
        driver.offer(0, [
          { piece: piece(0, 16), flags: 0 },
          { piece: piece(0, 16), flags: 4 },
        ]),
      /indirect descriptor in a chain/,
    ],
    [
      'a chain after an indirect table',
      ({ driver }) => driver.offer(0, [{ piece: piece(0, 16), flags: 4 + 1 }]),
      /goes on/,
    ],
    [
      'an identifier that is under way',
      ({ driver, queue, memory, chain }) => {
        driver.offer(3, [{ piece: piece(0, 16), flags: 0 }]);
        queue.take(memory, chain);
        driver.offer(3, [{ piece: piece(0, 16), flags: 0 }]);
      },
      /buffer 3 is under way/,
    ],
  ];
  for (const [what, spoil, message] of wrong) {
    const one = bed();
    spoil(one);
    assert.throws(() => one.queue.take(one.memory, one.chain), { message, errno: 'EPROTO' }, what);
  }
});

test('a packed ring goes on where it is said to stand', () => {
  const { queue } = bed();
  for (const base of [0x8000_8000, 0x0003_8004, 0x800f_000f]) {
    queue.setBase(base);
    queue.start();
    assert.equal(queue.base, base);
  }
  for (const base of [0x8010_8000, 0x8000_8010]) {
    queue.setBase(base);
    assert.throws(() => queue.start(), /queue 0 at/);
  }
});

test('whenever a device ends, the next one repeats each request that was not given back, and no other', () => {
  const { buffer, driver } = bed();
  const kept = Buffer.alloc(packedInflightBytes(SIZE));
  const { queue, memory } = deviceOn(buffer, driver, false, kept);
  const chain = new Chain();
  let states = 0;
  for (let round = 0; round < 40; round++) {
    // All places are in use now and then.
    const lengths = [[1, 2, 3], [8, 8], [16], [2, 1, 9, 4]][round % 4] ?? [];
    const heads = lengths.map((length) =>
      driver.add(
        Array.from({ length }, (_, i) => piece(16 * i, 16)),
        [],
      ),
    );
    for (const length of lengths) {
      queue.take(memory, chain);
      assert.equal(chain.out.totalBytes, 16 * length);
    }
    const order = round % 2 === 0 ? heads : [...heads].reverse();
    for (const [i, head] of order.entries()) {
      const left = order.slice(i);
      const before = Buffer.from(kept);
      states += checkNext(
        buffer,
        driver,
        before,
        heads.filter((one) => left.includes(one)),
        lengths,
        heads,
      );
      queue.give(head, 0);
      const rest = heads.filter((one) => left.slice(1).includes(one));
      states += checkNext(buffer, driver, Buffer.from(kept), rest, lengths, heads);
      // The ring has it, the memory not yet.
      const torn = Buffer.from(kept);
      before.copy(torn, 14, 14, 16);
      before.copy(torn, 18, 18, 20);
      before.copy(torn, 21, 21, 22);
      for (let entry = 0; entry < SIZE; entry++)
        before.copy(torn, 32 + 32 * entry, 32 + 32 * entry, 33 + 32 * entry);
      states += checkNext(buffer, driver, torn, rest, lengths, heads);
    }
    driver.take();
  }
  assert.ok(states > 200, String(states));
});

/** A device that comes after one that left this behind; the ring is not changed. */
function checkNext(
  buffer: Buffer,
  driver: PackedRingDriver,
  kept: Buffer,
  expected: readonly number[],
  lengths: readonly number[],
  heads: readonly number[],
): number {
  const { queue, memory, heads: found } = deviceOn(Buffer.from(buffer), driver, false, Buffer.from(kept));
  assert.deepEqual(found, expected);
  const chain = new Chain();
  for (const head of found) {
    queue.readAgain(head, memory, chain);
    assert.equal(chain.out.totalBytes, 16 * (lengths[heads.indexOf(head)] ?? 0));
    queue.give(head, 0);
  }
  assert.equal(queue.take(memory, chain), -1);
  return 1;
}
