import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import type { JsonObject } from '../../src/schema/types.js';
import { HeldClock } from '../kit/held-clock.js';
import { EngineBed, MiB } from './engine-bed.js';

interface Heat {
  region: number;
  'half-life': number;
  counted: number;
  regions: Array<{ start: number; rate: number }>;
}

/** An engine whose clock stands until a test moves it; timers of 30 s and more ring by it. */
class HeatBed extends EngineBed {
  readonly #clock: HeldClock;

  constructor(t: TestContext) {
    const host = createRealHost();
    const clock = new HeldClock(host.clock, 30_000);
    super(t, { host: { ...host, clock } });
    this.#clock = clock;
  }

  pass(ms: number): void {
    this.#clock.pass(ms);
  }

  async heat(args: JsonObject = {}): Promise<Heat> {
    return (await this.execute('x-query-write-heat', { node: 'virtio0', ...args })) as unknown as Heat;
  }

  heats(node: string): number {
    return this.engine.graph.node(node).heats.length;
  }
}

test('what is written is told by region, as a rate of which half is forgotten in a half-life', async (t) => {
  const bed = new HeatBed(t);
  await bed.chain('A');
  const args = { region: MiB, 'half-life': 10_000 };
  assert.deepEqual(await bed.heat(args), { region: MiB, 'half-life': 10_000, counted: 0, regions: [] });
  await bed.guest('write -P 1 512k 1M');
  await bed.guest('write -P 1 4M 1k');
  // A trim or zeroes of the whole disk move no data.
  await bed.guest('write -z 2M 2M');
  await bed.guest('discard 6M 1M');
  bed.pass(10_000);
  const first = await bed.heat(args);
  assert.deepEqual(first.regions, [
    { start: 0, rate: Math.round(MiB / 20) },
    { start: MiB, rate: Math.round(MiB / 20) },
    { start: 4 * MiB, rate: Math.round(1024 / 10) },
  ]);
  assert.equal(first.counted, 10_000);
  // The first ten seconds weigh half as much as the next ten, in which nothing is written.
  bed.pass(10_000);
  const [region] = (await bed.heat(args)).regions;
  assert.equal(region?.rate, Math.round(MiB / 20 / 3));
  // However often somebody looks meanwhile, it is the same.
  bed.pass(5000);
  await bed.heat(args);
  bed.pass(5000);
  const often = (await bed.heat(args)).regions[0]?.rate ?? 0;
  assert.ok(Math.abs(often - MiB / 20 / 7) <= 1, String(often));
});

test('nothing is counted before somebody asks, nor when nobody has asked for half a minute', async (t) => {
  const bed = new HeatBed(t);
  await bed.chain('A');
  assert.equal(bed.heats('A'), 0);
  await bed.heat();
  assert.equal(bed.heats('A'), 1);
  bed.pass(20_000);
  await bed.heat();
  bed.pass(20_000);
  assert.equal(bed.heats('A'), 1);
  bed.pass(10_000);
  assert.equal(bed.heats('A'), 0);
  await bed.guest('write -P 1 0 64k');
  assert.deepEqual((await bed.heat()).regions, []);
});

test('the new layer of a snapshot goes on where the last one was, and a longer disk has more regions', async (t) => {
  const bed = new HeatBed(t);
  await bed.chain('A');
  await bed.heat();
  await bed.guest('write -P 1 0 64k');
  bed.pass(60_000 / 4);
  const before = (await bed.heat()).regions;
  await bed.snapshot('A', 'B');
  assert.deepEqual((await bed.heat()).regions, before);
  assert.deepEqual([bed.heats('A'), bed.heats('B')], [0, 1]);
  await bed.execute('block_resize', { 'node-name': 'B', size: 16 * MiB });
  await bed.guest('write -P 1 15M 64k');
  bed.pass(60_000 / 4);
  assert.deepEqual(
    (await bed.heat()).regions.map(({ start }) => start),
    [0, 15 * MiB],
  );
});

test('a disk that grows far is counted in larger regions, and its new layer too', async (t) => {
  const bed = new HeatBed(t);
  await bed.chain('A');
  const [args, KiB, GiB] = [{ region: 512 }, 1024, 1024 * MiB];
  const total = ({ regions }: Heat): number => regions.reduce((sum, { rate }) => sum + rate, 0);
  await bed.heat(args);
  await bed.guest('write -P 1 0 48k');
  bed.pass(1000);
  const before = await bed.heat(args);
  assert.deepEqual([before.region, before.regions.length], [512, 96]);
  await bed.guest('write -P 1 48k 16k');
  await bed.execute('block_resize', { 'node-name': 'A', size: 16 * GiB });
  await bed.guest(`write -P 1 ${16 * GiB - 64 * KiB} 64k`);
  bed.pass(1000);
  const after = await bed.heat(args);
  assert.equal(after.region, 16 * KiB, '1 Mi regions at most');
  assert.equal(after.counted, 2000);
  const end = 16 * GiB - 64 * KiB;
  assert.deepEqual(
    after.regions.map(({ start }) => start),
    [0, 16, 32, 48].map((at) => at * KiB).concat([0, 16, 32, 48].map((at) => end + at * KiB)),
  );
  assert.ok(Math.abs(total(after) - 64 * KiB) < 1024, `128 KiB in two seconds, seen ${total(after)}`);
  // The disk of the new layer is shorter, and what was counted is as coarse as it was.
  await bed.snapshot('A', 'B');
  await bed.execute('block_resize', { 'node-name': 'B', size: 8 * MiB });
  const later = await bed.heat(args);
  assert.deepEqual([later.region, later.regions], [16 * KiB, after.regions.slice(0, 4)]);
  await bed.execute('block_resize', { 'node-name': 'B', size: 20 * 1024 * GiB });
  assert.equal((await bed.heat(args)).region, 32 * MiB);
  assert.match(
    await bed.refusal('x-query-write-heat', { node: 'B', region: 1024 }),
    /more than 1048576 regions/,
  );
});

test('what is asked for wrongly, or in too many ways, is refused', async (t) => {
  const bed = new HeatBed(t);
  await bed.chain('A');
  const refusal = (args: JsonObject): Promise<string> =>
    bed.refusal('x-query-write-heat', { node: 'A', ...args });
  assert.match(await refusal({ region: 1000 }), /power of two/);
  assert.match(await refusal({ region: 256 }), /from 512/);
  assert.match(await refusal({ 'half-life': 0 }), /at least 1 ms/);
  assert.match(await refusal({ node: 'none' }), /none/);
  for (const region of [512, 1024, 2048, 4096]) await bed.heat({ region });
  assert.match(await refusal({ region: 8192 }), /in 4 ways already/);
});
