import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Throughput } from './throughput.js';

test('a throughput is the mean since the start, and of the last four seconds from then on', () => {
  const started = 10_000_123;
  const throughput = new Throughput(started);
  assert.equal(throughput.bytesPerSecond(started), 0);
  for (let ms = 0; ms < 2000; ms += 10) throughput.add(1000, started + ms);
  assert.equal(throughput.bytesPerSecond(started + 2000), 100_000);
  for (let ms = 2000; ms < 20_000; ms += 10) throughput.add(3000, started + ms);
  const steady = throughput.bytesPerSecond(started + 20_000);
  assert.ok(Math.abs(steady - 300_000) < 3000, String(steady));
});

test('a throughput of one that has stopped sinks to nothing', () => {
  const throughput = new Throughput(0);
  throughput.add(4_000_000, 100);
  const rates = [1000, 2000, 3900, 60_000].map((ms) => throughput.bytesPerSecond(ms));
  assert.equal(rates[0], 4_000_000);
  assert.ok(
    rates.every((rate, i) => i === 0 || rate < (rates[i - 1] ?? 0)),
    String(rates),
  );
  assert.equal(rates.at(-1), 0);
});
