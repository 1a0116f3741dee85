import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NO_TRACE_OUTPUT, Trace } from './trace.js';

function newTrace(): { trace: Trace; lines: string[]; on: () => string[] } {
  const lines: string[] = [];
  const trace = new Trace({ ...NO_TRACE_OUTPUT, write: (line) => void lines.push(line) });
  return { trace, lines, on: () => trace.points.filter(({ isOn }) => isOn).map(({ name }) => name) };
}

test('patterns switch points, names with a minus switch them off, and unknown names are told', () => {
  const { trace, on } = newTrace();
  assert.deepEqual(on(), []);
  assert.equal(trace.switch('nbd_re*'), true);
  assert.deepEqual(on(), ['nbd_refused', 'nbd_request']);
  assert.equal(trace.switch('-nbd_request'), true);
  assert.deepEqual(on(), ['nbd_refused']);
  assert.equal(trace.switch('none_such'), false);
  assert.equal(trace.switch('none_such*'), true);
  assert.equal(trace.switch('-*'), true);
  assert.deepEqual(on(), []);
  // What means something in regular expressions does not here.
  assert.deepEqual(trace.matching('nbd.request'), []);
  assert.equal(trace.matching('nbd_re?uest').length, 1);
});

test('names are the points’ own, and no two are alike', () => {
  const { trace, lines } = newTrace();
  const names = trace.points.map(({ name }) => name);
  assert.equal(new Set(names).size, names.length);
  assert.ok(names.length >= 10);
  for (const point of trace.points) point.say('text');
  assert.deepEqual(
    lines,
    names.map((name) => `${name} text\n`),
  );
});
