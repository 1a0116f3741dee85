import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errnoError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import type { BlockBackend } from './backend.js';
import { Flag, hasFlag } from './request.js';
import { ZeroTarget } from './zero-target.js';

const UNIT = MiB / 4;
const UNITS = 64;

/** What a unit holds: `gone` reads as anything, and the target says that it is data. */
type Unit = 'data' | 'zero' | 'gone';

/** How a target does what it is asked. */
interface Ways {
  zeroesFast?: boolean;
  /** What a discarded unit is. */
  discarded?: (index: number) => Unit;
  ignoresDiscards?: boolean;
  hasStatus?: boolean;
  /** A format that has nothing where it was zeroed and has nothing below it. */
  hasNothing?: boolean;
  /** A peer's, over so many connections by now. */
  connection?: number;
}

/** A target of units, all of which hold data but for the first and the last. */
class FakeTarget {
  readonly units: Unit[] = Array.from({ length: UNITS }, (_, i) => (i % (UNITS - 1) === 0 ? 'zero' : 'data'));
  writtenBytes = 0;
  fastTries = 0;
  discards = 0;
  questions = 0;

  constructor(readonly ways: Ways) {}

  get backend(): BlockBackend {
    const { ways } = this;
    const node = {
      lengthBytes: UNITS * UNIT,
      instance: {
        io: {
          get connection() {
            return ways.connection;
          },
        },
      },
      skipFilters: () => ({ driver: { options: { backing: this.ways.hasNothing === true } } }),
      modes: { discard: this.ways.ignoresDiscards === true ? 'ignore' : 'unmap' },
      statusThroughChain: (offset: number, lengthBytes: number) => this.#status(offset, lengthBytes),
    };
    return {
      node,
      during: async (work: () => unknown): Promise<unknown> => work(),
      writeZeroes: async (offset: number, lengthBytes: number, flags: number): Promise<void> =>
        this.#writeZeroes(offset, lengthBytes, flags),
      write: async (offset: number, bytes: Buffer): Promise<void> => {
        this.writtenBytes += bytes.length;
        this.units.fill('zero', offset / UNIT, (offset + bytes.length) / UNIT);
      },
      discard: async (offset: number, lengthBytes: number): Promise<void> => {
        this.discards++;
        for (let i = offset / UNIT; i < (offset + lengthBytes) / UNIT; i++)
          this.units[i] = this.ways.discarded?.(i) ?? this.units[i] ?? 'zero';
      },
    } as unknown as BlockBackend;
  }

  #status(offset: number, lengthBytes: number): unknown {
    this.questions++;
    if (this.ways.hasStatus === false) throw errnoError('EIO');
    const first = offset / UNIT;
    const isZero = this.units[first] === 'zero';
    let end = first;
    while (end < (offset + lengthBytes) / UNIT && (this.units[end] === 'zero') === isZero) end++;
    const allocated = this.ways.hasNothing !== true || this.units[first] !== 'gone';
    return { lengthBytes: (end - first) * UNIT, zero: isZero || !allocated, allocated, depth: 0 };
  }

  #writeZeroes(offset: number, lengthBytes: number, flags: number): void {
    const isFast = hasFlag(flags, Flag.noFallback);
    if (isFast) this.fastTries++;
    if (this.ways.zeroesFast !== true) {
      if (isFast) throw errnoError('ENOTSUP');
      this.writtenBytes += lengthBytes;
    }
    const kind = this.ways.hasNothing === true ? 'gone' : 'zero';
    this.units.fill(kind, offset / UNIT, (offset + lengthBytes) / UNIT);
  }
}

async function fill(ways: Ways, unmap = true, believesStatus = true): Promise<FakeTarget> {
  const target = new FakeTarget(ways);
  const zeroes = new ZeroTarget(target.backend, { unmap, believesStatus });
  await zeroes.fill(0, (UNITS / 2) * UNIT);
  await zeroes.fill((UNITS / 2) * UNIT, (UNITS / 2) * UNIT);
  assert.deepEqual(new Set(target.units), new Set(['zero']));
  return target;
}

const UNKNOWN = (UNITS - 2) * UNIT;

test('zeroing that costs no data is all that is done where there is such', async () => {
  const target = await fill({ zeroesFast: true });
  assert.deepEqual([target.writtenBytes, target.discards], [0, 0]);
});

test('a discard is believed as far as block status says that it made zeroes', async () => {
  const all = await fill({ discarded: () => 'zero' });
  assert.deepEqual([all.writtenBytes, all.discards, all.fastTries], [0, 2, 1]);
  const ends = await fill({ discarded: (i) => (i === 1 || i === UNITS - 2 ? 'gone' : 'zero') });
  assert.deepEqual([ends.writtenBytes, ends.discards], [2 * UNIT, 2]);
});

test('a discard that does not show as zeroes is not believed, nor tried again', async () => {
  for (const ways of [{ discarded: (): Unit => 'gone' }, {}, { hasStatus: false }]) {
    const target = await fill(ways);
    assert.deepEqual([target.writtenBytes >= UNKNOWN, target.discards], [true, 1]);
  }
});

test('nothing is discarded that must keep its space, or is to get a backing file', async () => {
  const ways = { discarded: (): Unit => 'zero' };
  for (const target of [
    await fill({ ...ways, ignoresDiscards: true }),
    await fill(ways, false),
    await fill(ways, true, false),
  ])
    assert.deepEqual([target.writtenBytes, target.discards], [UNKNOWN, 0]);
});

test('a target that is to get a backing file has zeroes of its own, whatever zeroing leaves there', async () => {
  const target = new FakeTarget({ hasNothing: true });
  await new ZeroTarget(target.backend, { unmap: true, believesStatus: false }).write(0, UNITS * UNIT);
  assert.deepEqual(new Set(target.units), new Set(['zero']));
});

test('a peer is asked once for what it says is zeroes, and again after a change, or a loss', async () => {
  for (const [connection, questions] of [
    [3, 1],
    [undefined, 8],
  ] as const) {
    const target = new FakeTarget({ ...(connection !== undefined && { connection }) });
    target.units.fill('zero');
    const { backend } = target;
    const zeroes = new ZeroTarget(backend, { unmap: true, believesStatus: true });
    for (let i = 0; i < 8; i++)
      assert.deepEqual(await zeroes.first(i * UNIT, UNIT), { zero: true, isOwn: true, lengthBytes: UNIT });
    assert.equal(target.questions, questions);
    assert.equal(zeroes.isKnown(9 * UNIT, UNIT), connection !== undefined);
    target.units[9] = 'data';
    backend.changes?.(9 * UNIT, UNIT);
    assert.equal(zeroes.isKnown(9 * UNIT, UNIT), false);
    assert.equal((await zeroes.first(9 * UNIT, UNIT)).zero, false);
    target.ways.connection = 4;
    assert.equal(zeroes.isKnown(10 * UNIT, UNIT), false);
  }
});

test('a peer whose target is to get a backing file is not believed', async () => {
  const target = new FakeTarget({ connection: 1 });
  target.units.fill('zero');
  const zeroes = new ZeroTarget(target.backend, { unmap: true, believesStatus: false });
  await zeroes.first(0, UNIT);
  assert.equal(zeroes.isKnown(UNIT, UNIT), false);
});
