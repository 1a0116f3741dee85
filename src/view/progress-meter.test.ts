import assert from 'node:assert/strict';
import { test } from 'node:test';
import { durationText, humanBytes, ProgressMeter } from './progress-meter.js';

test('sizes are short', () => {
  assert.equal(humanBytes(999), '999 B');
  assert.equal(humanBytes(1024), '1.0 KiB');
  assert.equal(humanBytes(250 * 1024 * 1024), '250 MiB');
});

test('progress tells rate and time left, and survives an empty job', () => {
  const meter = new ProgressMeter();
  assert.equal(meter.line('stream', 0, 1024 * 1024, 0), 'stream      0%  0 B of 1.0 MiB');
  const second = meter.line('stream', 512 * 1024, 1024 * 1024, 1000);
  assert.equal(second, 'stream     50%  512 KiB of 1.0 MiB  512 KiB/s  1.0 s left');
  // The total grew: less of it is done, but nothing was undone.
  assert.match(
    meter.line('stream', 600 * 1024, 4 * 1024 * 1024, 2000),
    /^stream     50%  600 KiB of 4.0 MiB/,
  );
  assert.match(new ProgressMeter().line('mirror', 0, 0, 5), /100%/);
});

test('a long time left is told in minutes and hours', () => {
  assert.deepEqual([0.14, 59.9, 125, 3725.2].map(durationText), ['0.1 s', '59.9 s', '2:05', '1:02:06']);
});
